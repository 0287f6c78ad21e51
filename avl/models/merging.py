"""Merging the weights of projections that share their input into one matrix, without extra memory, and separating them again."""

from __future__ import annotations

from typing import Any

import torch

from avl.models.families import TEXT_FAMILIES, language_model


def mergeable(layer: Any) -> tuple[tuple[torch.nn.Linear, ...], ...]:
    """Return the groups of projections of one layer that share their input."""
    attention, mlp = layer.self_attn, layer.mlp
    return (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)


def _plain(linear: Any) -> Any:
    """Return the projection itself: an adapter that was added after merging wraps it and calls it ``base_layer``."""
    return getattr(linear, "base_layer", linear)


def merge(linears: tuple[torch.nn.Linear, ...]) -> torch.Tensor:
    """Concatenate the weights of several projections to ``[sum of outputs, inputs]``; the modules' parameters become views of the result.

    Only the parameters hold the memory: moving or freeing the model moves or frees it, and a moved model is merged again at its next run.
    """
    # trainable parameters must stay trainable, though the engine runs in inference mode
    with torch.inference_mode(linears[0].weight.is_inference()), torch.no_grad():
        weights = [linear.weight.data for linear in linears]
        first, rows = weights[0], [weight.shape[0] for weight in weights]
        if _adjacent(weights):
            return first.as_strided((sum(rows), first.shape[1]), (first.shape[1], 1), first.storage_offset())
        merged = torch.cat(weights)
        for linear, part in zip(linears, merged.split(rows), strict=True):
            linear.weight.data = part
        if merged.is_cuda:
            del weights, first
            torch.cuda.empty_cache()  # the freed blocks are too small for the next layer's merged weights
        return merged


def _adjacent(weights: list[torch.Tensor]) -> bool:
    """Return whether the matrices follow one another in one storage."""
    storage, offset = weights[0].untyped_storage().data_ptr(), weights[0].storage_offset()
    for weight in weights:
        if weight.untyped_storage().data_ptr() != storage or weight.storage_offset() != offset or not weight.is_contiguous():
            return False
        offset += weight.numel()
    return True


def separate(model: Any) -> None:
    """Undo :func:`merge`: give every parameter its own memory again, with the same values. Does nothing where nothing is merged."""
    text = language_model(model)
    if text.config.model_type not in TEXT_FAMILIES:
        return  # never fused, so never merged
    for layer in text.layers:
        for group in mergeable(layer):
            linears = [_plain(linear) for linear in group]
            if all(type(linear) is torch.nn.Linear for linear in linears) and _adjacent([linear.weight.data for linear in linears]):
                for linear in linears:
                    with torch.inference_mode(linear.weight.is_inference()), torch.no_grad():
                        linear.weight.data = linear.weight.data.clone()
