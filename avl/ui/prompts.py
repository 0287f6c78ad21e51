"""Sizes of a prompt before it runs: tokens of the chosen pictures and the question, and how much of the pictures the model sees."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from avl.models.families import image_grids, image_token_id
from avl.models.inputs import encode
from avl.models.prompt import Question
from avl.trace import Grid


@dataclass(frozen=True)
class PromptSize:
    """Tokens of one row's prompt.

    Attributes:
        n_image: image tokens of all pictures.
        n_text: all other tokens.
        seen: the smallest share of a picture that reaches the model; None where it is not known.
    """

    n_image: int
    n_text: int
    seen: float | None = None


Measure = Callable[[tuple[tuple[int, int], ...], str], PromptSize]
"""Sizes (width, height) of pictures and a question -> size of their prompt. Raises ValueError where they make no prompt."""


def measure_with(model: Any, processor: Any) -> Measure:
    """Return a function that counts as the model's processor does.

    Tokens of a picture depend on nothing but its size, so a blank one stands in for it. The processor is copied: a tokenizer may
    fail where two threads use it at once, and the device's thread uses the original.
    """
    own, lock, config = copy.deepcopy(processor), threading.Lock(), model.config

    def count(sizes: Sequence[tuple[int, int]], question: str) -> tuple[int, int, dict[str, Any]]:
        inputs, _ = encode(config, own, [Image.new("RGB", size) for size in sizes], Question(question))
        n_image = int((inputs["input_ids"][0] == image_token_id(config)).sum())
        return n_image, inputs["input_ids"].shape[1] - n_image, inputs

    @functools.lru_cache(maxsize=256)
    def images(sizes: tuple[tuple[int, int], ...]) -> tuple[int, int, float | None]:
        """Image tokens, text tokens beside those with small pictures (between tiles, after rows), and the share that is seen."""
        n_image, n_text, inputs = count(sizes, "?")
        between = n_text - count(small(sizes), "?")[1]
        return n_image, between, seen_share(image_grids(config, own, sizes, inputs, n_image), sizes)

    def small(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(64, 64)] * len(sizes)

    def measure(sizes: tuple[tuple[int, int], ...], question: str) -> PromptSize:
        with lock:
            n_image, between, seen = images(sizes)
            return PromptSize(n_image, count(small(sizes), question)[1] + between, seen)

    return measure


def seen_share(grids: Sequence[Grid], sizes: Sequence[tuple[int, int]]) -> float | None:
    """Return the smallest share of a picture that its largest grid covers; None where the tokens have no place in a picture."""
    shares: dict[int, float] = {}
    for grid in grids:
        width, height = sizes[grid.image]
        left, top, right, bottom = grid.box
        covered = max(0.0, min(right, width) - max(left, 0)) * max(0.0, min(bottom, height) - max(top, 0))
        shares[grid.image] = max(shares.get(grid.image, 0.0), covered / (width * height))
    return min(shares.values(), default=None)
