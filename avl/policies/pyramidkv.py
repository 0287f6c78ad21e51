"""PyramidKV (Cai et al., 2024, arXiv 2406.02069): SnapKV with budgets that fall with depth."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from avl.policies.base import PromptShape, param
from avl.policies.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV whose budgets lie on a straight line from the first layer to the last, with SnapKV's sum.

    With m the mean budget, ``keep`` % of the prompt, the last layer keeps m / beta, at least ``window``, and the first 2 m less that, at
    most the prompt. Budgets are rounded down; what is left over goes to the first layers, one token each.

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
        mean, layers = super().prompt_budget(layer, shape), shape.n_layers
        if layers == 1:
            return mean
        last = min(Fraction(mean), max(Fraction(mean, self.beta), Fraction(self.window)))
        last = max(last, Fraction(2 * mean - shape.length))  # the first layer has no more than the prompt
        step = (2 * mean - 2 * last) / (layers - 1)
        floors = [int(2 * mean - last - step * index) for index in range(layers)]
        return floors[layer] + (layer < layers * mean - sum(floors))
