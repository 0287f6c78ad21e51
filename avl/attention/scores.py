"""Scores from queries and keys: attention averaged over the query heads (Eq. 1), without building the [L, L] matrix.

Shapes: B rows, H query heads, G key-value heads, L keys, D head size.
"""

from __future__ import annotations

import functools

import torch
from torch.nn.functional import scaled_dot_product_attention

from avl.attention.exact import repeats
from avl.kernels import core_attention

_CHUNK_ELEMENTS = 1 << 22
"""Logits of one query chunk: 16 MiB of float32, which a CPU's cache holds."""

_GPU_CHUNK_ELEMENTS = 1 << 26
"""The same on a GPU, 256 MiB: every chunk costs launches, and a product of few queries leaves it idle."""


def _on_gpu(states: torch.Tensor) -> bool:
    return states.device.type == "cuda"


def _chunk_elements(states: torch.Tensor) -> int:
    return _GPU_CHUNK_ELEMENTS if _on_gpu(states) else _CHUNK_ELEMENTS


@functools.cache
def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a product of 16-bit matrices can be had in float32 here, without copies of them in float32; tried once."""
    if device.type != "cuda" or dtype.itemsize > 2:
        return False
    one = torch.zeros(1, 16, 16, device=device, dtype=dtype)
    try:
        torch.bmm(one, one, out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # another build
        return False
    return True


def _widened(states: torch.Tensor) -> torch.Tensor:
    """Return states as :func:`_logits` takes them best: as they are where a product widens them, else in float32 or float64."""
    if widens(states.device, states.dtype):
        return states.contiguous()
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _logits(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the logits ``[B, G, H / G, Q, L]`` of queries ``[B, H, Q, D]`` over keys ``[B, G, L, D]`` from :func:`_widened`.

    In float32 or float64: low-precision logits tie, and ties are ranked by position.
    """
    b, h, q, d = query.shape
    g, length = key.shape[1:3]
    if key.dtype.itemsize == 2:
        grouped, keys = query.reshape(b * g, h // g * q, d), key.reshape(b * g, length, d)
        logits = torch.bmm(grouped, keys.transpose(1, 2), out_dtype=torch.float32).mul_(scale)
    else:
        logits = (query.to(key.dtype) * scale).reshape(b, g, h // g * q, d) @ key.transpose(2, 3)
    return logits.view(b, g, h // g, q, length)


def _weights(query: torch.Tensor, key: torch.Tensor, scale: float, visible: torch.Tensor | None) -> torch.Tensor:
    """Return the attention weights ``[B, G, H / G, Q, L]`` of queries ``[B, H, Q, D]`` over keys ``[B, G, L, D]`` (see :func:`_logits`)."""
    logits = _logits(query, key, scale)
    if visible is not None:
        logits = logits.masked_fill_(~visible, -torch.inf)
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
    if _on_gpu(key):
        return _last_by_kernel(query[:, :, -1], key, scale, valid)
    visible = None if valid is None else valid[:, None, None, None, :]
    return _weights(query[:, :, -1:], _widened(key), scale, visible).mean(dim=(1, 2)).squeeze(1)


def _last_by_kernel(query: torch.Tensor, key: torch.Tensor, scale: float, valid: torch.Tensor | None) -> torch.Tensor:
    """Return the scores ``[B, L]`` of one query ``[B, H, D]`` by the decode steps' kernel, which reads the keys once, in place.

    Its output is not wanted, so the keys serve as values. Padding is on the left and the kernel's on the right: the keys are read in turn
    from the first real one on.
    """
    if valid is None:
        scores = core_attention(query, key, key, None, scale=scale, scores=True, validate=False)[1]
        assert scores is not None
        return scores
    real = valid.sum(dim=1)
    width = valid.shape[1]
    index = (torch.arange(width, device=key.device) + (width - real)[:, None]) % width
    scores = core_attention(query, key, key, index, real, scale=scale, scores=True, validate=False)[1]
    assert scores is not None
    return torch.zeros_like(scores).scatter_(1, index, scores)


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
    key = _widened(key)
    total = torch.zeros(b, g, length, dtype=torch.promote_types(query.dtype, torch.float32), device=query.device)
    chunk = max(1, min(_chunk_elements(query) // (b * h * length), length // 4))
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
    b, _, length, d = key.shape
    times = repeats(query, key, key, mask)
    if times > 1:
        key = key.repeat_interleave(times, dim=1)
    grouped = query.shape[1] != key.shape[1]
    sums = []
    for some in columns.split(d, dim=1):
        units = key.new_zeros(b, 1, length, d)
        units.view(b, -1).scatter_(1, some * d + torch.arange(some.shape[1], device=key.device), 1)
        value = units.expand(key.shape)
        weights = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)[
            ..., : some.shape[1]
        ]
        if valid is not None:
            weights = weights.masked_fill(~valid[:, None, :, None], 0)
        sums.append(weights.sum(dim=2, dtype=torch.promote_types(query.dtype, torch.float32)).mean(dim=1))
    return torch.cat(sums, dim=1)


def _columns_by_lse(query: torch.Tensor, key: torch.Tensor, columns: torch.Tensor, scale: float, lse: torch.Tensor) -> torch.Tensor:
    b, h, length, d = query.shape
    g = key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys = _widened(key.gather(2, columns[:, None, :, None].expand(-1, g, -1, d)))
    positions = torch.arange(length, device=query.device)
    total = torch.zeros(b, columns.shape[1], dtype=dtype, device=query.device)
    chunk = max(1, _chunk_elements(query) // (b * h * max(d, columns.shape[1])))
    for start in range(0, length, chunk):
        part = slice(start, min(start + chunk, length))
        logits = _logits(query[:, :, part], keys, scale).view(b, h, -1, columns.shape[1])
        hidden = positions[part, None] < columns[:, None, None]  # [B, 1, Q, W]
        total += logits.sub_(lse[:, :, part, None].to(dtype)).masked_fill_(hidden, -torch.inf).exp_().sum(dim=2).mean(dim=1)
    return total


@torch.no_grad()
def turn_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    scale: float,
    visible: torch.Tensor,
    *,
    last: bool,
    first: int | None,
    by_group: bool,
    queries: int | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the scores that the new tokens of a later turn give, which are the last keys.

    Args:
        query: ``[1, H, Q, D]`` after RoPE.
        key: ``[1, G, L, D]`` after RoPE, of all that is stored and the new tokens.
        scale: factor of the logits.
        visible: bool ``[Q, L]``, who sees whom.
        last: whether the last query's scores are wanted.
        first: the first key whose accumulated scores are wanted, None for none.
        by_group: whether they are means per key-value head rather than over all heads.
        queries: number of last queries to accumulate over, None for all.

    Returns:
        The last query's scores ``[1, G, L]``, and the sums ``[1, 1 or G, L - first]`` over the queries; None for what is not wanted.
    """
    if not last and first is None:
        return None, None
    heads, new, length = query.shape[1], query.shape[2], key.shape[2]
    key = _widened(key)
    total, newest = None, None
    chunk = max(1, _chunk_elements(query) // (heads * length))
    asking = new if queries is None else min(new, queries)
    for start in range(new - (1 if first is None else asking), new, chunk):
        stop = min(start + chunk, new)
        weights = _weights(query[:, :, start:stop], key, scale, visible[start:stop]).mean(dim=2)  # [1, G, q, L]
        newest = weights[:, :, -1]
        if first is not None:
            some = weights[..., first:].sum(dim=2)
            total = some if total is None else total + some
    if total is not None and not by_group:
        total = total.mean(dim=1, keepdim=True)
    return newest if last else None, total
