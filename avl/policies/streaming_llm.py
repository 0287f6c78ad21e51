"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): attention sinks and the most recent tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from avl.policies.base import Policy, Store, check_count, check_fraction, check_percent, share


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keep the first ``sinks`` tokens and the most recent ones; attention plays no part. RoPE positions stay the original ones.

    Args:
        keep: entries stored, in % of the prompt's length; the budget stays constant while answering.
        sinks: first tokens of the prompt that are never evicted (fewer where the budget is smaller).

    Raises:
        ValueError: a parameter is out of range.
    """

    keep: float = 50
    sinks: int = 4

    name: ClassVar[str] = "StreamingLLM"
    pins_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_percent("keep", self.keep, "the share of the prompt's tokens stored, in percent")
        check_count("sinks", self.sinks, 0)

    def store(self, layer: int, n_image: int, n_text: int, max_new_tokens: int) -> Store:
        budget = share(self.keep, n_image + n_text)
        # one entry stays free to slide, or the newest token would be evicted at once
        sinks = min(self.sinks, budget - 1)
        return Store(image=0, window=budget, recent=budget - sinks, sinks=sinks)

    def at_stored(self, fraction: float, n_image: int, n_text: int, n_layers: int) -> StreamingLLM:
        check_fraction(fraction)
        return replace(self, keep=round(fraction * 100, 3))
