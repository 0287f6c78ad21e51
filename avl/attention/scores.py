"""Scores from queries and keys: attention averaged over the query heads (Eq. 1), without building the [L, L] matrix.

Shapes: B rows, H query heads, G key-value heads, L keys, D head size.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

_CHUNK_ELEMENTS = 1 << 22  # logits of one query chunk: 16 MiB of float32


def _weights(query: torch.Tensor, key: torch.Tensor, scale: float, visible: torch.Tensor | None) -> torch.Tensor:
    """Return the attention weights ``[B, G, H / G, Q, L]``, float32 or float64, of queries ``[B, H, Q, D]`` over keys ``[B, G, L, D]``."""
    b, h, q, d = query.shape
    g = key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)  # low-precision logits tie, and ties are ranked by position
    grouped = (query.to(dtype) * scale).reshape(b, g, h // g * q, d)
    logits = (grouped @ key.to(dtype).transpose(2, 3)).view(b, g, h // g, q, key.shape[2])
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    return logits.softmax(dim=-1)


@torch.no_grad()
def last_query_scores(query: torch.Tensor, key: torch.Tensor, scale: float, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Return the scores ``[B, L]`` that every key gets from the last prompt token, averaged over heads (Eq. 1).

    Args:
        query: ``[B, H, Q, D]`` after RoPE, of which the last query is used.
        key: ``[B, G, L, D]`` after RoPE.
        scale: factor of the logits.
        valid: bool ``[B, L]``, False for padding, whose score is 0.
    """
    visible = None if valid is None else valid[:, None, None, None, :]
    return _weights(query[:, :, -1:], key, scale, visible).mean(dim=(1, 2)).squeeze(1)


@torch.no_grad()
def accumulated_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    scale: float,
    valid: torch.Tensor | None = None,
    queries: int | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``A[g, j]``, the sum of ``score_i(j)`` over the queries i that see j, for every prompt position j; head by head.

    Args:
        query: ``[B, H, L, D]`` after RoPE.
        key: ``[B, G, L, D]`` after RoPE.
        scale: factor of the logits.
        valid: bool ``[B, L]``, False for padding, which neither gives nor gets scores.
        queries: number of last queries to sum over (SnapKV), None for all (H2O).
        mask: bool ``[B or 1, 1, L, L]``, True where a query sees a key, padding included; None where every query sees what precedes it.

    Returns:
        ``[B, G, L]``. Queries are processed in chunks, so memory grows with L, not L squared.
    """
    b, h, length, _ = query.shape
    g = key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    key = key.to(dtype)
    total = torch.zeros(b, g, length, dtype=dtype, device=query.device)
    chunk = max(1, min(_CHUNK_ELEMENTS // (b * h * length), length // 4))
    positions = torch.arange(length, device=query.device)
    for start in range(0 if queries is None else max(0, length - queries), length, chunk):
        stop = min(start + chunk, length)
        seen = stop if mask is None else length
        visible = positions[:seen] <= positions[start:stop, None]
        if mask is not None:
            visible = mask[:, :, None, start:stop]
        elif valid is not None:
            # a padded query sees itself, so that its weights stay finite; the sum below leaves it out
            own = positions[:seen] == positions[start:stop, None]
            visible = (visible & valid[:, None, :seen] | own)[:, None, None]
        weights = _weights(query[:, :, start:stop], key[:, :, :seen], scale, visible).mean(dim=2)
        if valid is not None:
            weights = weights * valid[:, None, start:stop, None]
        total[:, :, :seen] += weights.sum(dim=2)
    return total


@torch.no_grad()
def accumulated_columns(
    query: torch.Tensor,
    key: torch.Tensor,
    columns: torch.Tensor,
    scale: float,
    lse: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return :func:`accumulated_scores` of a few keys, averaged over all heads (paper, Adaptive Text Attention).

    If the log-sum-exp is known, this is a product with those keys. If not, it is another pass of torch's attention whose values are unit
    vectors: the value of the i-th key in ``columns`` is the i-th unit vector, so that the output holds the weights, rounded to the dtype of
    ``query`` (their sums are not).

    Args:
        query: ``[B, H, L, D]`` after RoPE.
        key: ``[B, G, L, D]`` after RoPE.
        columns: ``[B, W]``, distinct keys of each row.
        scale: factor of the logits.
        lse: ``[B, H, L]`` of every query under plain causal attention, or None.
        mask: bool ``[B, 1, L, L]`` for SDPA, None for plain causal attention.
        valid: bool ``[B, L]``, False for padding, whose queries are left out.

    Returns:
        The scores ``[B, W]``.
    """
    if lse is not None:
        return _columns_by_lse(query, key, columns, scale, lse)
    b, g, length, d = key.shape
    times = query.shape[1] // g
    if mask is not None and times > 1:
        key = key.repeat_interleave(times, dim=1)  # no backend supports grouped heads with a mask, see avl/attention/exact.py
    rows = torch.arange(b, device=key.device)[:, None]
    sums = []
    for some in columns.split(d, dim=1):
        units = key.new_zeros(b, 1, length, d)
        units[rows, 0, some, torch.arange(some.shape[1], device=key.device)] = 1
        value = units.expand(key.shape)
        weights = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=times > 1 and mask is None
        )[..., : some.shape[1]]
        if valid is not None:
            weights = weights.masked_fill(~valid[:, None, :, None], 0)
        sums.append(weights.sum(dim=2, dtype=torch.promote_types(query.dtype, torch.float32)).mean(dim=1))
    return torch.cat(sums, dim=1)


def _columns_by_lse(query: torch.Tensor, key: torch.Tensor, columns: torch.Tensor, scale: float, lse: torch.Tensor) -> torch.Tensor:
    b, h, length, d = query.shape
    g = key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys = key.gather(2, columns[:, None, :, None].expand(-1, g, -1, d)).to(dtype)
    positions = torch.arange(length, device=query.device)
    total = torch.zeros(b, columns.shape[1], dtype=dtype, device=query.device)
    chunk = max(1, _CHUNK_ELEMENTS // (b * h * max(d, columns.shape[1])))
    for start in range(0, length, chunk):
        part = slice(start, min(start + chunk, length))
        grouped = (query[:, :, part].to(dtype) * scale).reshape(b, g, -1, d)
        logits = (grouped @ keys.transpose(2, 3)).view(b, h, -1, columns.shape[1])
        hidden = positions[part, None] < columns[:, None, None]  # [B, 1, Q, W]
        total += (logits - lse[:, :, part, None].to(dtype)).masked_fill(hidden, -torch.inf).exp_().sum(dim=2).mean(dim=1)
    return total
