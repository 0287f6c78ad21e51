"""The window's bookkeeping at a decode step, in plain torch: what the kernels of triton_window.py must give, and what runs on a CPU.

Shapes: n layers, b rows, g = 1 or KV heads, C slots. A slot's `order` says which window token it holds (0, 1, ... by position), FREE for
none. Everything a step changes lies in tensors that stay where they are; `entered` counts the steps, once for each [n, b, g], so that in
a kernel no program reads what another one writes.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FREE = 1 << 62
"""Order of a slot that holds nothing (a power of two: torch passes padding values through a double)."""


class Window(NamedTuple):
    """What never changes. `prompt`: prompt tokens the window counts. `count`: entries stored after the prompt. `size`: most entries that
    stay, None for unlimited. `recent`, `sinks`: newest and oldest entries that are never evicted."""

    prompt: int
    count: int
    size: int | None
    recent: int
    sinks: int


def enter_window(
    window: Window, order: Tensor, accumulated: Tensor | None, slot: Tensor, entered: Tensor, lengths: tuple[tuple[int, Tensor], ...]
) -> None:
    """The step's token takes its slot: its order is noted, nothing is accumulated for it yet, and it counts.

    Args:
        order: int64 [n, b, g, C]. accumulated: float [n, b, g, C] or None. slot, entered: int64 [n, b, g].
        lengths: pairs (image tokens, int64 [b]); each tensor becomes those image tokens and the window's entries.
    """
    where = slot.unsqueeze(-1)
    order.scatter_(-1, where, (entered + window.prompt).unsqueeze(-1))
    if accumulated is not None:
        accumulated.scatter_(-1, where, 0.0)
    entered += 1
    for image, length in lengths:
        length.copy_(image + _count(window, entered[0, :, 0]))


def leave_window(window: Window, order: Tensor, accumulated: Tensor | None, slot: Tensor, entered: Tensor) -> None:
    """After the step: a window over its size loses its weakest entry; `slot` becomes where the next token goes.

    The weakest has the smallest sum outside the sinks and the recent part, the lowest order among equals; without sums the oldest goes.
    """
    last = order.shape[-1] - 1
    free = _count(window, entered).clamp(max=last)
    if window.size is None:
        slot.copy_(free)
        return
    newest = (entered + window.prompt).unsqueeze(-1)
    candidates = (order < newest - window.recent) & (order >= window.sinks)
    scores = order.to(torch.float64) if accumulated is None else accumulated
    full = _count(window, entered) > window.size
    slot.copy_(torch.where(full, weakest(scores, order, candidates), free))
    where = slot.unsqueeze(-1)
    order.scatter_(-1, where, torch.where(full.unsqueeze(-1), FREE, order.gather(-1, where)))


def _count(window: Window, entered: Tensor) -> Tensor:
    """Entries during a step, its own token included, before any is evicted."""
    before = entered + (window.count - 1)
    return (before if window.size is None else before.clamp(max=window.size)) + 1


def weakest(scores: torch.Tensor, order: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Index ``[...]`` of the smallest score among ``candidates`` along the last dimension; ties go to the lower ``order`` (position)."""
    if scores.device.type == "cpu":  # the same in numpy, whose small operations cost a fraction of torch's
        values, may = scores.numpy(), candidates.numpy()
        smallest = np.where(may, values, np.inf)
        tied_here = (smallest == smallest.min(axis=-1, keepdims=True)) & may
        return torch.as_tensor(np.where(tied_here, order.numpy(), np.iinfo(np.int64).max).argmin(axis=-1))
    masked = torch.where(candidates, scores, torch.inf)
    tied = masked == masked.amin(dim=-1, keepdim=True)
    return torch.where(tied & candidates, order, torch.iinfo(order.dtype).max).argmin(dim=-1)
