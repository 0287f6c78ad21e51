"""Which part of which picture every image token covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from avl.trace import Grid


def image_grids(model: Any, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
    """Which part of which picture every image token covers.

    Args:
        sizes: (width, height) of each picture as given to the processor.
    """
    config = model.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    class_token = 0 if config.vision_feature_select_strategy == "default" else 1
    grids: list[Grid] = []
    first = 0
    for number, (width, height) in enumerate(sizes):
        first += class_token
        if config.model_type == "llava":
            grids.append(Grid(number, first, side, side, False, _crop(processor, width, height)))
            first += side * side
            continue
        whole = (0.0, 0.0, float(width), float(height))
        grids.append(Grid(number, first, side, side, False, whole))
        first += side * side
        rows, cols = _unpadded(config, side, width, height)
        grids.append(Grid(number, first, rows, cols, True, whole))
        first += rows * (cols + 1)
    return tuple(grids)


def _crop(processor: Any, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a picture that LLaVA-1.5 sees: its image processor scales the shorter edge and cuts out the centre."""
    image_processor = processor.image_processor
    edge = image_processor.size.get("shortest_edge")
    if not (image_processor.do_resize and edge and image_processor.do_center_crop):
        return (0.0, 0.0, float(width), float(height))
    scale = min(width, height) / edge
    crop_width, crop_height = image_processor.crop_size["width"] * scale, image_processor.crop_size["height"] * scale
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return (left, top, left + crop_width, top + crop_height)


def _unpadded(config: Any, side: int, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of LLaVA-1.6's tile features after the padding was cut off, as its modeling code does."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    tiles = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, config.vision_config.image_size)
    features = torch.empty(1, tiles[0] * side, tiles[1] * side, device="meta")
    return tuple(unpad_image(features, (height, width)).shape[1:])
