"""Continuity of vision attention and decay of text attention over a long answer, both under full attention (A-VL, section 3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from avl.cache.cache import make_cache
from avl.cache.recorder import Recorder
from avl.engine.cuda_graphs import make_decoder
from avl.evaluation.figures.attention import shared, tops
from avl.evaluation.lengths.bins import means
from avl.policies import Full

SINKS = 4
"""First tokens of a sequence; they draw attention whatever they say (StreamingLLM), so that they are counted apart from old text."""

AGES = (0, 16, 64, 256, 1024)
"""How many tokens ago a text token stands: where the groups begin. The token that asks is 0 tokens ago."""

GROUPS = (f"first {SINKS}", *(f"{a} to {b - 1} ago" for a, b in pairwise(AGES)), f"{AGES[-1]} ago and more")


@dataclass
class LongAnswer:
    """One answer of a given length, and its attention.

    Attributes:
        tokens: of the answer, ``[steps + 1]``; its ends of sequence are left out of the choice.
        p: share of the image tokens that concordance compares, in %.
        concordance: "prompt" or a number of steps back -> PPCI with that pass's scores, mean over layers, at every decode step; NaN
            where there is no pass so far back.
        image: share of the attention on image tokens at every decode step, mean over layers.
        text: share of the attention on text that each of :data:`GROUPS` gets, by decode step; mean over layers.
    """

    tokens: list[int]
    p: float
    concordance: dict[str, list[float]]
    image: list[float] = field(default_factory=list)
    text: list[list[float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the means by bin as plain values."""
        text = np.array(self.text).T
        return {
            "p": self.p,
            "concordance": {back: means(values) for back, values in self.concordance.items()},
            "image": means(self.image),
            "text": {name: means(values) for name, values in zip(GROUPS, text, strict=True)},
        }


def ends_of(model: Any) -> list[int]:
    """Return the ids that end a model's sequence."""
    end = model.generation_config.eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)


@torch.inference_mode()
def long_answer(
    model: Any,
    inputs: dict[str, Any],
    steps: int,
    p: float = 50,
    back: tuple[int, ...] = (1, 3),
    tell: Callable[[int], None] = lambda done: None,
) -> LongAnswer:
    """Answer greedily with full attention for exactly ``steps`` decode steps, and measure the attention of each.

    Args:
        model: an attached model.
        inputs: of one row.
        steps: decode steps; an end of sequence is never chosen, so that a model may ramble.
        p: share of the image tokens that concordance compares, in % (the paper's PPCI, Eq. 2).
        back: how many steps back the scores are compared with, besides those of the prompt.
        tell: takes the number of steps done.

    Raises:
        ValueError: the model has no room for so many tokens.
    """
    cache = make_cache(model, inputs, Full(), max_new_tokens=steps + 1)
    row = cache.rows[0]
    image = np.zeros(row.length + steps + 1, bool)
    image[list(row.image)] = True
    recorder, decoder, ends = cache.record(), make_decoder(model, cache), ends_of(model)
    found = LongAnswer([], p, {"prompt": [], **{str(lag): [] for lag in back}})
    logits = decoder.prefill(inputs)
    first = _tops(recorder, p)
    before: deque[np.ndarray] = deque([first], maxlen=max(back))
    for step in range(1, steps + 1):
        logits[:, ends] = -torch.inf
        found.tokens.append(int(logits[0].argmax()))
        logits = decoder.step(torch.tensor(found.tokens[-1:], device=logits.device))
        now = _tops(recorder, p)
        found.concordance["prompt"].append(_shared(first, now))
        for lag in back:
            found.concordance[str(lag)].append(_shared(before[-lag], now) if lag <= len(before) else float("nan"))
        before.append(now)
        on_image, by_age = _ages(recorder, image)
        found.image.append(on_image)
        found.text.append(by_age)
        tell(step)
    logits[:, ends] = -torch.inf
    found.tokens.append(int(logits[0].argmax()))
    return found


def _tops(recorder: Recorder, p: float) -> np.ndarray:
    """Return which image tokens are the top ``p`` % in each layer, ``[layers, N]``."""
    return tops(np.stack([layer.image for layer in recorder.layers()]), p)


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    return float(shared(one, other).mean())


def _ages(recorder: Recorder, image: np.ndarray) -> tuple[float, list[float]]:
    """Return the share of the attention on images, and how that on text splits into :data:`GROUPS`; means over layers."""
    on_image, by_age = [], []
    for positions, weights in recorder.tokens():
        text = ~image[positions]
        on_image.append(float(weights[~text].sum() / weights.sum()))
        places, of_text = positions[text], weights[text]
        group = np.searchsorted(AGES, positions.max() - places, side="right")
        sums = np.bincount(np.where(places < SINKS, 0, group), of_text, minlength=len(GROUPS))
        by_age.append(sums / max(sums.sum(), np.finfo(float).tiny))
    return float(np.mean(on_image)), np.mean(by_age, axis=0).tolist()
