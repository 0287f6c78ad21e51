"""PyramidKV (Cai et al., 2024, arXiv 2406.02069): SnapKV with budgets that fall with depth."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

from avl.policies.base import PromptShape, param
from avl.policies.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV whose budgets lie on a straight line from the first layer to the last, with SnapKV's sum.

    With m the mean budget, ``keep`` % of the prompt, the last layer keeps m / beta, at least ``window``, and the first 2 m less that, at
    most the prompt. Budgets are rounded by the method of the largest remainder, so the sum is exact.

    Args:
        keep: prompt tokens stored, in % of the prompt's length, mean over the layers.
        window: last prompt tokens, which observe and stay.
        pool: width of the max-pool, odd.
        beta: how many times smaller than the mean the last layer's budget is.

    Raises:
        ValueError: a parameter is out of range.
    """

    beta: int = param(20, label="steepness", help="the mean budget over the last layer's", unit="times", high=40)

    name: ClassVar[str] = "PyramidKV"
    title: ClassVar[str] = "PyramidKV"

    def prompt_budget(self, layer: int, shape: PromptShape) -> int:
        return _budgets(super().prompt_budget(layer, shape), self.window, self.beta, shape.length, shape.n_layers)[layer]


@lru_cache(maxsize=64)
def _budgets(mean: int, window: int, beta: int, length: int, layers: int) -> tuple[int, ...]:
    """Whole numbers on the line, by the method of the largest remainder."""
    if layers == 1:
        return (mean,)
    # the window stays, and the first layer has no more than the prompt
    last = min(Fraction(mean), max(Fraction(mean, beta), Fraction(window), Fraction(2 * mean - length)))
    step = (2 * mean - 2 * last) / (layers - 1)
    line = [2 * mean - last - step * layer for layer in range(layers)]
    floors = [int(value) for value in line]
    larger = sorted(range(layers), key=lambda layer: floors[layer] - line[layer])[: layers * mean - sum(floors)]
    return tuple(floor + (layer in larger) for layer, floor in enumerate(floors))
