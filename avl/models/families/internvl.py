"""InternVL3: tiles row by row, then the whole picture where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from avl.models.families.base import Family
from avl.models.families.grids import canvas, tiles
from avl.trace import Grid


class InternVL(Family):
    """``InternVLForConditionalGeneration``."""

    model_type: ClassVar[str] = "internvl"
    prefix: ClassVar[str] = "InternVL"

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        return () if processor is None else tiles(canvas(processor, sizes), self.side(config), sizes)

    def side(self, config: Any) -> int:
        """Return the tokens along a tile."""
        vision = config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)
