"""Gemma 3: tokens of a picture see each other, and most layers see a window only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from avl.models.families.base import Family
from avl.models.families.grids import square
from avl.trace import Grid


class Gemma3(Family):
    """``Gemma3ForConditionalGeneration``."""

    model_type: ClassVar[str] = "gemma3"
    prefix: ClassVar[str] = "Gemma3"
    texts: ClassVar[tuple[str, ...]] = ("gemma3_text",)
    two_way: ClassVar[bool] = True
    token_types: ClassVar[str | None] = "token_type_ids"

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        made = len(sizes) if inputs is None or "pixel_values" not in inputs else len(inputs["pixel_values"])
        if made == len(sizes):
            return square(config.mm_tokens_per_image, sizes)
        if len(sizes) > 1:
            return ()  # crops of which pictures is not said
        return _pan_and_scan(config.mm_tokens_per_image, sizes[0], made - 1)

    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        side = config.vision_config.image_size
        return {"pixel_values": torch.randn(batch, 3, side, side, generator=generator, device=generator.device)}


def _pan_and_scan(tokens: int, size: tuple[int, int], crops: int) -> tuple[Grid, ...]:
    """Return the grids of a picture and of its crops, side by side along its longer side."""
    width, height = size
    across, down = (crops, 1) if width >= height else (1, crops)
    wide, tall = math.ceil(width / across), math.ceil(height / down)
    boxes = [(0, 0, width, height)]
    for number in range(crops):
        left, top = (number * wide, 0) if down == 1 else (0, number * tall)
        boxes.append((left, top, min(left + wide, width), min(top + tall, height)))
    side = round(tokens**0.5)
    return tuple(
        Grid(0, number * tokens, side, side, False, (float(left), float(top), float(right), float(bottom)))
        for number, (left, top, right, bottom) in enumerate(boxes)
    )
