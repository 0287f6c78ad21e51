"""Decode steps by how far into the answer they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

EDGES = (1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Where a bin of decode steps begins and the one before it ends."""


def bins(steps: int) -> list[tuple[int, int]]:
    """Return [first, end) of the bins of decode steps 1 to ``steps``."""
    edges = [edge for edge in EDGES if edge <= steps] + [steps + 1]
    return list(pairwise(edges))


def means(values: Sequence[float] | np.ndarray) -> list[float]:
    """Return the mean of values of steps 1, 2, … by bin; NaN stands for a step without a value, and for a bin without any."""
    held = np.asarray(values, np.float64)
    some = [held[first - 1 : end - 1] for first, end in bins(len(held))]
    return [float(np.nanmean(one)) if np.isfinite(one).any() else float("nan") for one in some]
