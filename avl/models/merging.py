"""Weights of projections that share their input, merged into one matrix without taking memory, and separated again."""

from __future__ import annotations

from typing import Any

import torch

from avl.models.families import language_model


def mergeable(layer: Any) -> tuple[tuple[torch.nn.Linear, ...], ...]:
    """The products of one layer that share their input."""
    attention, mlp = layer.self_attn, layer.mlp
    return (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)


def merge(products: tuple[torch.nn.Linear, ...]) -> torch.Tensor:
    """Weights of several products behind one another, ``[sum of outputs, N]``; the modules' parameters become views of it.

    Nothing but the parameters holds the memory: a model that is moved or freed takes it along, and is merged again when it runs again.
    """
    # a parameter keeps the kind it was made as: one that can be trained must stay so, though the engine runs in inference mode
    with torch.inference_mode(products[0].weight.is_inference()), torch.no_grad():
        weights = [product.weight.data for product in products]
        first, rows = weights[0], [weight.shape[0] for weight in weights]
        if _adjacent(weights):
            return first.as_strided((sum(rows), first.shape[1]), (first.shape[1], 1), first.storage_offset())
        merged = torch.cat(weights)
        for product, part in zip(products, merged.split(rows), strict=True):
            product.weight.data = part
        if merged.is_cuda:
            del weights, first
            torch.cuda.empty_cache()  # the old memory is in pieces that the next layer's merged weights do not fit into
        return merged


def _adjacent(weights: list[torch.Tensor]) -> bool:
    """Whether the matrices lie behind one another in one storage."""
    storage, offset = weights[0].untyped_storage().data_ptr(), weights[0].storage_offset()
    for weight in weights:
        if weight.untyped_storage().data_ptr() != storage or weight.storage_offset() != offset or not weight.is_contiguous():
            return False
        offset += weight.numel()
    return True


def separate(model: Any) -> None:
    """Undo :func:`merge`: every parameter has memory of its own again, with the same values. Does nothing where nothing is merged."""
    for layer in language_model(model).layers:
        for products in mergeable(layer):
            if all(type(product) is torch.nn.Linear for product in products) and _adjacent([product.weight.data for product in products]):
                for product in products:
                    with torch.inference_mode(product.weight.is_inference()), torch.no_grad():
                        product.weight.data = product.weight.data.clone()
