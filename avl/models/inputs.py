"""From images and a question to the model's inputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from avl.models.families import image_token_id
from avl.models.images import open_image
from avl.models.prompt import begins_itself, build_prompt


def prepare(model: Any, processor: Any, images: Sequence[Any] | Image.Image, question: str) -> tuple[dict[str, Any], str]:
    """Return the model inputs of one request, on the model's device, and their prompt.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        images: one image or several, as :func:`open_image` takes them.
        question: a plain question, or a whole prompt with image placeholders (``avl.Prompt`` where that must not be mistaken).

    Returns:
        (every tensor that the processor gives and the model's forward takes, the prompt).

    Raises:
        ValueError: there is no image, the processor gives something that the model does not take, or as :func:`open_image` and
            :func:`build_prompt`.
    """
    opened = [open_image(image) for image in (images if isinstance(images, list | tuple) else [images])]
    if not opened:
        raise ValueError("there is no image: upload one, or pick an example")
    given, prompt = encode(model.config, processor, opened, question)
    known = set(inspect.signature(type(model).forward).parameters)
    moved: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"the processor gives {name} as {type(value).__name__}, not as a tensor: pass the processor of this model")
        if name == "labels" and bool((value == -100).all()):
            continue  # targets for training, of which there are none
        if name in known:
            moved[name] = value.to(model.device, model.dtype if value.is_floating_point() else None)
        elif not _says_nothing(name, value, given, image_token_id(model.config)):
            raise ValueError(
                f"the processor gives {name}, which {type(model).__name__} does not take and would ignore: pass the processor of this model"
            )
    return moved, prompt


def encode(config: Any, processor: Any, images: Sequence[Image.Image], question: str) -> tuple[dict[str, Any], str]:
    """Return everything that the processor gives for one request, and its prompt.

    Raises:
        ValueError: as :func:`build_prompt`.
    """
    prompt = build_prompt(config, processor, question, len(images))
    options = {"add_special_tokens": False} if begins_itself(processor.tokenizer, prompt) else {}
    return dict(processor(images=[list(images)], text=[prompt], return_tensors="pt", **options)), prompt


def _says_nothing(name: str, value: torch.Tensor, given: dict[str, Any], image_token_id: int) -> bool:
    """Return whether a tensor only repeats what the ids say: one sequence of tokens, or where the image tokens are."""
    if name == "token_type_ids":
        return not value.any()
    return name == "mm_token_type_ids" and torch.equal(value.bool(), given["input_ids"] == image_token_id)


def repeat(inputs: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return inputs for ``batch`` copies of a request: every tensor repeated along its first dimension."""
    return {key: torch.cat([value] * batch) if batch > 1 else value for key, value in inputs.items()}


def first(inputs: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return the inputs of one of the ``batch`` copies that :func:`repeat` made."""
    return {key: value[: len(value) // batch] for key, value in inputs.items()}
