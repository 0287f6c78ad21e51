"""A task whose right answers are known in advance for every setting, so that what a search finds can be checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avl.evaluation.cells import Answer
from avl.policies import Full, Policy


class Known:
    """Sample i is answered right where its luck is below what the policy keeps: the same luck for all policies, so that they are paired.

    Args:
        kept: policy -> share of samples that it answers right, 0 to 1.
        used: policy -> shares stored and read.
        size: samples.
        seed: of the luck.
        fails_at: how many samples may be asked before it is interrupted.
        made: what else makes its answers.
    """

    def __init__(
        self,
        kept: Callable[[Any], float],
        used: Callable[[Any], tuple[float, float]],
        size: int = 200,
        seed: int = 0,
        fails_at: float = float("inf"),
        name: str = "known",
        **made: Any,
    ) -> None:
        self.name, self.size, self.made = name, size, {"seed": seed, **made}
        self.asked: list[tuple[Policy, int]] = []
        self._kept, self._used, self._fails_at = kept, used, fails_at
        self._luck = np.random.default_rng(seed).random(size)

    def ask(self, policy: Policy, numbers: Sequence[int]) -> list[Answer]:
        if len(self.asked) + len(numbers) > self._fails_at:
            raise KeyboardInterrupt
        self.asked += [(policy, number) for number in numbers]
        share, (stored, read) = (1.0, (1.0, 1.0)) if isinstance(policy, Full) else (self._kept(policy), self._used(policy))
        words = {number: "right" if self._luck[number] < share else "wrong" for number in numbers}
        return [Answer(number, word, 1000 * stored, 1000 * read, 1000, 0.0) for number, word in words.items()]

    def scores(self, texts: Mapping[int, str]) -> dict[int, float]:
        return {number: float(text == "right") for number, text in texts.items()}
