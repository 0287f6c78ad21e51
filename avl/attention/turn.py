"""Attention of a later turn's new tokens: all that is stored and, causally, one another; plus the scores that the policy needs."""

from __future__ import annotations

import torch

from avl.attention.exact import attend_exactly
from avl.attention.scores import turn_scores
from avl.cache.cache import AdaptiveCache
from avl.cache.inspect import positions_held
from avl.cache.layer import AdaptiveLayer
from avl.cache.prefill_state import PrefillState, PromptColumns
from avl.cache.turns import chooses_new, commit_turn, held_by


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
    turn, prefill = cache.turn, cache.prefill
    assert turn is not None
    out, scores = torch.zeros_like(query), []
    parts = turn.caches(cache)
    ranks = any(chooses_new(part.policy, part.buckets[0], layer.number) for part in parts)
    for row, (part, columns) in enumerate(zip(parts, prefill.columns, strict=True)):
        columns.to(query.device)
        q, k, v = (states[row : row + 1, :, -columns.length :] for states in (query, key, value))
        found, ranked = _attend_row(part, layer.number, prefill, columns, q, k, v, scale, ranks)
        out[row : row + 1, :, -columns.length :] = found
        if ranked is not None:
            scores.append(ranked)
    prefill.scores = scores if ranks else None
    return out.transpose(1, 2).contiguous()


def _attend_row(
    cache: AdaptiveCache,
    number: int,
    prefill: PrefillState,
    columns: PromptColumns,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    ranks: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the output ``[1, H, Q, D]`` of one row's new tokens, and the scores ``[1, M]`` of its new image tokens if they are ranked."""
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
    if prefill.two_way:
        given = prefill.mask(query.device)
        assert given is not None
        visible[:, total - new :] = given[min(columns.rows[0], len(given) - 1), 0, -new:, -new:]
    out, _ = attend_exactly(query, keys.to(query.dtype), values.to(query.dtype), visible[None, None], scale)
    selects = policy.select(number, bucket.shape) is not None
    observation = window.observation if window.accumulates or _chooses(layer, places.token_idx, columns) else None
    last, gained = turn_scores(
        query, keys, scale, visible, last=selects or ranks or cache.recorder is not None, first=None if observation is None else image,
        by_group=observation is not None and observation.heads == "kv", queries=None if observation is None else observation.queries,
    )  # fmt: skip
    if cache.recorder is not None and last is not None:
        fed = bucket.row.length - cache.turn.new[0] + prefill.positions(query.device)
        cache.recorder.note(number, last[0], positions_held(cache, places.image_idx[0], places.token_idx[0], fed).expand(last.shape[1], -1))
    scores = None if last is None or not (selects or ranks) else last.mean(dim=1)
    commit_turn(layer, places, columns, keys, values, scores, gained)
    cache.note_turn(layer, total, max(peak, cache.allocated_bytes + keys.nbytes + values.nbytes))
    if not ranks:
        return out, None
    assert scores is not None
    return out, scores.gather(1, total - new + columns.image - columns.pad)


def _chooses(layer: AdaptiveLayer, token_idx: torch.Tensor, columns: PromptColumns) -> bool:
    """Return whether some of the window's tokens leave in this pass, held ones ``token_idx [1, 1 or G, n]`` or new ones."""
    window = layer.owner.buckets[0].windows[layer.number]
    return window.start < token_idx.shape[2] + columns.window.shape[1]
