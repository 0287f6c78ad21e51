"""Attention of a decode step: one query per row over the slots that the policy reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from avl.cache.inspect import positions_read
from avl.cache.layer import AdaptiveLayer
from avl.cache.slots import LayerKV, StaticSlotTable, StepView
from avl.kernels import core_attention
from avl.kernels.layer.types import HeadNorms


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
    if layer.joined is not None and layer.flat is not None:
        rows, number = layer.joined
        return rows.attend(number, query, *layer.flat, scale).transpose(1, 2)
    recorded = cache.recorder is not None
    if len(cache.buckets) == 1:
        kv = layer.kvs[0]
        view = kv.view(cache.update_step)
        out = _record(layer, kv, view, query, scale) if recorded else _attend(view, query, scale)[0]
        return out.transpose(1, 2)
    out = torch.empty_like(query)
    for bucket, kv in zip(cache.buckets, layer.kvs, strict=True):
        view, of_rows = kv.view(cache.update_step), cache.rows_of(query, bucket)
        attend = recorded and 0 in bucket.rows
        found = _record(layer, kv, view, of_rows, scale) if attend else _attend(view, of_rows, scale)[0]
        out.index_copy_(0, bucket.index(out.device), found)
    return out.transpose(1, 2)


def append_and_attend(
    layer: AdaptiveLayer,
    ops: Any,
    kernel: Any,
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norms: HeadNorms | None,
    scale: float,
) -> torch.Tensor:
    """Store a step's token and attend, in one launch where its slot is on the device for all rows together, else one after the other.

    Args:
        layer: the stored tokens.
        ops: from ``avl.kernels.layer_ops``.
        kernel: from ``avl.kernels.new_token_attention``.
        qkv: as ``append_rope`` takes it.
        cos: likewise.
        sin: likewise.
        norms: likewise.
        scale: factor of the logits.

    Returns:
        The output ``[B, 1, H, D]``.
    """
    cache, kv = layer.owner, layer.kvs[0]
    table = kv.table
    if kernel is None or layer.joined is not None or len(layer.kvs) > 1 or not isinstance(table, StaticSlotTable):
        return attend_step(layer, layer.append_rope(ops, qkv, cos, sin, norms), scale)
    view = kv.view(cache.update_step)
    columns = view.keys.shape[2] if view.slots is None else view.slots.shape[1]
    # the window's slots are the last columns, in their order
    new = kernel.NewToken(cos, sin, norms, table.slot[kv.place], columns - kv.window.capacity, kv.image)
    assert cache.recorder is None, "recorded steps are not static"
    return _attend(view, qkv, scale, attend=functools.partial(_attend_new, kernel, new))[0][:, None]


def _attend_new(
    kernel: Any,
    new: Any,
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor | None,
    length: torch.Tensor | None,
    *,
    scale: float,
    scores: bool | tuple[int, int],
    group_scores: bool,
    sums: torch.Tensor | None,
    validate: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Store a new token ``[b, (H + 2 G) D]`` and attend with it, with the arguments and results of ``core_attention``."""
    if isinstance(scores, bool):
        columns = (0, keys.shape[2] if slots is None else slots.shape[1]) if scores else None
    else:
        columns = scores
    out: tuple[torch.Tensor, torch.Tensor | None]
    out = kernel.attend_new(qkv, new, keys, values, slots, length, scale, columns, group_scores, sums)
    return out


def _attend(
    view: StepView, query: torch.Tensor, scale: float, every_score: bool = False, attend: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return attention ``[b, H, 1, D]`` over a view and the scores computed, all of them if asked; write scores to the view's tensors.

    ``attend`` computes it, by default ``core_attention``.
    """
    keys, values = view.keys, view.values
    wanted = view.image_scores
    columns: bool | tuple[int, int] = every_score
    if wanted is not None and not every_score:
        # sums also need the scores of the last columns; otherwise those of the image tokens suffice
        columns = True if view.sums is not None else (0, wanted.shape[-1])
    out, scores = (attend or core_attention)(
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
