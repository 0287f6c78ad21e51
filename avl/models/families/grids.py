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


def square(tokens: int, sizes: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
    """Return grids of pictures that are scaled to a square of ``tokens`` tokens."""
    side = round(tokens**0.5)
    return one_each([(side, side)] * len(sizes), sizes)
