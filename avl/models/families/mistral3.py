"""Mistral Small 3: one grid of the picture's own shape, several patches merged into one token; row breaks are text tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from avl.models.families.base import Family
from avl.models.families.grids import own_shapes
from avl.trace import Grid


class Mistral3(Family):
    """``Mistral3ForConditionalGeneration``."""

    model_type: ClassVar[str] = "mistral3"
    prefix: ClassVar[str] = "Mistral3"

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        return own_shapes(config.vision_config.patch_size * config.spatial_merge_size, sizes, inputs)
