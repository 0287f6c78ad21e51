"""Attention of the prompt: exact, plus the scores that the policy needs."""

from __future__ import annotations

import torch

from avl.attention.exact import attend_exactly
from avl.attention.scores import accumulated_columns, accumulated_scores, last_query_scores
from avl.cache.cache import AdaptiveCache
from avl.cache.layer import AdaptiveLayer

MANY_PASSES = 4
"""Passes of attention, each of as many columns as a head is wide, beyond which all columns at once take less time (without image, say)."""


def attend_prompt(layer: AdaptiveLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend exactly over the whole prompt by SDPA, compute the scores that the policy needs, and store the tokens that it keeps.

    Args:
        layer: where tokens are stored.
        query: ``[B, H, L, D]`` after RoPE.
        key: ``[B, G, L, D]`` after RoPE.
        value: ``[B, G, L, D]``.
        scale: factor of the logits.

    Returns:
        The output ``[B, L, H, D]``.
    """
    cache, prefill = layer.owner, layer.owner.prefill
    windows = [bucket.windows[layer.number] for bucket in cache.buckets]
    wanted = [window.observation if window.ranked else None for window in windows]
    mask, valid = prefill.mask(query.device), prefill.valid(query.device)
    by_column = [observation is not None and observation.heads == "shared" and observation.queries is None for observation in wanted]
    out, lse = attend_exactly(query, key, value, mask, scale, with_lse=any(by_column))
    image_scores = None
    ranks = _ranks_image(cache, layer.number)
    for columns in prefill.columns:
        columns.to(query.device)
    if ranks or cache.recorder is not None:
        scores = last_query_scores(query, key, scale, valid)
        if cache.recorder is not None:
            positions = prefill.positions(query.device)
            cache.recorder.note(layer.number, scores[0, -len(positions) :], positions)
    if ranks:
        pairs = zip(cache.buckets, prefill.columns, strict=True)
        image_scores = [cache.rows_of(scores, bucket).gather(1, columns.image) for bucket, columns in pairs]
    prefill.scores = image_scores
    window_scores: list[torch.Tensor | None] = []
    whole: dict[int | None, torch.Tensor] = {}  # observing queries -> [B, G, L]
    for bucket, columns, observation, few in zip(cache.buckets, prefill.columns, wanted, by_column, strict=True):
        if observation is None:
            window_scores.append(None)
            continue
        if few and (lse is not None or columns.window.shape[1] <= MANY_PASSES * key.shape[3]):
            states = (None if held is None else cache.rows_of(held, bucket) for held in (lse, mask, valid))
            found = accumulated_columns(cache.rows_of(query, bucket), cache.rows_of(key, bucket), columns.window, scale, *states)
            window_scores.append(found[:, None])
            continue
        if observation.queries not in whole:
            whole[observation.queries] = accumulated_scores(
                query, key, scale, valid, observation.queries, mask if prefill.two_way else None
            )
        here = cache.rows_of(whole[observation.queries], bucket)
        if observation.heads == "shared":
            here = here.mean(dim=1, keepdim=True)
        window_scores.append(here.gather(2, columns.window[:, None].expand(-1, here.shape[1], -1)))
    layer.commit_prompt(key, value, image_scores, window_scores)
    return out.transpose(1, 2).contiguous()


def _ranks_image(cache: AdaptiveCache, layer: int) -> bool:
    """Return whether this layer's scores of the image tokens decide anything; if not, computing them would waste time."""
    policy = cache.policy
    for bucket in cache.buckets:
        held = policy.present(layer, bucket.shape)
        if policy.present(layer + 1, bucket.shape) < held:
            return True
        if policy.pins_image and (policy.store(layer, bucket.shape).image < held or policy.select(layer, bucket.shape) is not None):
            return True
    return False
