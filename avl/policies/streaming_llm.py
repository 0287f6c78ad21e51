"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): attention sinks and the most recent tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl.policies.base import KVBudget, Policy, PromptShape, param, share


@dataclass(frozen=True)
class StreamingLLM(Policy):
    """Keep the first ``sinks`` tokens and the most recent ones, regardless of attention. RoPE positions stay the original ones.

    Args:
        keep: tokens stored, in % of the prompt's length; constant while answering.
        sinks: number of first prompt tokens that are never evicted (fewer if the budget is smaller).

    Raises:
        ValueError: a parameter is out of range.
    """

    keep: float = param(50, label="keeps", help="the share of the prompt's tokens stored")
    sinks: int = param(4, label="sink tokens", help="the number of first tokens that are never evicted", unit="tokens", low=0, high=64)

    name: ClassVar[str] = "StreamingLLM"
    title: ClassVar[str] = "StreamingLLM"
    pins_image: ClassVar[bool] = False
    budget: ClassVar[str | None] = "keep"

    def store(self, layer: int, shape: PromptShape) -> KVBudget:
        window = share(self.keep, shape.length)
        # at least one slot for recent tokens, or the newest would be evicted at once
        sinks = min(self.sinks, window - 1)
        return KVBudget(image=0, window=window, recent=window - sinks, sinks=sinks)
