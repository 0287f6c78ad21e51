"""Qwen2-VL: positions in three dimensions, one grid of the picture's own shape, four patches a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from avl.models.families.base import Family
from avl.models.families.grids import merged
from avl.trace import Grid


class Qwen2VL(Family):
    """``Qwen2VLForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen2_vl"
    prefix: ClassVar[str] = "Qwen2VL"
    texts: ClassVar[tuple[str, ...]] = ("qwen2_vl_text",)
    # generate counts on from the last position in each dimension, the model itself (rope_deltas) from the largest
    picture_last: ClassVar[bool] = False

    def positions(self, mask: torch.Tensor, pictures: bool) -> dict[str, torch.Tensor]:
        # of pictures the model makes its own, of image_grid_thw and mm_token_type_ids
        return {} if pictures else super().positions(mask, pictures)

    def ahead(self, model: Any, pictures: bool) -> torch.Tensor | int:
        return model.model.rope_deltas if pictures else 0  # without pictures, those of an earlier prompt

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        return merged(config, sizes, inputs)
