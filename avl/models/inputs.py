"""From images and a question to the model's inputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import pad

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
    return to_model(model, given), prompt


def to_model(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return what a processor gives as the model takes it: on its device, floats in its dtype.

    Raises:
        ValueError: the processor gives something that the model does not take.
    """
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
    return moved


def encode(config: Any, processor: Any, images: Sequence[Image.Image], question: str) -> tuple[dict[str, Any], str]:
    """Return everything that the processor gives for one request, and its prompt.

    Raises:
        ValueError: as :func:`build_prompt`.
    """
    prompt = build_prompt(config, processor, question, len(images))
    options = {"add_special_tokens": False} if begins_itself(processor.tokenizer, prompt) else {}
    return dict(processor(images=[list(images)], text=[prompt], return_tensors="pt", **options)), prompt


class LaterPictures:
    """The pictures that a later turn of a conversation brings.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        images: PIL images, at least one.
    """

    def __init__(self, model: Any, processor: Any, images: Sequence[Image.Image]) -> None:
        self._model, self._processor, self._images = model, processor, list(images)
        self._ids: dict[str, list[int]] = {}
        self._tensors: dict[str, torch.Tensor] | None = None

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text that has a placeholder for each picture, without special tokens around it."""
        if text not in self._ids:
            given = self._processor(images=[self._images], text=[text], return_tensors="pt", add_special_tokens=False)
            moved = to_model(self._model, dict(given))
            self._ids[text] = moved["input_ids"][0].tolist()
            self._tensors = {name: value for name, value in moved.items() if name not in PER_TOKEN}
        return self._ids[text]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What the processor made of the pictures, without what is one for each token; known after :meth:`ids`."""
        assert self._tensors is not None, "the text comes first"
        return self._tensors


PER_TOKEN: dict[str, int] = {"input_ids": 0, "attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Inputs ``[1, L]`` -> their value for text that follows a prompt."""


def join_pictures(first: dict[str, torch.Tensor], more: dict[str, torch.Tensor], axis: int) -> dict[str, torch.Tensor]:
    """Return what the processor would give of two sets of pictures of one row together: one after another, smaller ones padded with 0.

    Args:
        first: of the first pictures; empty for none. What is one for each token is left out.
        more: of those that follow, likewise.
        axis: along which a row's pictures follow one another.

    Raises:
        ValueError: the processor gives other kinds of inputs for one than for the other.
    """
    one, other = ({name: value for name, value in some.items() if name not in PER_TOKEN} for some in (first, more))
    if not one or not other:
        return one or other
    if one.keys() != other.keys():
        differ = ", ".join(sorted(one.keys() ^ other.keys()))
        raise ValueError(
            f"the processor gives {differ} for some pictures of this conversation only: begin a conversation with all pictures"
        )
    return {name: _joined(value, other[name], min(axis, value.dim() - 1)) for name, value in one.items()}


def _joined(first: torch.Tensor, more: torch.Tensor, axis: int) -> torch.Tensor:
    """Return two tensors one after another along ``axis``, the other dimensions padded at their ends."""
    sizes = [max(pair) for pair in zip(first.shape, more.shape, strict=True)]
    padded = []
    for one in (first, more):
        room = [size - have for size, have in zip(sizes, one.shape, strict=True)]
        room[axis] = 0
        padded.append(pad(one, [amount for each in reversed(room) for amount in (0, each)]))
    return torch.cat(padded, dim=axis)


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
