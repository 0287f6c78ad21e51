"""LLaVA-OneVision: a single picture as in LLaVA-NeXT, shrunk where its tiles are many; of several pictures, a square each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from avl.models.families.base import Family
from avl.models.families.grids import unpadded
from avl.trace import Grid


class LlavaOnevision(Family):
    """``LlavaOnevisionForConditionalGeneration``."""

    model_type: ClassVar[str] = "llava_onevision"
    prefix: ClassVar[str] = "LlavaOnevision"

    def misfit(self, config: Any) -> str | None:
        ratio = config.vision_aspect_ratio
        if re.fullmatch(r"anyres_max_[1-9]\d*", ratio):
            return None
        return f"{self.model_class} takes no vision_aspect_ratio but 'anyres_max_9' or another number, and its config.json says {ratio!r}"

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        side = config.vision_config.image_size // config.vision_config.patch_size
        if len(sizes) > 1:  # padded to a square each, and a newline feature after it
            return tuple(Grid(number, number * (side * side + 1), side, side, False, _padded(*size)) for number, size in enumerate(sizes))
        box = (0.0, 0.0, float(sizes[0][0]), float(sizes[0][1]))
        rows, cols = unpadded(config, side, *sizes[0])
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (most * side**2))
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
        return Grid(0, 0, side, side, False, box), Grid(0, side * side, rows, cols, True, box)

    def tail(self, sizes: Sequence[tuple[int, int]]) -> int:
        return int(len(sizes) > 1)


def _padded(width: int, height: int) -> tuple[float, float, float, float]:
    """Return the square around the middle of a picture."""
    side = max(width, height)
    left, top = -((side - width) // 2), -((side - height) // 2)
    return float(left), float(top), float(left + side), float(top + side)
