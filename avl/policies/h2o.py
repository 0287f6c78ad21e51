"""H2O, heavy-hitter oracle (Zhang et al., NeurIPS 2023, arXiv 2306.14048): the A-VL paper's language-model baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from avl.policies.base import Observe, Policy, Store, check_fraction, check_percent, share


@dataclass(frozen=True)
class H2O(Policy):
    """Keep the most recent tokens and, per key-value head, those that gathered most attention. Knows no modalities.

    Args:
        keep: entries stored, in % of the prompt's length; the budget stays constant while answering, as in the authors' code.
        recent: share of that budget for the most recent tokens, in %; the A-VL paper compares against 75 recent, 25 heavy.

    Raises:
        ValueError: a parameter is out of range.
    """

    keep: float = 50
    recent: float = 75

    name: ClassVar[str] = "H2O"
    pins_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_percent("keep", self.keep, "the share of the prompt's tokens stored, in percent")
        check_percent("recent", self.recent, "the share of the stored tokens that are the most recent, in percent")

    def store(self, layer: int, n_image: int, n_text: int, max_new_tokens: int) -> Store:
        budget = share(self.keep, n_image + n_text)
        return Store(image=0, window=budget, recent=share(self.recent, budget))

    def observe(self, n_image: int, n_text: int, max_new_tokens: int) -> Observe:
        return Observe("kv")

    def at_stored(self, fraction: float, n_image: int, n_text: int, n_layers: int) -> H2O:
        check_fraction(fraction)
        return replace(self, keep=round(fraction * 100, 3))
