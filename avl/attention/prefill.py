"""Attention of the prompt: exact, with the scores beside it that the policy asks for."""

from __future__ import annotations

import torch

from avl.attention.exact import attend_exactly
from avl.attention.scores import accumulated_columns, accumulated_scores, last_query_scores
from avl.cache.cache import AdaptiveCache
from avl.cache.layer import AdaptiveLayer


def attend_prompt(layer: AdaptiveLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Exact attention over the whole prompt by SDPA; beside it the scores the policy asks for; then the layer keeps what it stores.

    Args:
        query: ``[B, H, L, D]``; key, value: ``[B, G, L, D]``, after RoPE.

    Returns:
        ``[B, L, H, D]``.
    """
    cache, prompt = layer.owner, layer.owner.prompt
    mask = prompt.mask(query.device)
    kinds = {group.accumulate for group in cache.groups}
    out, lse = attend_exactly(query, key, value, mask, scale, with_lse=kinds not in ({None}, {"kv"}))
    valid = prompt.valid(query.device)
    image_scores = accumulated = None
    ranks = _ranks_image(cache, layer.number)
    if ranks or cache.recorder is not None:
        scores = last_query_scores(query, key, scale, valid)
        for columns in prompt.columns:
            columns.to(query.device)
        if cache.recorder is not None:
            positions = prompt.positions(query.device)
            cache.recorder.note(layer.number, scores[0, -len(positions) :], positions)
    if ranks:
        image_scores = [scores[columns.rows].gather(1, columns.image) for columns in prompt.columns]
    prompt.scores = image_scores
    if kinds != {None}:
        accumulated = []
        per_head = "kv" in kinds
        whole = accumulated_scores(query, key, scale, valid) if per_head else None
        for group, columns in zip(cache.groups, prompt.columns, strict=True):
            columns.to(query.device)
            if whole is not None:
                accumulated.append(whole[columns.rows].gather(2, columns.window[:, None].expand(-1, whole.shape[1], -1)))
                continue
            states = (None if held is None else cache.rows_of(held, group) for held in (lse, mask, valid))
            rows = cache.rows_of(query, group), cache.rows_of(key, group)
            accumulated.append(accumulated_columns(*rows, columns.window, scale, *states)[:, None])
    layer.commit(key, value, image_scores, accumulated)
    return out.transpose(1, 2).contiguous()


def _ranks_image(cache: AdaptiveCache, layer: int) -> bool:
    """Whether anything is decided by this layer's scores of the image tokens; scoring what nobody asks for would cost time for nothing."""
    policy = cache.policy
    for group in cache.groups:
        shape = cache.shape(group.row)
        held = policy.present(layer, shape)
        if policy.present(layer + 1, shape) < held:
            return True
        if policy.pins_image:
            stored = policy.store(layer, shape).image
            if stored < held or policy.select(layer, shape) is not None:
                return True
    return False
