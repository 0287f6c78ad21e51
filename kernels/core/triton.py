"""Core attention in Triton: a split kernel that reads K and V once, in place, and a combine kernel that merges the splits.

One program of the split kernel walks a part of one row's `index` for one KV head (or a few) and keeps an online softmax in base 2.
It writes the normalized partial output and the log-sum-exp of its part and, where scores are wanted, the logits. The combine kernel
weighs the partial outputs with their log-sum-exp, and turns logits into attention weights averaged over heads. Nothing uses
atomics, so the same call gives the same bits.

Two forms of the split kernel: with as many KV heads as query heads a product of one query with the keys has no use for the matrix
units (15 of 16 rows would be padding), so `split_vector_kernel` multiplies on the CUDA cores; with grouped queries
`split_matrix_kernel` puts the queries of one KV head in the rows of a `tl.dot`. On GPUs whose matrix units Triton does not use the first
one serves grouped queries too.

A decode step's token can be rotated, stored and attended to in the same launch (`attend_new`). Its column is in one part of each row: that
part's program begins its softmax with the token, and no program reads the slot that is written.

The grid follows from shapes alone, never from values on the device, so both kernels can be captured in a CUDA graph: call once with
the same shapes beforehand, so that nothing compiles during capture.

Prefixes: `p_` pointer, `o_` offset, `m_` mask, `b_` value of a tile. Shape letters are those of `avl.kernels.core_attention`.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from avl.kernels.launch import OPTIONS, on_device
from avl.kernels.layer.types import HeadNorms

LOG2_E = math.log2(math.e)
SPLITS_AT_A_TIME = tl.constexpr(16)  # in the combine kernel, which is compiled once for any number of them

# of count_splits: by arithmetic for an H200, rounded to the careful side, not measured
SERIAL = 1 / 3  # some 420 instructions take 0.6 us where nothing else runs; with a latency of 0.8 us over two buffers that is 0.7 us
WAVE = 1 / 4
MERGE = 2  # a launch in a CUDA graph, 1.3 us, and three memory latencies


class Tiling(NamedTuple):
    """How work is cut on one kind of GPU.

    Attributes:
        vector_tile_bytes: of K (and of V) that a program of the vector kernel computes at a time.
        vector_heads: KV heads per program of the vector kernel; > 1 reads longer runs of token-major storage.
        stages: of the vector kernel: up to `stages` - 1 tiles are on their way, the next one from when another was computed. 1 loads into
            registers.
        vector_programs: programs of the vector kernel that fit on a multiprocessor. The compiler may use the registers which that allows
            and no more; a slow test checks that it manages without spilling.
        matrix: whether grouped heads run on the matrix units.
        matrix_tile_bytes: as for the vector kernel.
        matrix_stages: as for the vector kernel.
        matrix_programs: as for the vector kernel, where up to 16 query heads share a KV head.
        warps: per program.
        max_splits: most parts of a row.
    """

    vector_tile_bytes: int = 8192
    vector_heads: int = 1
    stages: int = 3
    vector_programs: int = 4
    matrix: bool = True
    matrix_tile_bytes: int = 8192
    matrix_stages: int = 3
    matrix_programs: int = 4
    warps: int = 4
    max_splits: int = 128

    def registers(self, programs: int) -> int:
        """Return how many registers a thread may have so that `programs` fit on a multiprocessor: it has 64 K, given out by 8 a thread."""
        return min(255, (1 << 16) // (32 * self.warps * programs) // 8 * 8)


def tiling_for(capability: tuple[int, int]) -> Tiling:
    """Return the tiling of GPUs of this compute capability. Numbers come from compiling (kernels/README.md, "Tiling"), none from timing.

    What keeps memory busy is bytes on their way: bandwidth x latency, 3.4 MB or 26 KB per multiprocessor on an H200 (4.3 TB/s x 0.8 us).
    They lie in shared memory; registers (64 K) bound the programs.

    - 8.0, 8.7, 9.x to 11.x (164 or 228 KB of shared memory): in both kernels four programs of 128 registers with up to two tiles of 16 KB
      (K and V) on their way: 128 KB, half of it while all of them compute.
    - other 8.x and 12.x (100 KB): five programs of the vector kernel with two tiles of 8 KB on their way, 80 KB. Two of 16 KB would leave
      two programs; one of 16 KB three of them and 48 KB. Four programs of the matrix kernel with one tile of 16 KB: 64 KB.
    - before 8.0: no asynchronous copies, so a single stage, loaded into registers. Nor does the compiler have matrix instructions there: a
      product becomes so many registers that they spill, so grouped heads take the vector kernel.
    """
    if capability < (8, 0):
        return Tiling(stages=1, vector_programs=5, matrix=False)
    if capability in ((8, 0), (8, 7)) or (9, 0) <= capability < (12, 0):
        return Tiling()
    return Tiling(vector_tile_bytes=4096, vector_programs=5, matrix_stages=2)


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
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend with one query per row to the slots in `index`; arguments and results are those of kernels/core/reference.py.

    `splits` is the number of parts into which each row's index is cut, chosen from the shapes when None; `tiling` is how a part is cut,
    that of the device when None.
    A slot outside 0..L-1 reads memory that is not the cache's.
    """
    return _attend(query, None, key, value, index, length, scale, columns, by_group, sums, splits, tiling)


class NewToken(NamedTuple):
    """A step's token, which `attend_new` rotates and stores.

    Attributes:
        cos: [B, D], cosine at the rows' positions.
        sin: [B, D], sine at the rows' positions, negated in the first half.
        norms: of queries and keys before they are rotated; None for none.
        slot: int64 [B, 1 or G], counted from `first_slot` among the slots and from `first_column` among the columns.
        first_column: index column from which `slot` counts.
        first_slot: slot from which `slot` counts.
    """

    cos: Tensor
    sin: Tensor
    norms: HeadNorms | None
    slot: Tensor
    first_column: int
    first_slot: int


def attend_new(
    qkv: Tensor,
    new: NewToken,
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
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Rotate a new token's queries and key, store its key and value, and attend: one launch less than in two calls.

    Equals `rotate_and_store(qkv, new.cos, new.sin, key.transpose(1, 2), value.transpose(1, 2), new.slot, new.first_slot, new.norms)` of
    kernels/layer/reference.py, followed by `attend` with the queries it returns, where every row (and KV head) reads the new token in
    column `first_column + slot`, within its length: there the index, if any, has `first_slot + slot`, and nowhere else.

    Args:
        qkv: [B, (H + 2 G) D], rows contiguous: queries, keys, values, head by head.
        new: where the token goes, and how it is rotated.
        key: storage [B, G, L, D], the last dimension contiguous; changed.
        value: likewise.
        index: as that of `attend`.
        length: likewise.
        scale: likewise.
        columns: likewise.
        by_group: likewise.
        sums: likewise.
        splits: likewise.
        tiling: likewise.
    """
    states = qkv.view(len(qkv), -1, key.shape[3])
    return _attend(states, new, key, value, index, length, scale, columns, by_group, sums, splits, tiling)


def _attend(
    query: Tensor,
    new: NewToken | None,
    key: Tensor,
    value: Tensor,
    index: Tensor | None,
    length: Tensor | None,
    scale: float,
    columns: tuple[int, int] | None,
    by_group: bool,
    sums: Tensor | None,
    splits: int | None,
    tiling: Tiling | None,
) -> tuple[Tensor, Tensor | None]:
    """Attend with `query`, which where there is a `new` token is followed by its keys and values: [B, H + 2 G, D]."""
    batch, heads, size = query.shape
    kv_heads = key.shape[1]
    if new is None:
        token: tuple[Any, ...] = (None, None, None, None, None, 0.0, 0, 0)
        token_strides: tuple[int, ...] = (0, 0, 0)
    else:
        heads -= 2 * kv_heads
        slot = new.slot
        token = (new.cos, new.sin, slot, *(new.norms or (None, None, 0.0)), new.first_column, new.first_slot)
        token_strides = (new.cos.stride(0), slot.stride(0), slot.stride(1) if slot.shape[1] > 1 else 0)
    shared = heads // kv_heads
    width = key.shape[2] if index is None else index.shape[-1]
    if tiling is None:
        tiling = _device_tiling(query.device)
    merged = sums is not None or (columns is not None and columns[1] > columns[0])
    cut = cut_work(batch, heads, kv_heads, size, width, key.dtype, merged, tiling, _multiprocessors(query.device))
    if splits is None:
        splits = cut.splits

    out = torch.empty(batch, heads, size, dtype=query.dtype, device=query.device)
    lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=query.device)
    # a single split is the result already; then `part` is not written, but is of the dtype that the kernels are compiled for
    part = lse if splits == 1 else torch.empty(batch, heads, splits, size, dtype=torch.float32, device=query.device)
    # sums alone: the logits of their columns are needed, the scores are not kept
    start, stop = columns or ((width - sums.shape[-1], width) if sums is not None else (0, 0))
    logits = torch.empty(batch, heads, stop - start, dtype=torch.float32, device=query.device) if stop > start else None
    per_head = index is not None and index.dim() == 3
    index_strides = (0, 0, 0) if index is None else (index.stride(0), index.stride(1) if per_head else 0, index.stride(-1))

    with on_device(query.device):
        arguments = (query, key, value, index, length, out, part, lse, logits, *token, scale * LOG2_E, width, splits, start, stop)
        strides = (*query.stride(), *key.stride(), *value.stride(), *index_strides, *token_strides)
        if cut.vector:
            split_vector_kernel[(cut.programs, splits, batch)](
                *arguments, *strides, H=heads, SHARED=shared, D=size, PER_HEAD=per_head,
                BLOCK_N=cut.block_n, BLOCK_H=cut.heads, BLOCK_D=cut.block_d, STAGES=tiling.stages,
                num_warps=tiling.warps, maxnreg=tiling.registers(cut.fit), **OPTIONS,
            )  # fmt: skip
        else:
            split_matrix_kernel[(cut.programs, splits, batch)](
                *arguments, *strides, H=heads, SHARED=shared, D=size, PER_HEAD=per_head,
                # the interpreter computes bfloat16 on raw bits
                UPCAST=interpreted() and key.dtype == torch.bfloat16,
                BLOCK_N=cut.block_n, BLOCK_M=cut.heads, BLOCK_D=cut.block_d,
                # where there is an index the compiler has half of the stages between it and the tiles that it names
                num_stages=tiling.matrix_stages if index is None else 2 * tiling.matrix_stages - 1,
                num_warps=tiling.warps, maxnreg=tiling.registers(cut.fit), **OPTIONS,
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
                BLOCK_H=min(32, triton.next_power_of_2(heads // score_heads)), BLOCK_W=block_w, BLOCK_D=cut.block_d, num_warps=4, **OPTIONS,
            )  # fmt: skip
    return out, (scores if scores is None or by_group else scores.squeeze(1))


class Cut(NamedTuple):
    """How one call is cut.

    Attributes:
        vector: whether the vector kernel runs, else the matrix kernel.
        block_n: index columns per tile.
        heads: query heads of a program, padded to a power of two.
        block_d: head size, likewise.
        programs: per row and split.
        fit: programs that fit on a multiprocessor.
        splits: parts of a row.
    """

    vector: bool
    block_n: int
    heads: int
    block_d: int
    programs: int
    fit: int
    splits: int


@functools.lru_cache(maxsize=4096)
def cut_work(
    batch: int,
    heads: int,
    kv_heads: int,
    size: int,
    width: int,
    dtype: torch.dtype,
    merged: bool,
    tiling: Tiling,
    multiprocessors: int,
) -> Cut:
    """Return how a call on keys of `dtype` is cut: from shapes and the device alone, so that a CUDA graph can be replayed.

    `merged` says whether the combine kernel runs anyway, for scores.
    """
    shared = heads // kv_heads  # query heads per KV head
    block_d = max(16, triton.next_power_of_2(size))
    token_bytes = block_d * dtype.itemsize  # of K, or of V
    vector = shared == 1 or not tiling.matrix
    if vector:
        block_h = min(tiling.vector_heads, triton.next_power_of_2(heads))
        block_n = max(1, tiling.vector_tile_bytes // (block_h * token_bytes))
        programs, fit, read = triton.cdiv(heads, block_h), tiling.vector_programs, block_h
    else:
        block_h = min(64, max(16, triton.next_power_of_2(shared)))
        block_n = min(64, max(16, tiling.matrix_tile_bytes // token_bytes))
        programs, fit, read = kv_heads * triton.cdiv(shared, block_h), tiling.matrix_programs * 16 // block_h, 1
        if dtype == torch.float32:
            block_n = 16  # products of float32 take many registers: more would spill
        if token_bytes > 256:  # fewer tokens than 16 are no operand, so tiles are larger
            fit //= 2
        fit = max(1, fit)
    # outputs and log-sum-exps of a part, float32, written and read, over K and V of a tile
    partial = 8 * (size + 1) * (heads / programs) / (2 * block_n * read * token_bytes)
    splits = count_splits(width, programs * batch, block_n, fit * multiprocessors, partial, merged, tiling.max_splits)
    return Cut(vector, block_n, block_h, block_d, programs, fit, splits)


def count_splits(
    width: int, programs: int, block_n: int, slots: int, partial: float = 1 / 16, merged: bool = False, most: int = 128
) -> int:
    """Return into how many parts each row's `width` index columns are cut, so that the chip is done soonest.

    The unit of time is what a tile takes while all slots are busy: about 2 us on an H200. Programs run in waves of `slots`. All waves but
    the last cost the bytes they read; the last, where programs may be few, also takes SERIAL of the unit for every tile of its longest
    part, so that a last wave of few programs is avoided. Every wave costs WAVE for starts and ends that nothing hides, every part its
    partial output, and cutting at all costs MERGE, for a second launch. Of cuts whose parts all fit at once the finest is taken that costs
    3 % more at most: it depends least on how fast a single program is.

    Args:
        width: index columns.
        programs: that share the chip without cutting.
        block_n: columns per tile.
        slots: programs that fit on the chip at once.
        partial: bytes of a part's output, written and read, over those of a tile.
        merged: whether the second launch is there anyway.
        most: parts.
    """

    def time(splits: int) -> float:
        parts = programs * splits
        waves = triton.cdiv(parts, slots)
        last = parts - (waves - 1) * slots
        tiles = width / splits / block_n
        longest = triton.cdiv(triton.cdiv(width, splits), block_n)
        reading = (waves - 1) * tiles + max(last / slots * tiles, SERIAL * longest)
        return reading + WAVE * waves + (splits > 1) * (parts * partial / slots + MERGE * (not merged))

    most = max(1, min(most, triton.cdiv(width, block_n)))
    best = min(range(1, most + 1), key=time)
    finest = min(most, slots // programs)
    return max([best, *(splits for splits in range(best + 1, finest + 1) if time(splits) <= 1.03 * time(best))])


@functools.cache
def _device_tiling(device: torch.device) -> Tiling:
    return tiling_for(torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0))


@functools.cache
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
def find_part(p_length, b, n, s, splits):
    """Return the first and last + 1 index column of split s in row b. Each row is cut by its own length, into parts that differ by one."""
    count = load_count(p_length, b, n)
    each = count // splits
    more = count % splits  # parts with one column more, the first ones
    begin = s * each + tl.minimum(s, more)
    return begin, begin + each + tl.where(s < more, 1, 0)


@triton.jit
def finite(x):
    """Return x, with 0 for -inf: the maximum of nothing, where -inf - -inf would be NaN."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def positive(x):
    """Return x, with 1 for 0: the sum over nothing, whose output is 0 / 1 and whose logarithm must not be taken."""
    return tl.where(x == 0.0, 1.0, x)


@triton.jit
def rotate(p_x, p_cos, p_sin, p_norm, eps, o_d, m_x, D: tl.constexpr):
    """Return the heads at `p_x` [heads, 1] after their norm and RoPE, rounded where `rotate_and_store` rounds."""
    dtype = p_x.dtype.element_ty
    # `sin` comes with its sign: minus in the first half, where the partner is the second
    o_pair = (o_d + D // 2) % D
    m_d = o_d < D
    b_x = tl.load(p_x + o_d[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_pair = tl.load(p_x + o_pair[None, :], mask=m_x, other=0.0).to(tl.float32)
    if p_norm is not None:
        b_scale = tl.rsqrt(tl.sum(b_x * b_x, axis=1) / D + eps)[:, None]
        b_norm = tl.load(p_norm + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
        b_x = ((b_x * b_scale).to(dtype).to(tl.float32) * b_norm).to(dtype).to(tl.float32)
        b_norm = tl.load(p_norm + o_pair, mask=m_d, other=0.0).to(tl.float32)[None, :]
        b_pair = ((b_pair * b_scale).to(dtype).to(tl.float32) * b_norm).to(dtype).to(tl.float32)
    b_cos = tl.load(p_cos + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
    b_sin = tl.load(p_sin + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
    return ((b_x * b_cos).to(dtype).to(tl.float32) + (b_pair * b_sin).to(dtype).to(tl.float32)).to(dtype)


# the numbers that change from call to call are not specialized on: a new value must not compile a kernel in the middle of a capture
@triton.jit(
    do_not_specialize=["n", "splits", "start", "stop", "s_ib", "s_ig", "first_column", "first_slot", "s_sb", "s_sg"],
    do_not_specialize_on_alignment=["p_index", "p_slot"],
)
def split_vector_kernel(
    p_q, p_k, p_v, p_index, p_length, p_out, p_part, p_lse, p_logits,
    p_cos, p_sin, p_slot, p_query_norm, p_key_norm, eps, first_column, first_slot,
    scale, n, splits, start, stop,
    s_qb, s_qh, s_qd, s_kb, s_kg, s_kl, s_kd, s_vb, s_vg, s_vl, s_vd, s_ib, s_ig, s_in, s_cb, s_sb, s_sg,
    H: tl.constexpr, SHARED: tl.constexpr, D: tl.constexpr, PER_HEAD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attend on the CUDA cores, every query head by itself: for one query head per KV head, and for groups where `Tiling.matrix` says so.

    Every token lane of the tile keeps its own running softmax over the tokens it sees; lanes meet once, after the loop. So the loop
    reduces across threads only along D, within a warp, and waits for other warps only to store logits in long runs.
    """
    o_h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_g = (o_h // SHARED).to(tl.int64)  # their KV heads
    s = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_h = o_h < H
    m_hd = m_h[:, None] & (o_d < D)[None, :]
    begin, end = find_part(p_length, b, n, s, splits)

    p_head = p_q + b * s_qb + o_h[:, None] * s_qh
    o_k = b * s_kb + o_g[:, None] * s_kg + o_d[None, :] * s_kd  # [BLOCK_H, BLOCK_D]
    o_v = b * s_vb + o_g[:, None] * s_vg + o_d[None, :] * s_vd

    if p_slot is None:
        b_q = tl.load(p_head + o_d[None, :] * s_qd, mask=m_hd, other=0.0).to(tl.float32) * scale
        b_max = tl.full([BLOCK_N, BLOCK_H], float("-inf"), tl.float32)
        b_sum = tl.zeros([BLOCK_N, BLOCK_H], tl.float32)
        b_acc = tl.zeros([BLOCK_N, BLOCK_H, BLOCK_D], tl.float32)
    else:
        b_q = rotate(p_head, p_cos + b * s_cb, p_sin + b * s_cb, p_query_norm, eps, o_d, m_hd, D).to(tl.float32) * scale
        o_new = tl.load(p_slot + b * s_sb + o_g * s_sg, mask=m_h, other=0).to(tl.int64)
        o_column = first_column + o_new.to(tl.int32)  # [BLOCK_H]
        o_new += first_slot
        m_own = m_h & (o_column >= begin) & (o_column < end)
        m_new = m_own[:, None] & m_hd
        p_new = p_q + b * s_qb + (H + o_g)[:, None] * s_qh
        b_key = rotate(p_new, p_cos + b * s_cb, p_sin + b * s_cb, p_key_norm, eps, o_d, m_new, D)
        b_value = tl.load(p_new + H // SHARED * s_qh + o_d[None, :], mask=m_new, other=0.0)
        m_store = m_new & (o_h % SHARED == 0)[:, None]  # once per KV head
        tl.store(p_k + o_new[:, None] * s_kl + o_k, b_key, mask=m_store)
        tl.store(p_v + o_new[:, None] * s_vl + o_v, b_value, mask=m_store)
        # in the part that has the new token's column, the softmax of the first lane begins with it
        b_first = tl.sum(b_key.to(tl.float32) * b_q, axis=1)
        if p_logits is not None:
            o_first = (b * H + o_h) * (stop - start) + (o_column - start)
            tl.store(p_logits + o_first, b_first, mask=m_own & (o_column >= start) & (o_column < stop))
        m_lane = (tl.arange(0, BLOCK_N) == 0)[:, None] & m_own[None, :]
        b_max = tl.where(m_lane, b_first[None, :], float("-inf"))
        b_sum = tl.where(m_lane, 1.0, 0.0)
        b_acc = tl.where(m_lane[:, :, None], b_value.to(tl.float32)[None, :, :], 0.0)
    # index, K and V of up to STAGES - 1 tiles are on their way, by asynchronous copies to shared memory, which take no registers
    for first in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        o_n = first + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        m_nh = m_n[:, None] & m_h[None, :]
        if p_slot is not None:
            m_nh &= o_n[:, None] != o_column[None, :]  # nobody reads the slot that is written
        if p_index is None:
            b_slot = o_n[:, None].to(tl.int64)
        elif PER_HEAD:
            b_slot = tl.load(p_index + b * s_ib + o_g[None, :] * s_ig + o_n[:, None] * s_in, mask=m_nh, other=0).to(tl.int64)
        else:
            b_slot = tl.load(p_index + b * s_ib + o_n * s_in, mask=m_n, other=0)[:, None].to(tl.int64)
        m_tile = m_nh[:, :, None] & (o_d < D)[None, None, :]
        b_k = tl.load(p_k + b_slot[:, :, None] * s_kl + o_k[None, :, :], mask=m_tile, other=0.0)
        b_v = tl.load(p_v + b_slot[:, :, None] * s_vl + o_v[None, :, :], mask=m_tile, other=0.0)
        b_logit = tl.sum(b_k.to(tl.float32) * b_q[None, :, :], axis=2)
        b_logit = tl.where(m_nh, b_logit, float("-inf"))
        if p_logits is not None:  # noqa: SIM102 - decided when compiled, not when run
            # storing changes the layout, with barriers: only in tiles that have wanted columns
            if (first + BLOCK_N > start) & (first < stop):
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
    if splits == 1:
        tl.store(p_out + (b * H + o_h)[:, None] * D + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_hd)
    else:
        tl.store(p_part + o_part[:, None] * D + o_d[None, :], b_out, mask=m_hd)
    tl.store(p_lse + o_part, b_top + tl.log2(positive(b_total)), mask=m_h)


@triton.jit(
    do_not_specialize=["n", "splits", "start", "stop", "s_ib", "s_ig", "first_column", "first_slot", "s_sb", "s_sg"],
    do_not_specialize_on_alignment=["p_index", "p_slot"],
)
def split_matrix_kernel(
    p_q, p_k, p_v, p_index, p_length, p_out, p_part, p_lse, p_logits,
    p_cos, p_sin, p_slot, p_query_norm, p_key_norm, eps, first_column, first_slot,
    scale, n, splits, start, stop,
    s_qb, s_qh, s_qd, s_kb, s_kg, s_kl, s_kd, s_vb, s_vg, s_vl, s_vd, s_ib, s_ig, s_in, s_cb, s_sb, s_sg,
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
    begin, end = find_part(p_length, b, n, s, splits)

    p_head = p_q + b * s_qb + o_h[:, None] * s_qh
    m_md = m_m[:, None] & m_d[None, :]
    o_k = b * s_kb + g * s_kg + o_d * s_kd
    o_v = b * s_vb + g * s_vg + o_d * s_vd

    if p_slot is None:
        b_q = tl.load(p_head + o_d[None, :] * s_qd, mask=m_md, other=0.0)
        b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        b_sum = tl.zeros([BLOCK_M], tl.float32)
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    else:
        b_q = rotate(p_head, p_cos + b * s_cb, p_sin + b * s_cb, p_query_norm, eps, o_d, m_md, D)
        new = tl.load(p_slot + b * s_sb + g * s_sg).to(tl.int64)
        column = first_column + new.to(tl.int32)
        new += first_slot
        own = (column >= begin) & (column < end)
        m_new = (m_d & own)[None, :]
        p_new = p_q + b * s_qb + (H + g + tl.arange(0, 1)[:, None]) * s_qh
        b_key = rotate(p_new, p_cos + b * s_cb, p_sin + b * s_cb, p_key_norm, eps, o_d, m_new, D)  # [1, BLOCK_D]
        b_value = tl.load(p_new + H // SHARED * s_qh + o_d[None, :], mask=m_new, other=0.0)
        m_store = m_new & (tl.program_id(0) % blocks == 0)  # once per KV head
        tl.store(p_k + new * s_kl + o_k[None, :], b_key, mask=m_store)
        tl.store(p_v + new * s_vl + o_v[None, :], b_value, mask=m_store)
        # in the part that has the new token's column, the softmax begins with it
        b_first = tl.sum(b_q.to(tl.float32) * b_key.to(tl.float32), axis=1) * scale
        if p_logits is not None:
            o_first = (b * H + o_h) * (stop - start) + (column - start)
            tl.store(p_logits + o_first, b_first, mask=m_m & own & (column >= start) & (column < stop))
        b_max = tl.where(own, b_first, float("-inf"))
        b_sum = tl.zeros([BLOCK_M], tl.float32) + tl.where(own, 1.0, 0.0)
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32) + b_value.to(tl.float32)
    if UPCAST:
        b_q = b_q.to(tl.float32)
    for first in range(begin, end, BLOCK_N):
        o_n = first + tl.arange(0, BLOCK_N)
        m_n = o_n < end
        if p_slot is not None:
            m_n &= o_n != column  # nobody reads the slot that is written
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
        if p_logits is not None:  # noqa: SIM102 - decided when compiled, not when run
            if (first + BLOCK_N > start) & (first < stop):
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
    m_out = m_m[:, None] & m_d[None, :]
    if splits == 1:
        tl.store(p_out + (b * H + o_h)[:, None] * D + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m_out)
    else:
        tl.store(p_part + o_part[:, None] * D + o_d[None, :], b_out, mask=m_out)
    tl.store(p_lse + o_part, b_max + tl.log2(positive(b_sum)), mask=m_m)


@triton.jit(
    do_not_specialize=["n", "splits", "start", "stop", "merges", "first", "s_sb", "s_sg"], do_not_specialize_on_alignment=["p_sums"]
)
def combine_kernel(
    p_out, p_scores, p_sums, p_length, p_part, p_lse, p_logits, n, splits, start, stop, merges, first, s_sb, s_sg,
    H: tl.constexpr, HEADS_PER_SCORE: tl.constexpr, D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merge one head's splits in each of the first `merges` programs of a row; average one block of score columns in each of the others."""
    program = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    if program < merges:
        merge_splits(p_out, p_part, p_lse, b * H + program, splits, D, BLOCK_D)
    elif p_logits is not None:
        count = load_count(p_length, b, n)
        average_heads(
            p_scores, p_sums, p_logits, p_lse, b, program - merges, count, splits, start, stop, first, s_sb, s_sg,
            H, HEADS_PER_SCORE, BLOCK_H, BLOCK_W,
        )  # fmt: skip


@triton.jit
def merge_splits(p_out, p_part, p_lse, head, splits, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store the output of one head from its splits. An empty split has lse = -inf, hence weight 0."""
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    b_top = tl.full([SPLITS_AT_A_TIME], float("-inf"), tl.float32)
    for first in range(0, splits, SPLITS_AT_A_TIME):
        o_s = first + tl.arange(0, SPLITS_AT_A_TIME)
        b_top = tl.maximum(b_top, tl.load(p_lse + head * splits + o_s, mask=o_s < splits, other=float("-inf")))
    top = finite(tl.max(b_top, axis=0))
    b_total = tl.zeros([SPLITS_AT_A_TIME], tl.float32)
    b_out = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, splits, SPLITS_AT_A_TIME):
        o_s = first + tl.arange(0, SPLITS_AT_A_TIME)
        b_weight = tl.exp2(tl.load(p_lse + head * splits + o_s, mask=o_s < splits, other=float("-inf")) - top)
        m_part = (o_s < splits)[:, None] & m_d[None, :]
        b_part = tl.load(p_part + (head * splits + o_s)[:, None] * D + o_d[None, :], mask=m_part, other=0.0)
        b_total += b_weight
        b_out += tl.sum(b_weight[:, None] * b_part, axis=0)
    b_out = b_out / positive(tl.sum(b_total, axis=0))
    tl.store(p_out + head * D + o_d, b_out.to(p_out.dtype.element_ty), mask=m_d)


@triton.jit
def average_heads(
    p_scores, p_sums, p_logits, p_lse, b, program, count, splits, start, stop, first, s_sb, s_sg,
    H: tl.constexpr, HEADS_PER_SCORE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Store the attention weights of BLOCK_W columns from their logits, averaged over HEADS_PER_SCORE heads in a fixed order.

    Columns from `first` on are added to the sums.
    """
    width = stop - start
    blocks = tl.cdiv(width, BLOCK_W)
    score_head = program // blocks
    o_w = (program % blocks) * BLOCK_W + tl.arange(0, BLOCK_W)
    o_s = tl.arange(0, SPLITS_AT_A_TIME)
    m_w = (o_w < width) & (start + o_w < count)
    b_mean = tl.zeros([BLOCK_W], tl.float32)
    for some in tl.static_range(0, HEADS_PER_SCORE, BLOCK_H):
        o_h = some + tl.arange(0, BLOCK_H)
        m_h = o_h < HEADS_PER_SCORE
        o_row = b * H + score_head * HEADS_PER_SCORE + o_h
        # log-sum-exp of the heads over all splits; each lane keeps its own until the end
        b_lane = tl.full([BLOCK_H, SPLITS_AT_A_TIME], float("-inf"), tl.float32)
        b_sum = tl.zeros([BLOCK_H, SPLITS_AT_A_TIME], tl.float32)
        for first_split in range(0, splits, SPLITS_AT_A_TIME):
            m_lse = m_h[:, None] & (first_split + o_s < splits)[None, :]
            b_lse = tl.load(p_lse + o_row[:, None] * splits + (first_split + o_s)[None, :], mask=m_lse, other=float("-inf"))
            b_new = tl.maximum(b_lane, b_lse)
            b_sum = b_sum * tl.exp2(b_lane - finite(b_new)) + tl.exp2(b_lse - finite(b_new))
            b_lane = b_new
        b_top = finite(tl.max(b_lane, axis=1))
        b_whole = b_top + tl.log2(positive(tl.sum(b_sum * tl.exp2(b_lane - b_top[:, None]), axis=1)))
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
