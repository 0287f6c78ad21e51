"""Gemma 3: tokens of a picture see each other, and most layers see a window only."""

from __future__ import annotations

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
        return square(config.mm_tokens_per_image, sizes)

    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        side = config.vision_config.image_size
        return {"pixel_values": torch.randn(batch, 3, side, side, generator=generator, device=generator.device)}
