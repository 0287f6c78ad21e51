"""Aya Vision: as InternVL's tiles; three of four layers of its text decoder see a window only, and the others no positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from avl.models.families.base import Family
from avl.models.families.grids import canvas, tiles
from avl.trace import Grid


class AyaVision(Family):
    """``AyaVisionForConditionalGeneration``."""

    model_type: ClassVar[str] = "aya_vision"
    prefix: ClassVar[str] = "AyaVision"
    texts: ClassVar[tuple[str, ...]] = ("cohere2",)

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        if processor is None:
            return ()
        vision = config.vision_config
        return tiles(canvas(processor, sizes), vision.image_size // vision.patch_size // config.downsample_factor, sizes)
