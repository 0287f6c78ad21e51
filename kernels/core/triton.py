"""Core attention in Triton: a split kernel that reads K and V once, in place, and a combine kernel that merges the splits.

One program of the split kernel walks a part of one row's `index` for one KV head (or a few) and keeps an online softmax in base 2.
It writes the normalized partial output and the log-sum-exp of its part and, where scores are wanted, the logits. The combine kernel
weighs the partial outputs with their log-sum-exp, and turns logits into attention weights averaged over heads. Nothing uses
atomics, so the same call gives the same bits.

Two forms of the split kernel: with as many KV heads as query heads a product of one query with the keys has no use for the matrix
units (15 of 16 rows would be padding), so `split_vector_kernel` multiplies on the CUDA cores; with grouped queries
`split_matrix_kernel` puts the queries of one KV head in the rows of a `tl.dot`.

The grid follows from shapes alone, never from values on the device, so both kernels can be captured in a CUDA graph: call once with
the same shapes beforehand, so that nothing compiles during capture.

Prefixes: `p_` pointer, `o_` offset, `m_` mask, `b_` value of a tile. Shape letters are those of `avl.kernels.core_attention`.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from avl.kernels.launch import on_device

LOG2_E = math.log2(math.e)


class Tiling(NamedTuple):
    """How work is cut. The defaults follow from arithmetic (kernels/README.md, "Tiling"); none has been measured."""

    vector_tile: int = 4096  # elements of K (and of V) that a program of the vector kernel holds: 32 each for 128 threads
    vector_heads: int = 1  # KV heads per program of the vector kernel; > 1 reads longer runs of token-major storage
    matrix_tile_bytes: int = 16384  # bytes of K (and of V) per step of the matrix kernel
    warps: int = 4
    stages: int = 2  # steps whose K and V the matrix kernel has in flight
    programs_per_multiprocessor: int = 8  # about two waves at the four programs that fit at once
    max_splits: int = 128


TILING = Tiling()


def interpreted() -> bool:
    """Return whether the kernels of this process run in Triton's interpreter (TRITON_INTERPRET=1 when this module was imported)."""
    return not isinstance(combine_kernel, triton.runtime.JITFunction)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor | None,
    length: Tensor | None,
    scale: float,
    columns: tuple[int, int] | None,
    by_group: bool,
    sums: Tensor | None = None,
    *,
    splits: int | None = None,
    tiling: Tiling = TILING,
) -> tuple[Tensor, Tensor | None]:
    """Attend with one query per row to the slots in `index`; arguments and results are those of kernels/core/reference.py.

    `splits` is the number of parts into which each row's index is cut, chosen from the shapes when None; `tiling` is how a part is cut.
    A slot outside 0..L-1 reads memory that is not the cache's.
    """
    batch, heads, size = query.shape
    kv_heads = key.shape[1]
    shared = heads // kv_heads  # query heads per KV head
    width = key.shape[2] if index is None else index.shape[-1]
    block_d = max(16, triton.next_power_of_2(size))

    if shared == 1:
        block_h = min(tiling.vector_heads, triton.next_power_of_2(heads))
        block_n = max(1, tiling.vector_tile // (block_h * block_d))
        programs = triton.cdiv(heads, block_h)
    else:
        block_m = min(64, max(16, triton.next_power_of_2(shared)))
        block_n = min(128, max(16, tiling.matrix_tile_bytes // (block_d * key.element_size())))
        if key.dtype == torch.float32:
            block_n = 16  # products of float32 take many registers: more would spill
        programs = kv_heads * triton.cdiv(shared, block_m)
    if splits is None:
        splits = count_splits(width, programs * batch, block_n, _multiprocessors(query.device), tiling)

    out = torch.empty(batch, heads, size, dtype=query.dtype, device=query.device)
    # a single split is the result already, and [B, H, 1, D] lies in memory as [B, H, D] does
    part = out if splits == 1 else torch.empty(batch, heads, splits, size, dtype=torch.float32, device=query.device)
    lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=query.device)
    # sums alone: the logits of their columns are needed, the scores are not kept
    start, stop = columns or ((width - sums.shape[-1], width) if sums is not None else (0, 0))
    logits = torch.empty(batch, heads, stop - start, dtype=torch.float32, device=query.device) if stop > start else None
    per_head = index is not None and index.dim() == 3
    index_strides = (0, 0, 0) if index is None else (index.stride(0), index.stride(1) if per_head else 0, index.stride(-1))

    with on_device(query.device):
        arguments = (query, key, value, index, length, part, lse, logits, scale * LOG2_E, width, splits, start, stop)
        strides = (*query.stride(), *key.stride(), *value.stride(), *index_strides)
        if shared == 1:
            split_vector_kernel[(programs, splits, batch)](
                *arguments, *strides, H=heads, D=size, PER_HEAD=per_head,
                BLOCK_N=block_n, BLOCK_H=block_h, BLOCK_D=block_d, num_warps=tiling.warps,
            )  # fmt: skip
        else:
            split_matrix_kernel[(programs, splits, batch)](
                *arguments, *strides, H=heads, SHARED=shared, D=size, PER_HEAD=per_head,
                # the interpreter computes bfloat16 on raw bits
                UPCAST=interpreted() and key.dtype == torch.bfloat16,
                BLOCK_N=block_n, BLOCK_M=block_m, BLOCK_D=block_d, num_warps=tiling.warps, num_stages=tiling.stages,
            )  # fmt: skip

        scores = None
        score_heads = kv_heads if by_group else 1
        if columns is not None:
            scores = torch.empty(batch, score_heads, stop - start, dtype=torch.float32, device=query.device)
        block_w = 32
        merges = heads if splits > 1 else 0
        averages = score_heads * triton.cdiv(stop - start, block_w)
        s_sb, s_sg = (0, 0) if sums is None else (sums.stride(0), sums.stride(1) if sums.dim() == 3 else 0)
        if merges + averages:
            combine_kernel[(merges + averages, batch)](
                out, scores, sums, length, part, lse, logits, width, splits, start, stop, merges,
                0 if sums is None else width - sums.shape[-1], s_sb, s_sg,
                H=heads, HEADS_PER_SCORE=heads // score_heads, D=size,
                BLOCK_S=triton.next_power_of_2(splits), BLOCK_H=min(32, triton.next_power_of_2(heads // score_heads)),
                BLOCK_W=block_w, BLOCK_D=block_d, num_warps=4,
            )  # fmt: skip
    return out, (scores if scores is None or by_group else scores.squeeze(1))


def count_splits(width: int, programs: int, block_n: int, multiprocessors: int, tiling: Tiling = TILING) -> int:
    """Return into how many parts each row's `width` index columns are cut, when `programs` programs share the chip without cutting."""
    tiles = triton.cdiv(width, block_n)
    wanted = triton.cdiv(tiling.programs_per_multiprocessor * multiprocessors, programs)
    # a part of one tile pays 6 % for its partial output, so parts have two, unless multiprocessors would then idle
    most = max(triton.cdiv(tiles, 2), min(tiles, triton.cdiv(multiprocessors, programs)))
    splits = max(1, min(wanted, most, tiling.max_splits))
    return triton.cdiv(tiles, triton.cdiv(tiles, splits))  # no part is empty in a row of full length


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def load_count(p_length, b, n):
    """Return the valid prefix of row b's index."""
    count = n
    if p_length is not None:
        count = tl.maximum(tl.minimum(tl.load(p_length + b).to(tl.int32), n), 0)
    return count


@triton.jit
def find_part(p_length, b, n, s, splits, BLOCK_N: tl.constexpr):
    """Return the first and last + 1 index column of split s in row b. Each row is cut by its own length, so its splits do equal work."""
    count = load_count(p_length, b, n)
    chunk = tl.cdiv(tl.cdiv(count, splits), BLOCK_N) * BLOCK_N
    return tl.minimum(s * chunk, count), tl.minimum((s + 1) * chunk, count)


@triton.jit
def finite(x):
    """Return x, with 0 for -inf: the maximum of nothing, where -inf - -inf would be NaN."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def positive(x):
    """Return x, with 1 for 0: the sum over nothing, whose output is 0 / 1 and whose logarithm must not be taken."""
    return tl.where(x == 0.0, 1.0, x)


# the numbers that change from call to call are not specialized on: a new value must not compile a kernel in the middle of a capture
@triton.jit(do_not_specialize=["n", "splits", "start", "stop", "s_ib", "s_ig"])
def split_vector_kernel(
    p_q, p_k, p_v, p_index, p_length, p_part, p_lse, p_logits,
    scale, n, splits, start, stop,
    s_qb, s_qh, s_qd, s_kb, s_kg, s_kl, s_kd, s_vb, s_vg, s_vl, s_vd, s_ib, s_ig, s_in,
    H: tl.constexpr, D: tl.constexpr, PER_HEAD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend with one query head per KV head, on the CUDA cores.

    Every token lane of the tile keeps its own running softmax over the tokens it sees; lanes meet once, after the loop. So the loop
    reduces across threads only along D, within a warp, and waits for other warps only to store logits in long runs.
    """
    o_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    s = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_h = o_h < H
    m_hd = m_h[:, None] & (o_d < D)[None, :]
    begin, end = find_part(p_length, b, n, s, splits, BLOCK_N)

    b_q = tl.load(p_q + b * s_qb + o_h[:, None] * s_qh + o_d[None, :] * s_qd, mask=m_hd, other=0.0).to(tl.float32) * scale
    o_k = b * s_kb + o_h.to(tl.int64)[:, None] * s_kg + o_d[None, :] * s_kd  # [BLOCK_H, BLOCK_D]
    o_v = b * s_vb + o_h.to(tl.int64)[:, None] * s_vg + o_d[None, :] * s_vd

    b_max = tl.full([BLOCK_N, BLOCK_H], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
    b_acc = tl.zeros([BLOCK_N, BLOCK_H, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        m_nh = m_n[:, None] & m_h[None, :]
        if p_index is None:
            b_slot = o_n[:, None].to(tl.int64)
        elif PER_HEAD:
            b_slot = tl.load(p_index + b * s_ib + o_h[None, :] * s_ig + o_n[:, None] * s_in, mask=m_nh, other=0).to(tl.int64)
        else:
            b_slot = tl.load(p_index + b * s_ib + o_n * s_in, mask=m_n, other=0)[:, None].to(tl.int64)
        m_tile = m_n[:, None, None] & m_hd[None, :, :]
        # both loads are issued before either is used
        b_k = tl.load(p_k + b_slot[:, :, None] * s_kl + o_k[None, :, :], mask=m_tile, other=0.0)
        b_v = tl.load(p_v + b_slot[:, :, None] * s_vl + o_v[None, :, :], mask=m_tile, other=0.0)
        b_logit = tl.sum(b_k.to(tl.float32) * b_q[None, :, :], axis=2)
        b_logit = tl.where(m_nh, b_logit, float("-inf"))
        if p_logits is not None:
            o_logit = (b * H + o_h[None, :]) * (stop - start) + (o_n[:, None] - start)
            tl.store(p_logits + o_logit, b_logit, mask=m_nh & (o_n >= start)[:, None] & (o_n < stop)[:, None])
        b_new = tl.maximum(b_max, b_logit)
        b_old = tl.exp2(b_max - finite(b_new))
        b_p = tl.exp2(b_logit - finite(b_new))
        b_sum = b_sum * b_old + b_p
        b_acc = b_acc * b_old[:, :, None] + b_p[:, :, None] * b_v.to(tl.float32)
        b_max = b_new

    b_top = tl.max(b_max, axis=0)  # [BLOCK_H]
    b_lane = tl.exp2(b_max - finite(b_top)[None, :])
    b_total = tl.sum(b_sum * b_lane, axis=0)
    b_out = tl.sum(b_acc * b_lane[:, :, None], axis=0) / positive(b_total)[:, None]
    o_part = (b * H + o_h) * splits + s
    tl.store(p_part + o_part[:, None] * D + o_d[None, :], b_out.to(p_part.dtype.element_ty), mask=m_hd)
    tl.store(p_lse + o_part, b_top + tl.log2(positive(b_total)), mask=m_h)


@triton.jit(do_not_specialize=["n", "splits", "start", "stop", "s_ib", "s_ig"])
def split_matrix_kernel(
    p_q, p_k, p_v, p_index, p_length, p_part, p_lse, p_logits,
    scale, n, splits, start, stop,
    s_qb, s_qh, s_qd, s_kb, s_kg, s_kl, s_kd, s_vb, s_vg, s_vl, s_vd, s_ib, s_ig, s_in,
    H: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, PER_HEAD: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend with several query heads per KV head, on the matrix units: their queries are the rows, padded to BLOCK_M >= 16."""
    blocks: tl.constexpr = (SHARED + BLOCK_M - 1) // BLOCK_M
    g = (tl.program_id(0) // blocks).to(tl.int64)
    o_m = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    s = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_m = o_m < SHARED
    o_h = g * SHARED + o_m
    begin, end = find_part(p_length, b, n, s, splits, BLOCK_N)

    b_q = tl.load(p_q + b * s_qb + o_h[:, None] * s_qh + o_d[None, :] * s_qd, mask=m_m[:, None] & m_d[None, :], other=0.0)
    if UPCAST:
        b_q = b_q.to(tl.float32)
    o_k = b * s_kb + g * s_kg + o_d * s_kd
    o_v = b * s_vb + g * s_vg + o_d * s_vd

    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        if p_index is None:
            b_slot = o_n.to(tl.int64)
        else:
            o_index = b * s_ib + o_n * s_in
            if PER_HEAD:
                o_index += g * s_ig
            b_slot = tl.load(p_index + o_index, mask=m_n, other=0).to(tl.int64)
        m_tile = m_n[:, None] & m_d[None, :]
        b_k = tl.load(p_k + b_slot[:, None] * s_kl + o_k[None, :], mask=m_tile, other=0.0)
        b_v = tl.load(p_v + b_slot[:, None] * s_vl + o_v[None, :], mask=m_tile, other=0.0)
        if UPCAST:
            b_k = b_k.to(tl.float32)
            b_v = b_v.to(tl.float32)
        b_logit = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale  # [BLOCK_M, BLOCK_N]
        b_logit = tl.where(m_n[None, :], b_logit, float("-inf"))
        if p_logits is not None:
            o_logit = (b * H + o_h[:, None]) * (stop - start) + (o_n[None, :] - start)
            m_logit = m_m[:, None] & (m_n & (o_n >= start) & (o_n < stop))[None, :]
            tl.store(p_logits + o_logit, b_logit, mask=m_logit)
        b_new = tl.maximum(b_max, tl.max(b_logit, axis=1))
        b_old = tl.exp2(b_max - finite(b_new))
        b_p = tl.exp2(b_logit - finite(b_new)[:, None])
        b_sum = b_sum * b_old + tl.sum(b_p, axis=1)
        b_acc = b_acc * b_old[:, None] + tl.dot(b_p.to(b_v.dtype), b_v, input_precision="ieee")
        b_max = b_new

    b_out = b_acc / positive(b_sum)[:, None]
    o_part = (b * H + o_h) * splits + s
    tl.store(p_part + o_part[:, None] * D + o_d[None, :], b_out.to(p_part.dtype.element_ty), mask=m_m[:, None] & m_d[None, :])
    tl.store(p_lse + o_part, b_max + tl.log2(positive(b_sum)), mask=m_m)


@triton.jit(do_not_specialize=["n", "splits", "start", "stop", "merges", "first", "s_sb", "s_sg"])
def combine_kernel(
    p_out, p_scores, p_sums, p_length, p_part, p_lse, p_logits, n, splits, start, stop, merges, first, s_sb, s_sg,
    H: tl.constexpr, HEADS_PER_SCORE: tl.constexpr, D: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merge one head's splits in each of the first `merges` programs of a row; average one block of score columns in each of the others."""
    program = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    if program < merges:
        merge_splits(p_out, p_part, p_lse, b * H + program, splits, D, BLOCK_S, BLOCK_D)
    elif p_logits is not None:
        count = load_count(p_length, b, n)
        average_heads(
            p_scores, p_sums, p_logits, p_lse, b, program - merges, count, splits, start, stop, first, s_sb, s_sg,
            H, HEADS_PER_SCORE, BLOCK_S, BLOCK_H, BLOCK_W,
        )  # fmt: skip


@triton.jit
def merge_splits(p_out, p_part, p_lse, head, splits, D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store the output of one head from its splits. An empty split has lse = -inf, hence weight 0."""
    o_s = tl.arange(0, BLOCK_S)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    top = finite(tl.max(tl.load(p_lse + head * splits + o_s, mask=o_s < splits, other=float("-inf")), axis=0))
    # a few splits at a time: a tile of all of them need not fit in registers
    STEP: tl.constexpr = 16 if BLOCK_S > 16 else BLOCK_S
    total = 0.0
    b_out = tl.zeros([BLOCK_D], tl.float32)
    for first in tl.static_range(0, BLOCK_S, STEP):
        o_t = first + tl.arange(0, STEP)
        m_t = o_t < splits
        b_weight = tl.exp2(tl.load(p_lse + head * splits + o_t, mask=m_t, other=float("-inf")) - top)
        b_part = tl.load(p_part + (head * splits + o_t)[:, None] * D + o_d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0)
        total += tl.sum(b_weight, axis=0)
        b_out += tl.sum(b_weight[:, None] * b_part.to(tl.float32), axis=0)
    b_out = b_out / positive(total)
    tl.store(p_out + head * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_d)


@triton.jit
def average_heads(
    p_scores, p_sums, p_logits, p_lse, b, program, count, splits, start, stop, first, s_sb, s_sg,
    H: tl.constexpr, HEADS_PER_SCORE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Store the attention weights of BLOCK_W columns from their logits, averaged over HEADS_PER_SCORE heads in a fixed order.

    Columns from `first` on are added to the sums.
    """
    width = stop - start
    blocks = tl.cdiv(width, BLOCK_W)
    score_head = program // blocks
    o_w = (program % blocks) * BLOCK_W + tl.arange(0, BLOCK_W)
    o_s = tl.arange(0, BLOCK_S)
    m_w = (o_w < width) & (start + o_w < count)
    b_mean = tl.zeros([BLOCK_W], tl.float32)
    for some in tl.static_range(0, HEADS_PER_SCORE, BLOCK_H):
        o_h = some + tl.arange(0, BLOCK_H)
        m_h = o_h < HEADS_PER_SCORE
        o_row = b * H + score_head * HEADS_PER_SCORE + o_h
        b_lse = tl.load(p_lse + o_row[:, None] * splits + o_s[None, :], mask=m_h[:, None] & (o_s < splits)[None, :], other=float("-inf"))
        b_top = finite(tl.max(b_lse, axis=1))
        b_whole = b_top + tl.log2(positive(tl.sum(tl.exp2(b_lse - b_top[:, None]), axis=1)))  # log-sum-exp of the head over all splits
        # columns behind the row's length were never written
        b_logit = tl.load(p_logits + o_row[:, None] * width + o_w[None, :], mask=m_h[:, None] & m_w[None, :], other=float("-inf"))
        b_mean += tl.sum(tl.exp2(b_logit - finite(b_whole)[:, None]), axis=0)
    b_mean = b_mean / HEADS_PER_SCORE
    if p_scores is not None:
        o_score = (b * (H // HEADS_PER_SCORE) + score_head) * width + o_w
        tl.store(p_scores + o_score, b_mean, mask=o_w < width)
    if p_sums is not None:
        # no other program has these columns
        p_sum = p_sums + b * s_sb + score_head * s_sg + (start + o_w - first)
        m_sum = m_w & (start + o_w >= first)
        tl.store(p_sum, tl.load(p_sum, mask=m_sum, other=0.0) + b_mean, mask=m_sum)
