"""LLaVA-1.5: one grid of patches per image, after a center crop; with a Pixtral vision tower, of the image's own shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from avl.models.families.base import Family, leading_features
from avl.models.families.grids import own_shapes
from avl.trace import Grid


class Llava(Family):
    """``LlavaForConditionalGeneration``."""

    model_type: ClassVar[str] = "llava"
    prefix: ClassVar[str] = "Llava"
    preset: ClassVar[str] = "llava-1.5-7b"

    def plain_prompt(self, config: Any, images: str, question: str) -> str | None:
        # LLaVA-1.5's checkpoints without a template: their model card gives this form
        return f"USER: {images}{question} ASSISTANT:" if config.text_config.model_type == "llama" else None

    def plain_next(self, config: Any, question: str) -> str | None:
        return f" USER: {question} ASSISTANT:" if config.text_config.model_type == "llama" else None

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        first = self.class_tokens(config)
        if first is None:
            return ()
        if config.vision_config.model_type == "pixtral":
            return own_shapes(config.vision_config.patch_size, sizes, inputs)
        side = config.vision_config.image_size // config.vision_config.patch_size
        each = first + side * side
        return tuple(
            Grid(number, number * each + first, side, side, False, _crop(processor, width, height))
            for number, (width, height) in enumerate(sizes)
        )

    def class_tokens(self, config: Any) -> int | None:
        """Return the number of features per image that precede its patches, None where that is not known."""
        return leading_features(config)

    def random_config(self, parts: dict[str, Any], side: int) -> Any:
        import transformers

        return transformers.LlavaConfig(**parts)

    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        side = config.vision_config.image_size
        return {"pixel_values": torch.randn(batch, 3, side, side, generator=generator, device=generator.device)}


def _crop(processor: Any | None, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the part of an image that the model sees: the processor scales the shorter side and crops the center."""
    whole = (0.0, 0.0, float(width), float(height))
    if processor is None:
        return whole
    image_processor = processor.image_processor
    edge = image_processor.size.get("shortest_edge")
    if not (image_processor.do_resize and edge and image_processor.do_center_crop):
        return whole
    scale = min(width, height) / edge
    crop_width, crop_height = image_processor.crop_size["width"] * scale, image_processor.crop_size["height"] * scale
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return (left, top, left + crop_width, top + crop_height)
