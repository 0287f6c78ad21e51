"""The text window's bookkeeping at a decode step in plain torch: the specification of triton.py, and what runs on a CPU.

Shapes: n layers, b rows, g = 1 or KV heads, C slots. A slot's `token_idx` says which window token it holds (0, 1, ... by position), FREE
for none. Everything a step changes lies in tensors that stay where they are; `entered` counts the steps, once for each [n, b, g], so that
in a kernel no program reads what another one writes.
"""

import torch
from torch import Tensor

from avl.kernels.window.eviction import weakest
from avl.kernels.window.types import FREE, Window


def enter_window(
    window: Window, token_idx: Tensor, accumulated: Tensor | None, slot: Tensor, entered: Tensor, lengths: tuple[tuple[int, Tensor], ...]
) -> None:
    """Put the step's token into its slot: note its index, clear its sum, and count it. Changes everything but `window` and `slot`.

    Args:
        window: what never changes.
        token_idx: int64 [n, b, g, C].
        accumulated: sums of attention scores, float [n, b, g, C], or None.
        slot: where the token goes, int64 [n, b, g].
        entered: tokens that entered before, int64 [n, b, g].
        lengths: pairs (image tokens, int64 [b]); each tensor becomes those image tokens and the window's tokens.
    """
    where = slot.unsqueeze(-1)
    token_idx.scatter_(-1, where, (entered + window.prompt).unsqueeze(-1))
    if accumulated is not None:
        accumulated.scatter_(-1, where, 0.0)
    entered += 1
    for image, length in lengths:
        length.copy_(image + _count(window, entered[0, :, 0]))


def leave_window(window: Window, token_idx: Tensor, accumulated: Tensor | None, slot: Tensor, entered: Tensor) -> None:
    """Evict the weakest token of every window over its size, and set `slot` to where the next token goes. Changes `token_idx` and `slot`.

    The weakest has the smallest sum outside the sinks and the recent part, the lowest index among equals; without sums the oldest goes.
    Arguments are those of `enter_window`.
    """
    last = token_idx.shape[-1] - 1
    free = _count(window, entered).clamp(max=last)
    if window.size is None:
        slot.copy_(free)
        return
    newest = (entered + window.prompt).unsqueeze(-1)
    candidates = (token_idx < newest - window.recent) & (token_idx >= window.sinks)
    scores = token_idx.to(torch.float64) if accumulated is None else accumulated
    full = _count(window, entered) > window.size
    slot.copy_(torch.where(full, weakest(scores, token_idx, candidates), free))
    where = slot.unsqueeze(-1)
    token_idx.scatter_(-1, where, torch.where(full.unsqueeze(-1), FREE, token_idx.gather(-1, where)))


def _count(window: Window, entered: Tensor) -> Tensor:
    """Return the tokens stored during a step, its own included, before any is evicted."""
    before = entered + (window.start - 1)
    return (before if window.size is None else before.clamp(max=window.size)) + 1
