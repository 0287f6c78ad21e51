"""LLaVA-1.6 (LLaVA-NeXT): a grid of the whole image, then a grid of its tiles, where every row ends with a newline feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from avl.models.families.base import CLASS_TOKENS, Family, leading_features
from avl.models.families.grids import unpadded
from avl.trace import Grid


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration``."""

    model_type: ClassVar[str] = "llava_next"
    prefix: ClassVar[str] = "LlavaNext"
    preset: ClassVar[str] = "llava-1.6-7b"

    def misfit(self, config: Any) -> str | None:
        tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
        if tower not in CLASS_TOKENS or leading_features(config) == 0:
            return None
        return (
            f"{self.model_class} puts tiles together from patches alone, which vision_feature_select_strategy={strategy!r} does not leave "
            f"of a {tower!r} vision tower"
        )

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        if leading_features(config) is None:
            return ()
        side = config.vision_config.image_size // config.vision_config.patch_size
        found: list[Grid] = []
        first = 0
        for number, (width, height) in enumerate(sizes):
            whole = (0.0, 0.0, float(width), float(height))
            found.append(Grid(number, first, side, side, False, whole))
            first += side * side
            rows, cols = unpadded(config, side, width, height)
            found.append(Grid(number, first, rows, cols, True, whole))
            first += rows * (cols + 1)
        return tuple(found)

    def random_config(self, parts: dict[str, Any], side: int) -> Any:
        import transformers

        tiles = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
        return transformers.LlavaNextConfig(**parts, image_grid_pinpoints=[[rows * side, columns * side] for rows, columns in tiles])

    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        (width, height), side = size, config.vision_config.image_size
        tiles = int(image_size_to_num_patches((height, width), config.image_grid_pinpoints, side))
        pixels = torch.randn(batch, tiles, 3, side, side, generator=generator, device=generator.device)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]] * batch, device=generator.device)}
