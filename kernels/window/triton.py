"""The text window's bookkeeping at a decode step in Triton: one launch before the layers and one behind them, for all layers at once.

Arguments and results are those of kernels/window/reference.py. One program per [n, b, g] does all the work on its C slots. Prefixes as in
kernels/core/triton.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from avl.kernels.launch import on_device
from avl.kernels.window.types import FREE, Window

MAX_TOKEN = tl.constexpr(2**63 - 1)
FREE_TOKEN = tl.constexpr(FREE)


def enter_window(
    window: Window, token_idx: Tensor, accumulated: Tensor | None, slot: Tensor, entered: Tensor, lengths: tuple[tuple[int, Tensor], ...]
) -> None:
    """Put the step's token into its slot."""
    (image, length), (other, second) = (*lengths, (0, None), (0, None))[:2]
    layers, rows, heads, capacity = token_idx.shape
    with on_device(token_idx.device):
        enter_window_kernel[(layers * rows * heads,)](
            token_idx, accumulated, slot, entered, length, second, window.prompt, window.start, image, other,
            C=capacity, SIZE=window.size, ROWS=rows, HEADS=heads, num_warps=1,
        )  # fmt: skip


def leave_window(window: Window, token_idx: Tensor, accumulated: Tensor | None, slot: Tensor, entered: Tensor) -> None:
    """Evict the weakest token of every window over its size, and set `slot` to where the next token goes."""
    capacity = token_idx.shape[-1]
    block = triton.next_power_of_2(capacity)
    with on_device(token_idx.device):
        leave_window_kernel[(slot.numel(),)](
            token_idx, accumulated, slot, entered, window.prompt, window.start, window.recent, window.sinks,
            C=capacity, SIZE=window.size, BLOCK=block, num_warps=min(8, max(1, block // 256)),
        )  # fmt: skip


@triton.jit
def count_tokens(entered, start, SIZE: tl.constexpr):
    """Return the tokens stored during a step, its own included, before any is evicted."""
    before = entered + start - 1
    if SIZE is not None:
        before = tl.minimum(before, SIZE)
    return before + 1


@triton.jit(do_not_specialize=["prompt", "start", "image", "other"])
def enter_window_kernel(
    p_token_idx, p_sums, p_slot, p_entered, p_length, p_second, prompt, start, image, other,
    C: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Run one program per window."""
    w = tl.program_id(0).to(tl.int64)
    entered = tl.load(p_entered + w)
    place = w * C + tl.load(p_slot + w)
    tl.store(p_token_idx + place, entered + prompt)
    if p_sums is not None:
        tl.store(p_sums + place, 0.0)
    tl.store(p_entered + w, entered + 1)
    if (w % HEADS == 0) & (w < ROWS * HEADS):  # the first layer's first head speaks for its row
        count = count_tokens(entered + 1, start, SIZE)
        if p_length is not None:
            tl.store(p_length + w // HEADS, image + count)
        if p_second is not None:
            tl.store(p_second + w // HEADS, other + count)


@triton.jit(do_not_specialize=["prompt", "start", "recent", "sinks"])
def leave_window_kernel(
    p_token_idx, p_sums, p_slot, p_entered, prompt, start, recent, sinks,
    C: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run one program per window."""
    w = tl.program_id(0).to(tl.int64)
    entered = tl.load(p_entered + w)
    count = count_tokens(entered, start, SIZE)
    slot = tl.minimum(count, C - 1)
    if SIZE is not None:  # noqa: SIM102 - decided when compiled, not when run
        if count > SIZE:
            o_c = tl.arange(0, BLOCK)
            b_token = tl.load(p_token_idx + w * C + o_c, mask=o_c < C, other=MAX_TOKEN)
            m_c = (b_token < entered + prompt - recent) & (b_token >= sinks)
            if p_sums is not None:
                b_sum = tl.load(p_sums + w * C + o_c, mask=o_c < C, other=0.0)
                b_sum = tl.where(m_c, b_sum, float("inf"))
                m_c = m_c & (b_sum == tl.min(b_sum, axis=0))
            b_token = tl.where(m_c, b_token, MAX_TOKEN)
            # indices are unique, so one slot has the lowest; where there is no candidate slot 0 goes, as argmin gives it
            oldest = tl.min(b_token, axis=0)
            slot = tl.min(tl.where(b_token == oldest, o_c, BLOCK), axis=0).to(tl.int64)
            tl.store(p_token_idx + w * C + slot, FREE_TOKEN)
    tl.store(p_slot + w, slot)
