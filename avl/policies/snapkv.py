"""SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469): attention from the end of the prompt decides which earlier tokens to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl.policies.base import KVBudget, Observation, Policy, PromptShape, param, share


@dataclass(frozen=True)
class SnapKV(Policy):
    """Keep the last ``window`` prompt tokens and, per key-value head, the earlier tokens they attend to most. Ignores modalities.

    The attention weights of those last tokens are summed per earlier token and max-pooled over positions, so that neighbors of an attended
    token are kept too. All generated tokens are kept. A later turn of a conversation that brings pictures is a prompt of its own: ``keep``
    % of its new tokens stay, ranked among themselves; of one that brings none, all do. What was kept before stays.

    Args:
        keep: prompt tokens stored, in % of the prompt's length, including the observation window.
        window: number of last prompt tokens that observe and stay; of these, at most the budget is kept, the most recent ones.
        pool: width of the max-pool, odd.

    Raises:
        ValueError: a parameter is out of range.
    """

    keep: float = param(50, label="keeps", help="the share of the prompt's tokens stored")
    window: int = param(32, label="observers", help="the number of last prompt tokens that observe and stay", unit="tokens", high=128)
    pool: int = param(7, label="pooling", help="the width of the max-pool over positions", unit="tokens", high=31, odd=True)

    name: ClassVar[str] = "SnapKV"
    title: ClassVar[str] = "SnapKV"
    pins_image: ClassVar[bool] = False
    budget: ClassVar[str | None] = "keep"

    def prompt_budget(self, layer: int, shape: PromptShape) -> int:
        """Return how many tokens ``layer`` keeps of a prompt, or of what a later turn feeds with its pictures."""
        return share(self.keep, shape.new)

    def store(self, layer: int, shape: PromptShape) -> KVBudget:
        most = self.prompt_budget(layer, shape)
        recent = min(self.window, most)
        if shape.past is not None:
            return KVBudget(image=0, turn=most if shape.new_image else None, recent=recent)
        return KVBudget(image=0, prompt=most, recent=recent)

    def observe(self, layer: int, shape: PromptShape) -> Observation | None:
        return Observation("kv", queries=self.window, pool=self.pool, decode=False)
