"""Core attention compiled by numba: what a CPU runs. Slots are read in place, each once, whatever the strides and the number of rows.

A thread takes some KV heads of some rows. It walks the tokens of up to eight heads together, because token-major storage then gives it
long runs of memory: first all keys, for the logits, then all values. Everything is in float32.
"""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from avl.kernels.native.memory import FAST, exp2, part_of, view, wait_for_all, wide
from avl.kernels.native.team import kernels, run

TOGETHER = 8
"""KV heads whose tokens are walked together."""


@njit(fastmath=FAST, error_model="numpy")
def _slot(index, width, j):
    """Return entry j of an index of int32 or int64 numbers, or j where there is none (width 0)."""
    if width == 4:
        return np.int64(view(index + 4 * j, 1, np.int32(0))[0])
    if width == 8:
        return view(index + 8 * j, 1, np.int64(0))[0]
    return j


@njit(fastmath=FAST, error_model="numpy")
def attend_heads(
    query, key, value, heads, shared, size, count, index, index_width, key_slot, key_head, value_slot, value_head, index_head, like,
    weights, columns, out,
):  # fmt: skip
    """Attend with the queries of a few KV heads of one row to `count` slots.

    Args:
        query: address of float32 [heads * shared, size], already times scale and log2(e).
        key: address of the first head's key in slot 0.
        value: address of the first head's value in slot 0.
        heads: number of KV heads.
        shared: query heads per KV head.
        size: numbers in a head.
        count: slots to read.
        index: address of the slots, for the first head.
        index_width: bytes of an entry, 0 for slots 0, 1, ...
        key_slot: bytes from slot to slot of the keys.
        key_head: bytes from head to head of the keys.
        value_slot: bytes from slot to slot of the values.
        value_head: bytes from head to head of the values.
        index_head: bytes from head to head of the index, 0 if heads share it.
        like: an element of keys and values.
        weights: address of float32 [heads * shared, columns], becomes the attention weights.
        columns: at least `count`.
        out: address of float32 [heads * shared, size], becomes the output; zeros where `count` is 0.
    """
    one = np.float32(0)
    for j in range(0, count, 4):
        for g in range(heads):
            row, own = key + g * key_head, index + g * index_head
            if j + 4 <= count:
                k0 = view(row + _slot(own, index_width, j) * key_slot, size, like)
                k1 = view(row + _slot(own, index_width, j + 1) * key_slot, size, like)
                k2 = view(row + _slot(own, index_width, j + 2) * key_slot, size, like)
                k3 = view(row + _slot(own, index_width, j + 3) * key_slot, size, like)
                for s in range(g * shared, (g + 1) * shared):
                    q, w = view(query + 4 * s * size, size, one), view(weights + 4 * (s * columns + j), 4, one)
                    s0 = s1 = s2 = s3 = np.float32(0)
                    for d in range(size):
                        s0 += q[d] * wide(k0[d])
                        s1 += q[d] * wide(k1[d])
                        s2 += q[d] * wide(k2[d])
                        s3 += q[d] * wide(k3[d])
                    w[0], w[1], w[2], w[3] = s0, s1, s2, s3
            else:
                for i in range(j, count):
                    k0 = view(row + _slot(own, index_width, i) * key_slot, size, like)
                    for s in range(g * shared, (g + 1) * shared):
                        q, s0 = view(query + 4 * s * size, size, one), np.float32(0)
                        for d in range(size):
                            s0 += q[d] * wide(k0[d])
                        view(weights + 4 * (s * columns + i), 1, one)[0] = s0
    for s in range(heads * shared):
        w = view(weights + 4 * s * columns, count, one)
        top = np.float32(-np.inf)
        for j in range(count):
            top = max(top, w[j])
        total = np.float32(0)
        for j in range(count):
            w[j] = exp2(w[j] - top)
            total += w[j]
        share = np.float32(1) / total
        for j in range(count):
            w[j] *= share
        o = view(out + 4 * s * size, size, one)
        for d in range(size):
            o[d] = np.float32(0)
    for j in range(0, count, 4):
        for g in range(heads):
            row, own = value + g * value_head, index + g * index_head
            if j + 4 <= count:
                v0 = view(row + _slot(own, index_width, j) * value_slot, size, like)
                v1 = view(row + _slot(own, index_width, j + 1) * value_slot, size, like)
                v2 = view(row + _slot(own, index_width, j + 2) * value_slot, size, like)
                v3 = view(row + _slot(own, index_width, j + 3) * value_slot, size, like)
                for s in range(g * shared, (g + 1) * shared):
                    o, w = view(out + 4 * s * size, size, one), view(weights + 4 * (s * columns + j), 4, one)
                    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
                    for d in range(size):
                        o[d] += w0 * wide(v0[d]) + w1 * wide(v1[d]) + w2 * wide(v2[d]) + w3 * wide(v3[d])
            else:
                for i in range(j, count):
                    v0 = view(row + _slot(own, index_width, i) * value_slot, size, like)
                    for s in range(g * shared, (g + 1) * shared):
                        o, w0 = view(out + 4 * s * size, size, one), view(weights + 4 * (s * columns + i), 1, one)[0]
                        for d in range(size):
                            o[d] += w0 * wide(v0[d])


@njit(fastmath=FAST, error_model="numpy")
def attend_share(
    thread, threads, query, key, value, rows, heads, shared, size, width, lengths, length_width, index, index_width, strides, like, weights,
    out, by_group, start, stop, parts, scores, sums, sums_width, sums_row, sums_head,
):  # fmt: skip
    """Attend with one thread's share of all heads of all rows.

    Args:
        thread: number of this thread.
        threads: how many there are.
        query: address of float32 [rows, heads * shared, size], already times scale and log2(e).
        key: address of the keys.
        value: address of the values.
        rows: B.
        heads: KV heads, G.
        shared: query heads per KV head.
        size: D.
        width: index columns, n.
        lengths: address of the rows' lengths, 0 where all rows read `width`.
        length_width: bytes of a length.
        index: address of the slots.
        index_width: bytes of a slot, 0 for slots 0, 1, ...
        strides: bytes from row to row, head to head and slot to slot of keys, of values, and from row to row and head to head of the index.
        like: an element of keys and values.
        weights: address of float32 [threads, TOGETHER * shared, width], scratch.
        out: address of float32 [rows, heads * shared, size].
        by_group: whether scores are means over a KV head's queries.
        start: first column whose scores are wanted.
        stop: last one + 1, `start` where none are.
        parts: address of float32 [threads, rows, stop - start], becomes each thread's part of the scores; not used with `by_group`.
        scores: address of float32 [rows, heads, stop - start] with `by_group`, 0 if they are not kept.
        sums: address of the sums of the last columns with `by_group`, 0 for none.
        sums_width: how many columns they have.
        sums_row: bytes from row to row of the sums.
        sums_head: bytes from head to head of the sums.
    """
    key_row, key_head, key_slot, value_row, value_head, value_slot, index_row, index_head = strides
    one, columns, queries = np.float32(0), stop - start, heads * shared
    own_weights = weights + 4 * thread * TOGETHER * shared * width
    own_parts = parts + 4 * thread * rows * columns
    if columns > 0 and not by_group:
        part = view(own_parts, rows * columns, one)
        for j in range(rows * columns):
            part[j] = one
    first, last = part_of(rows * heads, thread, threads, 1)
    while first < last:
        b, g = first // heads, first % heads
        some = min(TOGETHER, heads - g, last - first)
        count = width
        if lengths != 0:
            count = max(0, min(width, _slot(lengths, length_width, b)))
        attend_heads(
            query + 4 * (b * queries + g * shared) * size, key + b * key_row + g * key_head, value + b * value_row + g * value_head, some,
            shared, size, count, index + b * index_row + g * index_head, index_width, key_slot, key_head, value_slot, value_head,
            index_head,
            like, own_weights, width, out + 4 * (b * queries + g * shared) * size,
        )  # fmt: skip
        if by_group and columns > 0:
            mean = np.float32(1.0 / shared)
            for i in range(some):
                for j in range(start, stop):
                    total = one
                    if j < count:
                        for s in range(i * shared, (i + 1) * shared):
                            total += view(own_weights + 4 * (s * width + j), 1, one)[0]
                    total *= mean
                    if scores != 0:
                        view(scores + 4 * ((b * heads + g + i) * columns + j - start), 1, one)[0] = total
                    if sums != 0 and j >= width - sums_width:
                        view(sums + b * sums_row + (g + i) * sums_head + 4 * (j - width + sums_width), 1, one)[0] += total
        elif columns > 0:
            mean, until = np.float32(1.0 / queries), min(stop, count)
            if until > start:
                part = view(own_parts + 4 * b * columns, until - start, one)
                for s in range(some * shared):
                    w = view(own_weights + 4 * (s * width + start), until - start, one)
                    for j in range(until - start):
                        part[j] += w[j] * mean
        first += some


@njit(fastmath=FAST, error_model="numpy")
def collect_scores(thread, threads, parts, rows, width, start, stop, scores, scores_start, scores_stop, sums, sums_width, sums_row):
    """Add up the threads' parts of the scores of all heads, for one thread's share of the columns.

    Args:
        thread: number of this thread.
        threads: how many there are.
        parts: address of float32 [threads, rows, stop - start].
        rows: B.
        width: index columns, n.
        start: first column of the parts.
        stop: last one + 1.
        scores: address of float32 [rows, scores_stop - scores_start], 0 for none.
        scores_start: first column that goes there.
        scores_stop: last one + 1.
        sums: address of the sums of the last columns, 0 for none.
        sums_width: how many columns they have.
        sums_row: bytes from row to row of the sums.
    """
    one, columns = np.float32(0), stop - start
    first, last = part_of(columns, thread, threads, 16)
    for b in range(rows):
        for j in range(start + first, start + last):
            total = one
            for t in range(threads):
                total += view(parts + 4 * ((t * rows + b) * columns + j - start), 1, one)[0]
            if scores != 0 and j >= scores_start and j < scores_stop:
                view(scores + 4 * (b * (scores_stop - scores_start) + j - scores_start), 1, one)[0] = total
            if sums != 0 and j >= width - sums_width:
                view(sums + b * sums_row + 4 * (j - width + sums_width), 1, one)[0] += total


@njit(error_model="numpy")
def _job(thread, arguments, like):
    a = view(arguments, 40, np.int64(0))
    strides = (a[15], a[16], a[17], a[18], a[19], a[20], a[21], a[22])
    attend_share(
        thread, a[0], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], strides, like, a[14], a[23], a[24] != 0,
        a[25], a[26], a[27], a[28], a[31], a[32], a[33], a[34],
    )  # fmt: skip
    if a[24] == 0 and a[26] > a[25]:
        wait_for_all(a[1], a[0])
        collect_scores(thread, a[0], a[27], a[5], a[9], a[25], a[26], a[28], a[29], a[30], a[31], a[32], a[33])


def _attend_kernels(digest):
    def float32(thread, arguments):
        digest  # noqa: B018
        _job(thread, arguments, np.float32(0))

    def bfloat16(thread, arguments):
        digest  # noqa: B018
        _job(thread, arguments, np.uint16(0))

    def float16(thread, arguments):
        digest  # noqa: B018
        _job(thread, arguments, np.int16(0))

    return {torch.float32: float32, torch.bfloat16: bfloat16, torch.float16: float16}


_kernel = kernels(_attend_kernels)


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
) -> tuple[Tensor, Tensor | None]:
    """Attend with one query per row to the slots in `index`; arguments and results are those of kernels/core/reference.py.

    float32, bfloat16 and float16. A head whose numbers are not neighbors is copied first. A slot outside 0..L-1 reads memory that is not
    the cache's.
    """
    batch, heads, size = query.shape
    if key.stride(3) != 1:
        key = key.contiguous()
    if value.stride(3) != 1:
        value = value.contiguous()
    kv_heads, element = key.shape[1], key.element_size()
    width = key.shape[2] if index is None else index.shape[-1]
    per_head = index is not None and index.dim() == 3
    if index is not None and index.stride(-1) != 1:
        index = index.contiguous()
    if length is not None:
        length = length.contiguous()
    scaled = (query.float() * (scale * math.log2(math.e))).contiguous()
    threads = torch.get_num_threads()
    out = torch.empty(batch, heads, size)
    # scores are wanted of these columns, sums of the last ones: one range holds both
    first, last = columns or (width, width)
    if sums is not None:
        first, last = min(first, width - sums.shape[-1]), width
    weights = torch.empty(threads * TOGETHER * (heads // kv_heads) * width)
    parts = None if by_group or first >= last else torch.empty(threads * batch * (last - first))
    scores = None
    if columns is not None:
        # a range of its own where sums add columns that are not asked for
        shape = (batch, kv_heads, last - first) if by_group else (batch, columns[1] - columns[0])
        scores = torch.empty(shape)
    numbers = [
        0, 0, scaled.data_ptr(), key.data_ptr(), value.data_ptr(), batch, kv_heads, heads // kv_heads, size, width,
        0 if length is None else length.data_ptr(), 0 if length is None else length.element_size(),
        0 if index is None else index.data_ptr(), 0 if index is None else index.element_size(), weights.data_ptr(),
        *(key.stride(dim) * element for dim in (0, 1, 2)), *(value.stride(dim) * element for dim in (0, 1, 2)),
        *((0, 0) if index is None else (index.stride(0) * index.element_size(), per_head * index.stride(1) * index.element_size())),
        out.data_ptr(), by_group, first, last, 0 if parts is None else parts.data_ptr(), 0 if scores is None else scores.data_ptr(),
        *(columns or (0, 0)),
        *((0, 0, 0, 0) if sums is None else (sums.data_ptr(), sums.shape[-1], 4 * sums.stride(0), 4 * sums.stride(1))), 0, 0, 0, 0, 0,
    ]  # fmt: skip
    run(_kernel(key.dtype), np.array(numbers, dtype=np.int64), threads)
    if by_group and columns is not None and (first, last) != columns:
        scores = scores[..., columns[0] - first : columns[1] - first].contiguous()
    return out.to(query.dtype), scores
