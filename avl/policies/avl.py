"""A-VL, adaptive attention for large vision-language models (Zhang et al., arXiv 2409.14846)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from avl.policies.base import Observe, Policy, Store, check_count, check_fraction, check_percent, share


@dataclass(frozen=True)
class AVL(Policy):
    """Store S % of the image tokens, read the C % most critical at most steps, keep a window of the text.

    Based on Zhang et al., "A-VL: Adaptive Attention for Large Vision-Language Models", arXiv 2409.14846; Table 1 names the parameters.

    Args:
        S: secondary tokens: share of the image tokens that a layer stores, in %, ranked by the last prompt token's attention.
        C: core tokens: share of the image tokens that a core step reads, in %, at most S; None (or S) reads all secondary at every step.
        K: every K steps all secondary tokens are read and the core is chosen anew.
        P: share of the image tokens that stay in the prompt's hidden states after the second decoder layer, in %; None prunes nothing.
        T: text window in % of the longest text (prompt text + max new tokens); None keeps all text.
        update: "every": step t updates when t % K == 0 (the paper's text); "after": after every K core steps, t % (K + 1) == 0.

    Raises:
        ValueError: a parameter is out of range; names the parameter, the value and the range.
    """

    S: float
    C: float | None = None
    K: int = 3
    P: float | None = None
    T: float | None = None
    update: str = "every"

    name: ClassVar[str] = "AVL"

    def __post_init__(self) -> None:
        check_percent("S", self.S, "the share of image tokens stored, in percent")
        check_percent("C", self.C, "the share of image tokens read at core steps, in percent", optional=True)
        if self.C is not None and self.C > self.S:
            raise ValueError(f"C={self.C!r} is out of range: core tokens are chosen among the stored ones, so C is at most S={self.S!r}")
        check_count("K", self.K, 1)
        check_percent("P", self.P, "the share of image tokens kept in the prompt, in percent", optional=True)
        check_percent("T", self.T, "the share of text kept, in percent", optional=True)
        if self.update not in ("every", "after"):
            raise ValueError(f"update={self.update!r} is out of range: it is 'every' (t % K == 0) or 'after' (after every K core steps)")

    @property
    def title(self) -> str:
        return "A-VL"

    def prune(self, layer: int, n_image: int) -> int | None:
        # "after the second decoder layer": the scores of layer index 1 decide who enters layer index 2
        return share(self.P, n_image) if layer == 2 and self.P is not None else None

    def store(self, layer: int, n_image: int, n_text: int, max_new_tokens: int) -> Store:
        image = min(share(self.S, n_image), self.image_counts(layer, n_image))
        if self.T is None:
            return Store(image=image)
        window = share(self.T, n_text + max_new_tokens)
        return Store(image=image, window=window, recent=-(-window // 2))

    def select(self, layer: int, n_image: int) -> int | None:
        if self.C is None or self.C == self.S:
            return None
        return min(share(self.C, n_image), share(self.S, n_image), self.image_counts(layer, n_image))

    def is_update(self, t: int) -> bool:
        return t % (self.K if self.update == "every" else self.K + 1) == 0

    def observe(self, n_image: int, n_text: int, max_new_tokens: int) -> Observe:
        return Observe("shared" if self.T is not None else None)

    def at_stored(self, fraction: float, n_image: int, n_text: int, n_layers: int) -> AVL:
        check_fraction(fraction)
        text = n_text if self.T is None else min(n_text, share(self.T, n_text))
        image = (fraction * (n_image + n_text) - text) / n_image
        if image <= 0:
            raise ValueError(
                f"A-VL cannot store {fraction:.0%} of {n_image + n_text} tokens: it keeps {text} text tokens; raise the share or lower T"
            )
        # pruned layers hold at most P %: the two layers before it must make up for them
        stored = round(min(image * 100, 100.0), 3)
        return replace(self, S=stored, C=None if self.C is None else min(self.C, stored))


TABLE_3: tuple[tuple[str, str, tuple[tuple[int, int | None, int | None, int | None, int | None], ...]], ...] = (
    ("llava-1.5-7b", "LLaVA-1.5 7B", ((40, None, None, None, None), (40, 30, 3, None, None), (45, 30, 3, 90, None), (45, 30, 3, 90, 50))),
    ("llava-1.5-13b", "LLaVA-1.5 13B", ((40, None, None, None, None), (45, 30, 3, None, None), (45, 30, 3, 90, None), (45, 30, 3, 90, 60))),
    ("llava-1.6-7b", "LLaVA-1.6 7B", ((40, None, None, None, None), (45, 30, 3, 90, None), (45, 30, 3, 90, 70))),
    ("llava-1.6-13b", "LLaVA-1.6 13B", ((40, None, None, None, None), (45, 30, 3, 90, None), (45, 30, 3, 90, 70))),
)
"""The paper's Table 3, row by row: model, its name, then (S, C, K, P, T)."""

PRESETS: dict[str, AVL] = {model: AVL(*settings[-1]) for model, _, settings in TABLE_3}  # type: ignore[arg-type]
"""The last row of each model in Table 3: the smallest cache that the paper calls near lossless."""
