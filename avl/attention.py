"""The attention function registered with transformers: the model's own without our cache, adaptive attention with it.

transformers hands an attention function the keys that ``cache.update`` returned. Ours carry a tag that leads to the layer's entries; keys
without a tag go to the implementation that the model had before, so an attached model behaves as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from avl.bank import Group, Part
from avl.cache import AdaptiveCache
from avl.exact import attend_exactly
from avl.kernels import core_attention, resolve_impl
from avl.layer import AdaptiveLayer
from avl.scoring import accumulated_columns, accumulated_scores, last_query_scores

PREFIX = "avl_"


def register(before: str) -> str:
    """Make adaptive attention known to transformers on top of the implementation ``before``; returns its name. Idempotent."""
    name = PREFIX + before
    if name not in AttentionInterface._global_mapping:
        attend: Any = partial(_dispatch, before)
        AttentionInterface.register(name, attend)
        if before in AttentionMaskInterface._global_mapping:
            mask: Any = AttentionMaskInterface._global_mapping[before]
            AttentionMaskInterface.register(name, mask)
    return name


def decode_implementation(device: torch.device, dtype: torch.dtype | None = None, head_size: int | None = None) -> str:
    """Name of the attention that decode steps run on ``device``: "triton" or "reference"."""
    return resolve_impl(device, dtype=dtype, head_size=head_size)


def _dispatch(
    before: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    layer: AdaptiveLayer | None = getattr(key, "avl_layer", None)
    if layer is None:
        return _original(before, module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend_prompt(layer, query, key, value, scale) if layer.owner.t == 0 else attend_step(layer, query, scale)
    layer.attended()
    return out, None


def _original(before: str, module: torch.nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    # "eager" is no entry of the interface: every modeling file has its own
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return AttentionInterface().get_interface(before, eager)


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
        row = group.row
        held = policy.image_counts(layer, row.n_image)
        if policy.image_counts(layer + 1, row.n_image) < held:
            return True
        if policy.pins_image:
            stored = policy.store(layer, row.n_image, row.n_text, cache.max_new_tokens).image
            if stored < held or policy.select(layer, row.n_image) is not None:
                return True
    return False


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
