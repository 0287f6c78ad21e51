"""Where image tokens lie in their pictures: layouts that several families share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from avl.trace import Grid


def one_each(shapes: Iterable[tuple[int, int]], sizes: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
    """Return one grid per picture that covers all of it, one after another.

    Args:
        shapes: (rows, columns) of each picture's tokens.
        sizes: (width, height) of each picture.
    """
    found: list[Grid] = []
    first = 0
    for number, ((rows, cols), (width, height)) in enumerate(zip(shapes, sizes, strict=True)):
        found.append(Grid(number, first, rows, cols, False, (0.0, 0.0, float(width), float(height))))
        first += rows * cols
    return tuple(found)


def merged(config: Any, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None) -> tuple[Grid, ...]:
    """Return grids of pictures in their own shape, several patches a token (``image_grid_thw``: Qwen, GLM); none without it."""
    if inputs is None or "image_grid_thw" not in inputs:
        return ()
    merge = config.vision_config.spatial_merge_size
    return one_each(((rows // merge, cols // merge) for _, rows, cols in inputs["image_grid_thw"].tolist()), sizes)


def own_shapes(patch: int, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None) -> tuple[Grid, ...]:
    """Return grids of pictures that keep their shape, a token every ``patch`` pixels (``image_sizes``: Pixtral); none without them."""
    if inputs is None or "image_sizes" not in inputs:
        return ()
    return one_each(((height // patch, width // patch) for height, width in inputs["image_sizes"].tolist()), sizes)


def square(tokens: int, sizes: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
    """Return grids of pictures that are scaled to a square of ``tokens`` tokens."""
    side = round(tokens**0.5)
    return one_each([(side, side)] * len(sizes), sizes)


def tiles(layouts: Iterable[tuple[int, int]], side: int, sizes: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
    """Return the grids of pictures that are cut into tiles of ``side`` x ``side`` tokens, row by row, the whole picture after them.

    Args:
        layouts: (rows, columns) of each picture's tiles; (0, 0) or (1, 1) for a picture that is not cut, which comes once.
        side: tokens along a tile.
        sizes: (width, height) of each picture.
    """
    found: list[Grid] = []
    first = 0
    for number, ((rows, cols), (width, height)) in enumerate(zip(layouts, sizes, strict=True)):
        boxes = [
            (width * col / cols, height * row / rows, width * (col + 1) / cols, height * (row + 1) / rows)
            for row in range(rows)
            for col in range(cols)
        ]
        if len(boxes) != 1:
            boxes.append((0.0, 0.0, float(width), float(height)))
        for box in boxes:
            found.append(Grid(number, first, side, side, False, box))
            first += side * side
    return tuple(found)


def canvas(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (rows, columns) of the tiles into which a processor of GOT-OCR2's kind cuts pictures (InternVL, Aya Vision)."""
    images = processor.image_processor
    return best_canvas((images.size["height"], images.size["width"]), sizes, images.min_patches, images.max_patches)


def best_canvas(tile: tuple[int, int], sizes: Sequence[tuple[int, int]], least: int = 1, most: int = 12) -> list[tuple[int, int]]:
    """Return (rows, columns) of each picture's tiles.

    Args:
        tile: (height, width) of a tile in pixels.
        sizes: (width, height) of each picture.
        least: fewest tiles; as the processor's default.
        most: most tiles, likewise.
    """
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    found = [get_optimal_tiled_canvas((height, width), tile, least, most) for width, height in sizes]
    return [(rows, cols) for cols, rows in found]


def unpadded(config: Any, side: int, width: int, height: int) -> tuple[int, int]:
    """Return rows and columns of the features of LLaVA-NeXT's tiles without padding, computed as in the modeling code."""
    import torch
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    shape = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, config.vision_config.image_size)
    features = torch.empty(1, shape[0] * side, shape[1] * side, device="meta")
    rows, cols = unpad_image(features, (height, width)).shape[1:]
    return rows, cols
