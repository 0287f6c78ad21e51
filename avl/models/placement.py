"""Where the layers of a model are."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from avl.models.families import language_model

SPREAD = (
    "The model is spread over {count} devices, one after another: decode steps run its own modules and wait for each other, without fused "
    "steps and CUDA graphs, so times are longer than on one device."
)


def devices(model: Any) -> list[torch.device]:
    """Return the devices that hold a model's parameters, in the order of its modules."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters()))


def placement(model: Any) -> str:
    """Return where a model is, for people: "cuda:0", or "cuda:0 (layers 0–15), cuda:1 (layers 16–31)"."""
    if len(devices(model)) == 1:
        return str(model.device)
    of_layers = [next(layer.parameters()).device for layer in language_model(model).layers]
    parts = []
    for device, group in itertools.groupby(range(len(of_layers)), key=lambda number: of_layers[number]):
        numbers = list(group)
        parts.append(f"{device} (layer{'s' if len(numbers) > 1 else ''} {numbers[0]}" + (f"–{numbers[-1]})" if len(numbers) > 1 else ")"))
    others = [str(device) for device in devices(model) if device not in of_layers]
    return ", ".join([*parts, *others])
