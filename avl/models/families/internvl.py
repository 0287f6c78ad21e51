"""InternVL3: tiles row by row, then the whole picture where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from avl.models.families.base import Family
from avl.models.families.grids import best_canvas, canvas, tiles
from avl.trace import Grid


class InternVL(Family):
    """``InternVLForConditionalGeneration``."""

    model_type: ClassVar[str] = "internvl"
    prefix: ClassVar[str] = "InternVL"

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        return () if processor is None else tiles(canvas(processor, sizes), self.side(config), sizes)

    def image_tokens(self, config: Any, size: tuple[int, int]) -> int:
        return self._tiles(config, size) * self.side(config) ** 2

    def random_picture(self, config: Any) -> tuple[int, int]:
        return 1024, 768

    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        height, width = self.tile(config)
        tiles = batch * self._tiles(config, size)
        return {"pixel_values": torch.randn(tiles, 3, height, width, generator=generator, device=generator.device)}

    def _tiles(self, config: Any, size: tuple[int, int]) -> int:
        """Return how many tiles a processor with its class's limits makes of a picture, the whole picture included."""
        ((rows, cols),) = best_canvas(self.tile(config), [size])
        return rows * cols + (rows * cols > 1)

    def tile(self, config: Any) -> tuple[int, int]:
        """Return (height, width) of a tile in pixels."""
        height, width = config.vision_config.image_size
        return height, width

    def side(self, config: Any) -> int:
        """Return the tokens along a tile."""
        vision = config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)
