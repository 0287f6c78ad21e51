"""Attention of a later turn's new tokens: all that is stored and, causally, one another; plus the scores that the policy needs."""

from __future__ import annotations

import torch

from avl.attention.exact import attend_exactly
from avl.attention.scores import turn_scores
from avl.cache.cache import AdaptiveCache
from avl.cache.inspect import positions_held
from avl.cache.layer import AdaptiveLayer
from avl.cache.turns import commit_turn, held_by


def attend_turn(layer: AdaptiveLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend with the new tokens of every row, and lay the layer out anew with them.

    Args:
        layer: what is stored.
        query: ``[B, H, Q, D]`` after RoPE; a row with fewer new tokens has them last.
        key: ``[B, G, Q, D]`` after RoPE.
        value: ``[B, G, Q, D]``.
        scale: factor of the logits.

    Returns:
        The output ``[B, Q, H, D]``, 0 for columns that are no new tokens.
    """
    cache = layer.owner
    turn = cache.turn
    assert turn is not None
    out = torch.zeros_like(query)
    for row, (part, new) in enumerate(zip(turn.caches(cache), turn.new, strict=True)):
        q, k, v = (states[row : row + 1, :, -new:] for states in (query, key, value))
        out[row : row + 1, :, -new:] = _attend_row(part, layer.number, q, k, v, scale)
    return out.transpose(1, 2).contiguous()


def _attend_row(
    cache: AdaptiveCache, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return the output ``[1, H, Q, D]`` of one row's new tokens."""
    layer, (bucket,) = cache.layers[number], cache.buckets
    assert cache.turn is not None
    before = cache.allocated_bytes
    held, new = held_by(layer, cache.turn.pasts[0]), query.shape[2]
    others, places = cache.allocated_bytes, held.places
    keys, values = torch.cat([held.keys, key.to(held.keys.dtype)], dim=2), torch.cat([held.values, value.to(held.values.dtype)], dim=2)
    both = held.nbytes + keys.nbytes + values.nbytes
    peak = max(before + held.nbytes, others + both)
    del held
    window, policy = bucket.windows[number], cache.policy
    image, total = places.image_idx.shape[1], keys.shape[2]
    visible = torch.arange(total, device=query.device) <= torch.arange(total - new, total, device=query.device)[:, None]
    out, _ = attend_exactly(query, keys.to(query.dtype), values.to(query.dtype), visible[None, None], scale)
    selects = policy.select(number, bucket.shape) is not None
    observation = window.observation if window.accumulates else None
    last, gained = turn_scores(
        query, keys, scale, last=selects or cache.recorder is not None, first=None if observation is None else image,
        by_group=observation is not None and observation.heads == "kv",
    )  # fmt: skip
    if cache.recorder is not None and last is not None:
        cache.recorder.note(number, last[0], positions_held(cache, places.image_idx[0], places.token_idx[0], new).expand(last.shape[1], -1))
    scores = None if last is None or not selects else last.mean(dim=1)[:, :image]
    commit_turn(layer, places, keys, values, scores, gained)
    cache.note_turn(layer, total, max(peak, cache.allocated_bytes + keys.nbytes + values.nbytes))
    return out
