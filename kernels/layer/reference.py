"""What a step begins with, and the work between a decoder layer's products, in plain torch: the specification of triton.py, and what runs
on a CPU.

Each function computes what the modules of Llama, Mistral and Qwen compute in transformers, and rounds 16-bit dtypes where they do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from avl.kernels.layer.types import HeadNorms


def begin_step(tokens: Tensor, positions: Tensor, embedding: Tensor, rotary: Tensor, hidden: Tensor, rotation: Tensor) -> None:
    """Look up the embedding of each row's token and the rotation of its position, and advance the positions.

    Args:
        tokens: integers [B], each a row of `embedding`; another one raises, or gives NaN.
        positions: int64 [B, 1], each a row of `rotary`; increased by one.
        embedding: [V, N], rows contiguous.
        rotary: [P, 2, D], contiguous: cosines and sines of every position.
        hidden: [B, N], contiguous; becomes the tokens' embeddings.
        rotation: [B, 2, D], contiguous; becomes the positions' cosines and sines.
    """
    torch.index_select(embedding, 0, tokens, out=hidden)
    torch.index_select(rotary, 0, positions[:, 0], out=rotation)
    positions += 1


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add `delta` to `residual` in place and return the sum's RMS norm.

    Args:
        residual: [B, N], contiguous; changed where `delta` is given.
        delta: [B, N], contiguous, or None.
        weight: [N].
        eps: added to the mean square.

    Returns:
        [B, N]: `residual / sqrt(mean(residual ** 2) + eps) * weight`.
    """
    if delta is not None:
        residual.add_(delta)
    return _rms_norm(residual, weight, eps)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype.itemsize >= 4:
        return F.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


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
    """Rotate queries and keys (RoPE), put key and value of the new token into their slot, and return the queries.

    Args:
        qkv: [B, (H + 2 G) D]: queries, keys, values, head by head.
        cos: [B, D], cosine at the rows' positions.
        sin: [B, D], sine at the rows' positions, negated in the first half.
        key: [B, slots, G, D], the storage of keys.
        value: [B, slots, G, D], the storage of values.
        slot: of the new token, counted from `first`: a number, or int64 [B, 1 or G].
        first: slot from which `slot` counts.
        norms: of queries and keys before they are rotated; None for none.

    Returns:
        [B, H, D].
    """
    rows, _, kv_heads, size = key.shape
    heads = qkv.shape[1] // size - 2 * kv_heads
    states = qkv.view(rows, heads + 2 * kv_heads, size)
    rotating = states[:, : heads + kv_heads]
    if norms is not None:
        parts = rotating.split([heads, kv_heads], dim=1)
        rotating = torch.cat([_rms_norm(part, weight, norms.eps) for part, weight in zip(parts, norms[:2], strict=True)], dim=1)
    rotated = rotating * cos[:, None] + rotating.roll(size // 2, -1) * sin[:, None]
    new_key, new_value = rotated[:, heads:], states[:, heads + kv_heads :]
    if isinstance(slot, Tensor) and slot.numel() == 1 and slot.device.type == "cpu":
        slot = int(slot)  # on a GPU this would wait for the device
    if isinstance(slot, int):
        key[:, first + slot] = new_key
        value[:, first + slot] = new_value
    else:
        row, place = torch.arange(rows, device=key.device), slot + first
        where = (row, place[:, 0]) if slot.shape[1] == 1 else (row[:, None], place, torch.arange(kv_heads, device=key.device))
        key[where] = new_key
        value[where] = new_value
    return rotated[:, :heads]


def silu_product(gate_up: Tensor) -> Tensor:
    """Return SiLU of the first half of every row times its second half, [B, N].

    Args:
        gate_up: [B, 2 N]; may be overwritten.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate, inplace=True).mul_(up)
