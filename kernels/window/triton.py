"""The text window's bookkeeping at a decode step in Triton: one launch before the layers and one behind them, for all layers at once.

Arguments and results are those of kernels/window/reference.py. One program per [n, b, g] does all the work on its C slots. Prefixes as in
kernels/core/triton.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from avl.kernels.launch import OPTIONS, on_device
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
            token_idx, accumulated, slot, entered, length, second,
            window.prompt, window.start, window.size or 0, image, other, capacity, rows, heads,
            BOUNDED=window.size is not None, num_warps=1, **OPTIONS,
        )  # fmt: skip


def leave_window(window: Window, token_idx: Tensor, accumulated: Tensor | None, slot: Tensor, entered: Tensor) -> None:
    """Evict the weakest token of every window over its size, and set `slot` to where the next token goes."""
    with on_device(token_idx.device):
        leave_window_kernel[(slot.numel(),)](
            token_idx, accumulated, slot, entered,
            window.prompt, window.start, window.size or 0, window.recent, window.sinks, token_idx.shape[-1],
            BOUNDED=window.size is not None, BLOCK=512, num_warps=4, **OPTIONS,
        )  # fmt: skip


@triton.jit
def count_tokens(entered, start, size, BOUNDED: tl.constexpr):
    """Return the tokens stored during a step, its own included, before any is evicted."""
    before = entered + start - 1
    if BOUNDED:
        before = tl.minimum(before, size)
    return before + 1


# every number is one of run time: another prompt's must not compile a kernel
@triton.jit(do_not_specialize=["prompt", "start", "size", "image", "other", "capacity", "rows", "heads"])
def enter_window_kernel(
    p_token_idx, p_sums, p_slot, p_entered, p_length, p_second, prompt, start, size, image, other, capacity, rows, heads,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """Run one program per window."""
    w = tl.program_id(0).to(tl.int64)
    entered = tl.load(p_entered + w)
    place = w * capacity + tl.load(p_slot + w)
    tl.store(p_token_idx + place, entered + prompt)
    if p_sums is not None:
        tl.store(p_sums + place, 0.0)
    tl.store(p_entered + w, entered + 1)
    if (w % heads == 0) & (w < rows * heads):  # the first layer's first head speaks for its row
        count = count_tokens(entered + 1, start, size, BOUNDED)
        if p_length is not None:
            tl.store(p_length + w // heads, image + count)
        if p_second is not None:
            tl.store(p_second + w // heads, other + count)


@triton.jit(do_not_specialize=["prompt", "start", "size", "recent", "sinks", "capacity"])
def leave_window_kernel(
    p_token_idx, p_sums, p_slot, p_entered, prompt, start, size, recent, sinks, capacity,
    BOUNDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run one program per window. Each of BLOCK lanes finds the weakest token among its slots, then the lanes meet."""
    w = tl.program_id(0).to(tl.int64)
    entered = tl.load(p_entered + w)
    count = count_tokens(entered, start, size, BOUNDED)
    slot = tl.minimum(count, capacity - 1)
    if BOUNDED:  # noqa: SIM102 - decided when compiled, not when run
        if count > size:
            b_low = tl.full([BLOCK], float("inf"), tl.float32)
            b_oldest = tl.full([BLOCK], MAX_TOKEN, tl.int64)
            # where there is no candidate slot 0 goes, as argmin gives it
            b_weakest = tl.arange(0, BLOCK)
            for first in range(0, capacity, BLOCK):
                o_c = first + tl.arange(0, BLOCK)
                b_token = tl.load(p_token_idx + w * capacity + o_c, mask=o_c < capacity, other=MAX_TOKEN)
                m_c = (b_token < entered + prompt - recent) & (b_token >= sinks)
                b_sum = tl.zeros([BLOCK], tl.float32)
                if p_sums is not None:
                    b_sum = tl.load(p_sums + w * capacity + o_c, mask=o_c < capacity, other=0.0)
                m_c = m_c & ((b_sum < b_low) | ((b_sum == b_low) & (b_token < b_oldest)))
                b_low = tl.where(m_c, b_sum, b_low)
                b_oldest = tl.where(m_c, b_token, b_oldest)
                b_weakest = tl.where(m_c, o_c, b_weakest)
            b_oldest = tl.where(b_low == tl.min(b_low, axis=0), b_oldest, MAX_TOKEN)
            # indices are unique, so one lane has the lowest
            slot = tl.min(tl.where(b_oldest == tl.min(b_oldest, axis=0), b_weakest, capacity), axis=0).to(tl.int64)
            tl.store(p_token_idx + w * capacity + slot, FREE_TOKEN)
    tl.store(p_slot + w, slot)
