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
    token_types: ClassVar[str | None] = "mm_token_type_ids"
    own_positions: ClassVar[bool] = True
    # generate counts on from the last position in each dimension, the model itself (rope_deltas) from the largest
    picture_last: ClassVar[bool] = False

    def positions(self, mask: torch.Tensor, pictures: bool) -> dict[str, torch.Tensor]:
        # of pictures the model makes its own, of image_grid_thw and mm_token_type_ids
        return {} if pictures else super().positions(mask, pictures)

    def ahead(self, model: Any, pictures: bool) -> torch.Tensor | int:
        return model.model.rope_deltas if pictures else 0  # without pictures, those of an earlier prompt

    def later_positions(self, model: Any, ids: torch.Tensor, pictures: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
        where, ahead = model.model.get_rope_index(ids, pictures["mm_token_type_ids"], image_grid_thw=pictures["image_grid_thw"])
        return where, ahead

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        return merged(config, sizes, inputs)

    def image_tokens(self, config: Any, size: tuple[int, int]) -> int:
        rows, cols = _patches(config.vision_config, size)
        return rows * cols // config.vision_config.spatial_merge_size**2

    def random_picture(self, config: Any) -> tuple[int, int]:
        return 1024, 768

    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        vision = config.vision_config
        rows, cols = _patches(vision, size)
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": torch.randn(batch * rows * cols, values, generator=generator, device=generator.device),
            "image_grid_thw": torch.tensor([[1, rows, cols]] * batch, device=generator.device),
        }


def _patches(vision: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of patches of a picture that is within a processor's limits: each side to the nearest whole token."""
    width, height = size
    side = vision.patch_size * vision.spatial_merge_size
    return tuple(max(1, round(length / side)) * vision.spatial_merge_size for length in (height, width))  # type: ignore[return-value]
