"""A-VL, adaptive attention for large vision-language models (Zhang et al., arXiv 2409.14846)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from avl.policies.base import Coverage, KVBudget, Observation, Policy, PromptShape, number, param, share
from avl.policies.lattice import lattice

PRUNED_BEFORE = 2
"""P prunes "after the second decoder layer": the scores of layer index 1 decide which image tokens enter layer index 2."""


@dataclass(frozen=True)
class AVL(Policy):
    """Store S % of the image tokens, read the most critical C % at most steps, and keep a window of the text.

    Based on Zhang et al., "A-VL: Adaptive Attention for Large Vision-Language Models", arXiv 2409.14846; Table 1 names the parameters.

    In a conversation, S, P and spread act on the pictures of each turn alone, when the turn brings them, and what earlier turns stored
    stays; C and T are shares of all image tokens and of all text of the conversation.

    Args:
        S: secondary tokens: % of the image tokens that a layer stores, ranked by the last prompt token's attention.
        C: core tokens: % of the image tokens that a core step reads, at most S; None (or S) reads all secondary tokens at every step.
        K: update interval: every K steps, all secondary tokens are read and the core is re-selected.
        P: % of the image tokens that stay in the prompt's hidden states after the second decoder layer; None prunes none.
        T: size of the text window in % of prompt text + max new tokens; None keeps all text.
        spread: % of the image tokens that a layer stores evenly over the picture whatever they score, at most S; half as many of them are
            always in the core, and P keeps those of the layer that ranks. Counts stay as they are. None is the paper. See lattice.py.
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

    spread: float | None = param(
        None, label="spread", help="the share of image tokens stored evenly over the picture whatever they score, at most S",
        start=33, off=True, optional=True,
    )  # fmt: skip

    name: ClassVar[str] = "AVL"
    title: ClassVar[str] = "A-VL"
    budget: ClassVar[str | None] = "S"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.C is not None and self.C > self.S:
            raise ValueError(f"C={self.C!r} is out of range: core tokens are chosen among the stored ones, so C is at most S={self.S!r}")

        if self.spread is not None and self.spread > self.S:
            raise ValueError(f"spread={self.spread!r} is out of range: spread tokens are stored ones, so spread is at most S={self.S!r}")

    def prune(self, layer: int, shape: PromptShape) -> int | None:
        return share(self.P, shape.new_image) if layer == PRUNED_BEFORE and self.P is not None else None

    def store(self, layer: int, shape: PromptShape) -> KVBudget:
        image = self.left(layer, shape) + min(share(self.S, shape.new_image), self.present(layer, shape))
        if self.T is None:
            return KVBudget(image=image)
        window = share(self.T, shape.n_text + shape.max_new_tokens)
        return KVBudget(image=image, window=window, recent=-(-window // 2))

    def select(self, layer: int, shape: PromptShape) -> int | None:
        if self.C is None or self.C == self.S or shape.n_image == 0:
            return None
        return min(share(self.C, shape.n_image), self.store(layer, shape).image)

    def cover(self, layer: int, shape: PromptShape) -> Coverage | None:
        if self.spread is None:
            return None
        core: list[int] = []
        others: list[int] = []
        first = 0
        for count in shape.arrivals:  # a lattice for the pictures of each turn
            places = [first + token for token in lattice(count, share(self.spread, count), layer)]
            read = share(self.spread / 2, count)
            core, others, first = core + places[:read], others + places[read:], first + count
        return Coverage((*core, *others), len(core))

    def is_update(self, t: int) -> bool:
        return t % (self.K if self.update == "every" else self.K + 1) == 0

    def observe(self, layer: int, shape: PromptShape) -> Observation | None:
        return Observation("shared") if self.T is not None else None

    def changed(self, **values: Any) -> Self:
        most = number(values.get("S", self.S))
        for name in ("C", "spread"):
            part = getattr(self, name)
            if name not in values and None not in (most, part) and part > most:
                values[name] = most
        return replace(self, **values)

    def with_budget(self, thousandths: int) -> Self:
        full = replace(self, C=None, spread=None)
        smaller = Policy.with_budget(full, thousandths)
        C, spread = (None if part is None else min(part, smaller.S) for part in (self.C, self.spread))
        return replace(smaller, C=C, spread=spread)
