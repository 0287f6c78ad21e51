"""Merging the weights of projections that share their input into one matrix, without extra memory, and separating them again."""

from __future__ import annotations

from collections.abc import Sequence
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


def merge(linears: tuple[torch.nn.Linear, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Concatenate several projections to one; the modules' parameters become views of the result.

    Only the parameters hold the memory: moving or freeing the model moves or frees it, and a moved model is merged again at its next run.

    Returns:
        Weight ``[sum of outputs, inputs]`` and bias ``[sum of outputs]``; None where the projections, all of them, have none.
    """
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return _merge([linear.weight for linear in linears]), _merge(biases) if biases else None


def _merge(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate parameters along their first dimension and make them views of the result."""
    # trainable parameters must stay trainable, though the engine runs in inference mode
    with torch.inference_mode(parameters[0].is_inference()), torch.no_grad():
        parts = [parameter.data for parameter in parameters]
        first, rows = parts[0], [part.shape[0] for part in parts]
        if _adjacent(parts):
            return first.as_strided((sum(rows), *first.shape[1:]), first.stride(), first.storage_offset())
        merged = torch.cat(parts)
        for parameter, part in zip(parameters, merged.split(rows), strict=True):
            parameter.data = part
        if merged.is_cuda and merged.dim() > 1:
            del parts, first
            torch.cuda.empty_cache()  # the freed blocks are too small for the next layer's merged weights
        return merged


def _adjacent(parts: list[torch.Tensor]) -> bool:
    """Return whether contiguous tensors follow one another in one storage."""
    storage, offset = parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != storage or part.storage_offset() != offset or not part.is_contiguous():
            return False
        offset += part.numel()
    return True


def separate(model: Any) -> None:
    """Undo :func:`merge`: give every parameter its own memory again, with the same values. Does nothing where nothing is merged."""
    text = language_model(model)
    if text.config.model_type not in TEXT_FAMILIES:
        return  # never fused, so never merged
    for layer in text.layers:
        for group in mergeable(layer):
            linears = [_plain(linear) for linear in group]
            if not all(type(linear) is torch.nn.Linear for linear in linears):
                continue
            for parameters in ([linear.weight for linear in linears], [linear.bias for linear in linears if linear.bias is not None]):
                if parameters and _adjacent([parameter.data for parameter in parameters]):
                    for parameter in parameters:
                        with torch.inference_mode(parameter.is_inference()), torch.no_grad():
                            parameter.data = parameter.data.clone()
