"""Idefics3 and SmolVLM2: tiles with text between them, then the whole picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image

from avl.models.families.base import Family
from avl.models.families.grids import tiles
from avl.trace import Grid


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration``."""

    model_type: ClassVar[str] = "idefics3"
    prefix: ClassVar[str] = "Idefics3"
    picture_axis: ClassVar[int] = 1

    def decoder(self, model: Any) -> Any:
        return model.model.text_model

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        if processor is None:
            return ()
        blank = [Image.new("RGB", size) for size in sizes]
        cut = processor.image_processor([blank], return_row_col_info=True)
        side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        return tiles(zip(cut["rows"][0], cut["cols"][0], strict=True), side, sizes)


class SmolVLM(Idefics3):
    """``SmolVLMForConditionalGeneration``."""

    model_type: ClassVar[str] = "smolvlm"
    prefix: ClassVar[str] = "SmolVLM"
