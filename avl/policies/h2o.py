"""H2O, heavy-hitter oracle (Zhang et al., NeurIPS 2023, arXiv 2306.14048): the A-VL paper's language-model baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl.policies.base import KVBudget, Observation, Policy, PromptShape, param, share


@dataclass(frozen=True)
class H2O(Policy):
    """Keep the most recent tokens and, per key-value head, those with the most accumulated attention. Ignores modalities.

    Args:
        keep: tokens stored, in % of the prompt's length; constant while answering, as in the authors' code.
        recent: % of that budget for the most recent tokens; the A-VL paper's comparison uses 75 (and 25 for heavy hitters).

    Raises:
        ValueError: a parameter is out of range.
    """

    keep: float = param(50, label="keeps", help="the share of the prompt's tokens stored")
    recent: float = param(75, label="recent part", help="the share of the stored tokens that are the most recent")

    name: ClassVar[str] = "H2O"
    title: ClassVar[str] = "H2O"
    pins_image: ClassVar[bool] = False
    budget: ClassVar[str | None] = "keep"

    def store(self, layer: int, shape: PromptShape) -> KVBudget:
        window = share(self.keep, shape.length)
        return KVBudget(image=0, window=window, recent=share(self.recent, window))

    def observe(self, layer: int, shape: PromptShape) -> Observation | None:
        return Observation("kv")
