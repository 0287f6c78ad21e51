"""Attention of a decode step: one query per row over the slots that the policy reads."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from avl.cache.cache import AdaptiveCache
from avl.cache.layer import AdaptiveLayer
from avl.cache.slots import Group, Part
from avl.kernels import core_attention


def attend_step(layer: AdaptiveLayer, query: torch.Tensor, scale: float) -> torch.Tensor:
    """One decode step's attention over what the policy reads: all stored text and core, or all stored (paper, Fig. 6).

    Args:
        query: ``[B, H, 1, D]`` after RoPE; its key and value are stored already.

    Returns:
        ``[B, 1, H, D]``.
    """
    cache = layer.owner
    if len(cache.groups) == 1:
        return _attend_part(cache, layer.number, cache.groups[0], layer.parts[0], query, scale).transpose(1, 2)
    out = torch.empty_like(query)
    for group, part in zip(cache.groups, layer.parts, strict=True):
        out[group.rows] = _attend_part(cache, layer.number, group, part, query[group.rows], scale)
    return out.transpose(1, 2)


def _attend_part(
    cache: AdaptiveCache, number: int, group: Group, part: Part, query: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention ``[b, H, 1, D]`` of one group in layer ``number``; its scores go to the bank."""
    bank = part.bank
    assert bank is not None
    keys, values = part.keys.transpose(1, 2), part.values.transpose(1, 2)
    recorder = cache.recorder if 0 in group.rows else None
    if part.index is not None and not cache.update_step:
        core = part.index.shape[1] - group.capacity
        columns, length = bank.extent(core)
        sums = None if part.accumulated is None else part.accumulated[:, 0, : columns - core]
        index: torch.Tensor | None = part.index[:, :columns]
        if bank.consecutive:
            first = part.image - core
            keys, values, index = keys[:, :, first : first + columns], values[:, :, first : first + columns], None
        out, scores = core_attention(
            query, keys, values, index, length, scale=scale, scores=recorder is not None, sums=sums, validate=False
        )
        if recorder is not None and scores is not None:
            recorder.note(number, scores[0], cache.positions_read(part, part.index[0, :core]))
        return out
    columns, length = bank.extent(part.image)
    keys, values = keys[:, :, :columns], values[:, :, :columns]
    asked = part.index is not None or recorder is not None
    sums = None if part.accumulated is None else part.accumulated[..., : columns - part.image]
    if not asked and sums is None and length is None:
        return scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=query.shape[1] != keys.shape[1])
    per_head = group.accumulate == "kv"
    if sums is not None and not per_head:
        sums = sums[:, 0]
    out, scores = core_attention(
        query, keys, values, None, length, scale=scale, scores=asked, group_scores=per_head, sums=sums, validate=False
    )
    if scores is None:
        return out
    if recorder is not None:
        recorder.note(number, scores[0], cache.positions_read(part, None))
    if bank.image_scores is not None:
        bank.image_scores[part.place] = scores[..., : part.image]
    return out
