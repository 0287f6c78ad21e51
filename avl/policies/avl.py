"""A-VL, adaptive attention for large vision-language models (Zhang et al., arXiv 2409.14846)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from avl.policies.base import KVBudget, Observation, Policy, PromptShape, param, share

PRUNED_BEFORE = 2
"""P prunes "after the second decoder layer": the scores of layer index 1 decide which image tokens enter layer index 2."""


@dataclass(frozen=True)
class AVL(Policy):
    """Store S % of the image tokens, read the most critical C % at most steps, and keep a window of the text.

    Based on Zhang et al., "A-VL: Adaptive Attention for Large Vision-Language Models", arXiv 2409.14846; Table 1 names the parameters.

    Args:
        S: secondary tokens: % of the image tokens that a layer stores, ranked by the last prompt token's attention.
        C: core tokens: % of the image tokens that a core step reads, at most S; None (or S) reads all secondary tokens at every step.
        K: update interval: every K steps, all secondary tokens are read and the core is re-selected.
        P: % of the image tokens that stay in the prompt's hidden states after the second decoder layer; None prunes none.
        T: size of the text window in % of prompt text + max new tokens; None keeps all text.
        update: "every": step t is an update step if t % K == 0 (the paper's text); "after": after K core steps each, t % (K + 1) == 0.

    Raises:
        ValueError: a parameter is out of range; names it, its value and the range.
    """

    S: float = param(label="secondary", help="the share of image tokens stored after prefill", start=45)
    C: float | None = param(None, label="core", help="the share of image tokens read at core steps, at most S", start=30, optional=True)
    K: int = param(3, label="update every", help="the number of steps from one update of the core to the next", unit="steps", high=32)
    P: float | None = param(
        None, label="prefill keeps", help="the share of image tokens kept in prefill after the second layer", start=90, optional=True
    )
    T: float | None = param(
        None, label="text window", help="the share of prompt text + max new tokens that the text cache holds", start=60, optional=True
    )
    update: str = param(
        "every", label="update", help="when the core is chosen anew, at t % K == 0 or after every K core steps", choices=("every", "after")
    )

    name: ClassVar[str] = "AVL"
    title: ClassVar[str] = "A-VL"
    budget: ClassVar[str | None] = "S"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.C is not None and self.C > self.S:
            raise ValueError(f"C={self.C!r} is out of range: core tokens are chosen among the stored ones, so C is at most S={self.S!r}")

    def prune(self, layer: int, shape: PromptShape) -> int | None:
        return share(self.P, shape.n_image) if layer == PRUNED_BEFORE and self.P is not None else None

    def store(self, layer: int, shape: PromptShape) -> KVBudget:
        image = min(share(self.S, shape.n_image), self.present(layer, shape))
        if self.T is None:
            return KVBudget(image=image)
        window = share(self.T, shape.n_text + shape.max_new_tokens)
        return KVBudget(image=image, window=window, recent=-(-window // 2))

    def select(self, layer: int, shape: PromptShape) -> int | None:
        if self.C is None or self.C == self.S:
            return None
        return min(share(self.C, shape.n_image), self.store(layer, shape).image)

    def is_update(self, t: int) -> bool:
        return t % (self.K if self.update == "every" else self.K + 1) == 0

    def observe(self, layer: int, shape: PromptShape) -> Observation | None:
        return Observation("shared") if self.T is not None else None

    def _with_budget(self, thousandths: int) -> Self:
        full = replace(self, C=None)
        smaller = Policy._with_budget(full, thousandths)
        return replace(smaller, C=None if self.C is None else min(self.C, smaller.S))
