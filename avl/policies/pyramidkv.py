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
    """SnapKV with budgets that fall linearly from the first layer to the last, at the same total.

    With a mean budget m of ``keep`` % of the prompt, the last layer keeps m / beta tokens (at least ``window``), and the first layer 2 m
    minus that (at most the whole prompt). Budgets are rounded by the largest remainder method, so that the total is exact.

    Args:
        keep: prompt tokens stored, in % of the prompt's length, on average over the layers.
        window: number of last prompt tokens that observe and stay.
        pool: width of the max-pool, odd.
        beta: ratio of the mean budget to the last layer's.

    Raises:
        ValueError: a parameter is out of range.
    """

    beta: int = param(20, label="steepness", help="the mean budget over the last layer's", unit="times", high=40)

    name: ClassVar[str] = "PyramidKV"
    title: ClassVar[str] = "PyramidKV"

    def prompt_budget(self, layer: int, shape: PromptShape) -> int:
        return _budgets(super().prompt_budget(layer, shape), self.window, self.beta, shape.new, shape.n_layers)[layer]


@lru_cache(maxsize=64)
def _budgets(mean: int, window: int, beta: int, length: int, layers: int) -> tuple[int, ...]:
    """Return the budget of every layer, rounded by the largest remainder method.

    Args:
        mean: budget averaged over the layers.
        window: smallest budget.
        beta: ratio of ``mean`` to the last layer's budget.
        length: of the prompt, the largest budget.
        layers: number of layers.
    """
    if layers == 1:
        return (mean,)
    # the last layer keeps at least the window, and the first at most the prompt
    last = min(Fraction(mean), max(Fraction(mean, beta), Fraction(window), Fraction(2 * mean - length)))
    step = (2 * mean - 2 * last) / (layers - 1)
    line = [2 * mean - last - step * layer for layer in range(layers)]
    floors = [int(value) for value in line]
    larger = sorted(range(layers), key=lambda layer: floors[layer] - line[layer])[: layers * mean - sum(floors)]
    return tuple(floor + (layer in larger) for layer, floor in enumerate(floors))
