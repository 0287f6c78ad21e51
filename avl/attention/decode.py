"""Attention of a decode step: one query per row over the slots that the policy reads."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from avl.cache.inspect import positions_read
from avl.cache.layer import AdaptiveLayer
from avl.cache.slots import LayerKV, StepView
from avl.kernels import core_attention


def attend_step(layer: AdaptiveLayer, query: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend to the tokens that the policy reads: core and stored text, or everything stored (paper, Fig. 6).

    Args:
        layer: the stored tokens, including the step's own.
        query: ``[B, H, 1, D]`` after RoPE.
        scale: factor of the logits.

    Returns:
        The output ``[B, 1, H, D]``.
    """
    cache = layer.owner
    recorded = cache.recorder is not None
    if len(cache.buckets) == 1:
        kv = layer.kvs[0]
        view = kv.view(cache.update_step)
        out = _record(layer, kv, view, query, scale) if recorded else _attend(view, query, scale)[0]
        return out.transpose(1, 2)
    out = torch.empty_like(query)
    for bucket, kv in zip(cache.buckets, layer.kvs, strict=True):
        view, rows = kv.view(cache.update_step), list(bucket.rows)
        attend = recorded and 0 in bucket.rows
        out[rows] = _record(layer, kv, view, query[rows], scale) if attend else _attend(view, query[rows], scale)[0]
    return out.transpose(1, 2)


def _attend(view: StepView, query: torch.Tensor, scale: float, every_score: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return attention ``[b, H, 1, D]`` over a view and the scores computed, all of them if asked; write scores to the view's tensors."""
    keys, values = view.keys, view.values
    if view.plain and not every_score:
        return scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=query.shape[1] != keys.shape[1]), None
    wanted = view.image_scores
    columns: bool | tuple[int, int] = every_score
    if wanted is not None and not every_score:
        # sums also need the scores of the last columns; otherwise those of the image tokens suffice
        columns = True if view.sums is not None else (0, wanted.shape[-1])
    out, scores = core_attention(
        query, keys, values, view.slots, view.length,
        scale=scale, scores=columns, group_scores=view.per_head, sums=view.sums, validate=False,
    )  # fmt: skip
    if wanted is not None and scores is not None:
        wanted.copy_(scores[..., : wanted.shape[-1]])
    return out, scores


def _record(layer: AdaptiveLayer, kv: LayerKV, view: StepView, query: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend as :func:`_attend` does, and pass all scores of row 0 to the recorder."""
    cache = layer.owner
    out, scores = _attend(view, query, scale, every_score=True)
    assert scores is not None
    assert cache.recorder is not None
    cache.recorder.note(layer.number, scores[0], positions_read(cache, kv, cache.update_step))
    return out
