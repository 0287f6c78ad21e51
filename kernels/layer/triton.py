"""What a step begins with in one Triton kernel, and the work between a decoder layer's products in three, where the model's own modules
launch some thirty.

At batch 1 a layer of a 7B model reads its weights in about 95 microseconds, and every launch costs one or two of them even inside a CUDA
graph. Each kernel rounds where the modules round, so in 16-bit dtypes a fused layer gives the modules' bits but for the order of one sum.

Arguments and results are those of kernels/layer/reference.py. Prefixes as in kernels/core/triton.py. All grids follow from shapes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from avl.kernels.launch import OPTIONS, on_device
from avl.kernels.layer.types import HeadNorms


def begin_step(tokens: Tensor, positions: Tensor, embedding: Tensor, rotary: Tensor, hidden: Tensor, rotation: Tensor) -> None:
    """Look up the embedding of each row's token and the rotation of its position, and advance the positions."""
    rows, size = hidden.shape
    turn = rotation.shape[1] * rotation.shape[2]
    block = triton.next_power_of_2(size)
    with on_device(hidden.device):
        begin_step_kernel[(rows,)](
            hidden, rotation, tokens, positions, embedding, rotary, embedding.shape[0], tokens.stride(0), positions.stride(0),
            embedding.stride(0), N=size, R=turn, BLOCK=block, BLOCK_R=triton.next_power_of_2(turn), num_warps=min(16, max(1, block // 512)),
            **OPTIONS,
        )  # fmt: skip


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add `delta` to `residual` in place and return its RMS norm."""
    rows, size = residual.shape
    out = torch.empty_like(residual)
    block = triton.next_power_of_2(size)
    with on_device(residual.device):
        add_rms_norm_kernel[(rows,)](
            out, residual, delta, weight, eps, N=size, BLOCK=block, num_warps=min(16, max(1, block // 512)), **OPTIONS
        )  # fmt: skip
    return out


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key: Tensor,
    value: Tensor,
    slot: Tensor | int,
    first: int,
    norms: HeadNorms | None = None,
) -> Tensor:
    """Rotate queries and keys, put key and value of the new token into their slot, and return the queries."""
    rows, _, kv_heads, size = key.shape
    heads = qkv.shape[1] // size - 2 * kv_heads
    query = torch.empty(rows, heads, size, dtype=qkv.dtype, device=qkv.device)
    where, number = (slot, 0) if isinstance(slot, Tensor) else (None, slot)
    s_sb, s_sg = (0, 0) if where is None else (where.stride(0), where.stride(1) if where.shape[1] > 1 else 0)
    with on_device(qkv.device):
        rotate_and_store_kernel[(heads + 2 * kv_heads, rows)](
            query, key, value, qkv, cos, sin, where, *(norms or (None, None, 0.0)), number + first,
            qkv.stride(0), cos.stride(0), *key.stride()[:3], *value.stride()[:3], s_sb, s_sg,
            H=heads, G=kv_heads, D=size, BLOCK_D=triton.next_power_of_2(size), num_warps=1, **OPTIONS,
        )  # fmt: skip
    return query


def silu_product(gate_up: Tensor) -> Tensor:
    """Return SiLU of the first half of every row times its second half."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    block = min(1024, triton.next_power_of_2(size))
    with on_device(gate_up.device):
        silu_product_kernel[(triton.cdiv(size, block), rows)](out, gate_up, gate_up.stride(0), N=size, BLOCK=block, num_warps=4, **OPTIONS)
    return out


@triton.jit(do_not_specialize=["vocabulary", "s_tb", "s_pb"])
def begin_step_kernel(
    p_hidden, p_rotation, p_token, p_position, p_embedding, p_rotary, vocabulary, s_tb, s_pb, s_ev,
    N: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Run one program per row; only that one reads and advances the row's position."""
    b = tl.program_id(0).to(tl.int64)
    token = tl.load(p_token + b * s_tb).to(tl.int64)
    position = tl.load(p_position + b * s_pb)
    o_n, o_r = tl.arange(0, BLOCK), tl.arange(0, BLOCK_R)
    known = (token >= 0) & (token < vocabulary)  # another token is no memory of ours: NaN, which the logits then show
    b_x = tl.load(p_embedding + token * s_ev + o_n, mask=(o_n < N) & known, other=float("nan"))
    tl.store(p_hidden + b * N + o_n, b_x, mask=o_n < N)
    b_r = tl.load(p_rotary + position * R + o_r, mask=o_r < R, other=0.0)
    tl.store(p_rotation + b * R + o_r, b_r, mask=o_r < R)
    tl.store(p_position + b * s_pb, position + 1)


@triton.jit
def add_rms_norm_kernel(p_out, p_residual, p_delta, p_weight, eps, N: tl.constexpr, BLOCK: tl.constexpr):
    """Run one program per row."""
    dtype = p_out.dtype.element_ty
    o_n = tl.arange(0, BLOCK)
    m_n = o_n < N
    o_row = tl.program_id(0).to(tl.int64) * N + o_n
    b_x = tl.load(p_residual + o_row, mask=m_n, other=0.0).to(tl.float32)
    if p_delta is not None:
        b_x = (b_x + tl.load(p_delta + o_row, mask=m_n, other=0.0).to(tl.float32)).to(dtype)
        tl.store(p_residual + o_row, b_x, mask=m_n)
        b_x = b_x.to(tl.float32)
    b_weight = tl.load(p_weight + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_unit = (b_x * tl.rsqrt(tl.sum(b_x * b_x, axis=0) / N + eps)).to(dtype).to(tl.float32)
    tl.store(p_out + o_row, (b_unit * b_weight).to(dtype), mask=m_n)


@triton.jit(do_not_specialize=["number"], do_not_specialize_on_alignment=["p_slot"])
def rotate_and_store_kernel(
    p_query, p_key, p_value, p_qkv, p_cos, p_sin, p_slot, p_query_norm, p_key_norm, eps, number,
    s_xb, s_cb, s_kb, s_kl, s_kg, s_vb, s_vl, s_vg, s_sb, s_sg,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Run one program per head: H queries, then G keys, then G values."""
    dtype = p_query.dtype.element_ty
    h = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    p_x = p_qkv + b * s_xb + h * D
    b_x = tl.load(p_x + o_d, mask=m_d, other=0.0)
    if h < H + G:
        # `sin` comes with its sign: minus in the first half, where the partner is the second
        o_pair = (o_d + D // 2) % D
        b_pair = tl.load(p_x + o_pair, mask=m_d, other=0.0).to(tl.float32)
        if p_query_norm is not None:
            p_norm = p_query_norm if h < H else p_key_norm
            b_wide = b_x.to(tl.float32)
            scale = tl.rsqrt(tl.sum(b_wide * b_wide, axis=0) / D + eps)
            b_x = (b_wide * scale).to(dtype).to(tl.float32) * tl.load(p_norm + o_d, mask=m_d, other=0.0).to(tl.float32)
            b_x = b_x.to(dtype)
            b_pair = (b_pair * scale).to(dtype).to(tl.float32) * tl.load(p_norm + o_pair, mask=m_d, other=0.0).to(tl.float32)
            b_pair = b_pair.to(dtype).to(tl.float32)
        b_cos = tl.load(p_cos + b * s_cb + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_sin = tl.load(p_sin + b * s_cb + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_x = ((b_x.to(tl.float32) * b_cos).to(dtype).to(tl.float32) + (b_pair * b_sin).to(dtype).to(tl.float32)).to(dtype)
    if h < H:
        tl.store(p_query + (b * H + h) * D + o_d, b_x, mask=m_d)
    else:
        g = (h - H) % G
        slot = number.to(tl.int64)
        if p_slot is not None:
            slot += tl.load(p_slot + b * s_sb + g * s_sg).to(tl.int64)
        if h < H + G:
            tl.store(p_key + b * s_kb + slot * s_kl + g * s_kg + o_d, b_x, mask=m_d)
        else:
            tl.store(p_value + b * s_vb + slot * s_vl + g * s_vg + o_d, b_x, mask=m_d)


@triton.jit
def silu_product_kernel(p_out, p_gate_up, s_b, N: tl.constexpr, BLOCK: tl.constexpr):
    """Run one program per BLOCK columns of a row."""
    dtype = p_out.dtype.element_ty
    b = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < N
    b_gate = tl.load(p_gate_up + b * s_b + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_up = tl.load(p_gate_up + b * s_b + N + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_silu = (b_gate / (1.0 + tl.exp(-b_gate))).to(dtype).to(tl.float32)
    tl.store(p_out + b * N + o_n, (b_silu * b_up).to(dtype), mask=m_n)
