"""Aya Vision: InternVL's tiles; three of four layers of its text decoder see a window only, and the others no positions."""

from __future__ import annotations

from typing import Any, ClassVar

from avl.models.families.internvl import InternVL


class AyaVision(InternVL):
    """``AyaVisionForConditionalGeneration``."""

    model_type: ClassVar[str] = "aya_vision"
    prefix: ClassVar[str] = "AyaVision"
    texts: ClassVar[tuple[str, ...]] = ("cohere2",)

    def tile(self, config: Any) -> tuple[int, int]:
        side = config.vision_config.image_size
        return side, side

    def side(self, config: Any) -> int:
        vision = config.vision_config
        return int(vision.image_size // vision.patch_size // config.downsample_factor)
