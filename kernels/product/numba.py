"""Products of a few rows with a weight, compiled by numba: each weight is read once, whatever the number of rows.

A library's matrix product is made for many rows: at four rows MKL takes two to five times as long as at one, where the bytes read are the
same. Here sixteen sums, of four rows with four outputs, stay in registers.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from avl.kernels.native.memory import FAST, part_of, rounded, size_of, view, wide
from avl.kernels.native.team import kernels, run


@njit(fastmath=FAST, error_model="numpy")
def _four_by_four(x, w, size, depth, like, sums):
    """Write the products of four rows at `x` with four rows at `w` to `sums`, row by row of `x`."""
    x0, x1, x2, x3 = (
        view(x, depth, np.float32(0)),
        view(x + 4 * depth, depth, np.float32(0)),
        view(x + 8 * depth, depth, np.float32(0)),
        view(x + 12 * depth, depth, np.float32(0)),
    )
    w0, w1, w2, w3 = (
        view(w, depth, like),
        view(w + size * depth, depth, like),
        view(w + 2 * size * depth, depth, like),
        view(w + 3 * size * depth, depth, like),
    )
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
    for k in range(depth):
        a, b, c, d = x0[k], x1[k], x2[k], x3[k]
        v = wide(w0[k])
        s00 += v * a
        s10 += v * b
        s20 += v * c
        s30 += v * d
        v = wide(w1[k])
        s01 += v * a
        s11 += v * b
        s21 += v * c
        s31 += v * d
        v = wide(w2[k])
        s02 += v * a
        s12 += v * b
        s22 += v * c
        s32 += v * d
        v = wide(w3[k])
        s03 += v * a
        s13 += v * b
        s23 += v * c
        s33 += v * d
    sums[0], sums[1], sums[2], sums[3] = s00, s01, s02, s03
    sums[4], sums[5], sums[6], sums[7] = s10, s11, s12, s13
    sums[8], sums[9], sums[10], sums[11] = s20, s21, s22, s23
    sums[12], sums[13], sums[14], sums[15] = s30, s31, s32, s33


@njit(fastmath=FAST, error_model="numpy")
def _one_by_four(x, w, size, depth, like, sums):
    """Write the products of one row at `x` with four rows at `w` to `sums`."""
    x0 = view(x, depth, np.float32(0))
    w0, w1, w2, w3 = (
        view(w, depth, like),
        view(w + size * depth, depth, like),
        view(w + 2 * size * depth, depth, like),
        view(w + 3 * size * depth, depth, like),
    )
    s0 = s1 = s2 = s3 = np.float32(0)
    for k in range(depth):
        a = x0[k]
        s0 += wide(w0[k]) * a
        s1 += wide(w1[k]) * a
        s2 += wide(w2[k]) * a
        s3 += wide(w3[k]) * a
    sums[0], sums[1], sums[2], sums[3] = s0, s1, s2, s3


@njit(fastmath=FAST, error_model="numpy")
def _two_by_four(x, w, size, depth, like, sums):
    """Write the products of two rows at `x` with four rows at `w` to `sums`, row by row of `x`."""
    x0, x1 = view(x, depth, np.float32(0)), view(x + 4 * depth, depth, np.float32(0))
    w0, w1, w2, w3 = (
        view(w, depth, like),
        view(w + size * depth, depth, like),
        view(w + 2 * size * depth, depth, like),
        view(w + 3 * size * depth, depth, like),
    )
    s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = np.float32(0)
    for k in range(depth):
        a, b = x0[k], x1[k]
        v = wide(w0[k])
        s0 += v * a
        t0 += v * b
        v = wide(w1[k])
        s1 += v * a
        t1 += v * b
        v = wide(w2[k])
        s2 += v * a
        t2 += v * b
        v = wide(w3[k])
        s3 += v * a
        t3 += v * b
    sums[0], sums[1], sums[2], sums[3] = s0, s1, s2, s3
    sums[4], sums[5], sums[6], sums[7] = t0, t1, t2, t3


@njit(fastmath=FAST, error_model="numpy")
def _dot(x, w, depth, like):
    a, b, total = view(x, depth, np.float32(0)), view(w, depth, like), np.float32(0)
    for k in range(depth):
        total += a[k] * wide(b[k])
    return total


@njit(error_model="numpy")
def multiply(x, rows, depth, weight, bias, first, last, like, out, stride):
    """Write outputs `first` to `last - 1` of a product, rounded to the precision of the weight.

    Args:
        x: address of float32 [rows, depth].
        rows: number of rows.
        depth: number of inputs.
        weight: address of elements [outputs, depth].
        bias: address of elements [outputs], 0 for none.
        first: first output.
        last: last output + 1.
        like: an element of the weight.
        out: address of float32 [rows, stride].
        stride: numbers from row to row.
    """
    sums = np.empty(16, np.float32)
    size = size_of(like)
    result = view(out, (rows - 1) * stride + last, np.float32(0))
    for n in range(first, last, 4):
        wide_enough = n + 4 <= last
        w = weight + n * depth * size
        for b in range(0, rows, 4):
            at = x + 4 * b * depth
            few, outputs = min(4, rows - b), min(4, last - n)
            if not wide_enough:
                for i in range(few):
                    for j in range(outputs):
                        sums[4 * i + j] = _dot(at + 4 * i * depth, w + j * size * depth, depth, like)
            elif few == 4:
                _four_by_four(at, w, size, depth, like, sums)
            elif few == 1:
                _one_by_four(at, w, size, depth, like, sums)
            else:
                _two_by_four(at, w, size, depth, like, sums)
                if few == 3:
                    _one_by_four(at + 8 * depth, w, size, depth, like, sums[8:])
            for j in range(outputs):
                extra = np.float32(0)
                if bias != 0:
                    extra = wide(view(bias + (n + j) * size, 1, like)[0])
                for i in range(few):
                    result[(b + i) * stride + n + j] = rounded(sums[4 * i + j] + extra, like)


@njit(error_model="numpy")
def _job(thread, arguments, like):
    a = view(arguments, 10, np.int64(0))
    first, last = part_of(a[7], thread, a[0], 4)
    multiply(a[2], a[3], a[4], a[5], a[6], first, last, like, a[8], a[7])


def _product_kernels(digest):
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


_kernel = kernels(_product_kernels)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `torch.nn.functional.linear` returns for a few rows.

    Args:
        x: [B, K], in the dtype of `weight`.
        weight: [N, K], copied unless contiguous; float32, bfloat16 or float16.
        bias: [N] or None.

    Returns:
        [B, N] in that dtype; sums are in float32.
    """
    rows, depth = x.shape
    weight = weight.contiguous()
    states, outputs = x.float().contiguous(), weight.shape[0]
    out = torch.empty(rows, outputs)
    numbers = [0, 0, states.data_ptr(), rows, depth, weight.data_ptr(), 0 if bias is None else bias.data_ptr(), outputs, out.data_ptr(), 0]
    run(_kernel(weight.dtype), np.array(numbers, dtype=np.int64), torch.get_num_threads())
    return out.to(weight.dtype)
