"""What the paper's figures 1, 3, 4 and 5 show, and where two answers part, from traces alone.

Needs a trace recorded with ``scores=True`` (one Scores event per pass), best of the full-attention arm: a policy's scores are 0 where it
reads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avl.cache.recorder import MODALITIES
from avl.policies.base import share
from avl.trace import End, Scores, Trace, unpack_scores


def top_share(scores: np.ndarray, mass: float = 0.8) -> float:
    """Share of the tokens, the most attended first, that together receive ``mass`` of the attention (the paper's sparsity statistic)."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if ordered.size == 0 or ordered.sum() <= 0:
        raise ValueError("top_share needs at least one positive score")
    return float(np.searchsorted(np.cumsum(ordered), mass * ordered.sum() * (1 - 1e-12)) + 1) / ordered.size


def ppci(first: np.ndarray, second: np.ndarray, p: float) -> float:
    """p-percentile concordance index of two score vectors ``[N]``: shared part of their top p % (Eq. 2). In [0, 1]."""
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"ppci compares two score vectors of one length, not {first.shape} and {second.shape}")
    count = share(p, first.size)
    if not 0 < count <= first.size:
        raise ValueError(f"p must be above 0 and at most 100, not {p!r}")
    tops = [set(np.argsort(-scores, kind="stable")[:count].tolist()) for scores in (first, second)]
    return len(tops[0] & tops[1]) / count


def _scores(trace: Trace, arm: int) -> list[Scores]:
    events = trace.of(Scores, arm)
    if not events:
        raise ValueError(f"this trace holds no scores of arm {arm}: record it with scores=True")
    return events


def image_scores(trace: Trace, arm: int = 0) -> np.ndarray:
    """Scores over the image tokens, ``[passes, layers, N]``; pass 0 is the prompt's last query (Figure 3)."""
    return np.stack([np.stack([unpack_scores(layer) for layer in event.image]) for event in _scores(trace, arm)])


def modality_shares(trace: Trace, arm: int = 0) -> np.ndarray:
    """Attention on system, image, instruction and generated tokens per pass, mean over the layers, ``[passes, 4]`` (Figure 1)."""
    rows = [event.shares for event in _scores(trace, arm) if event.shares is not None]
    if not rows:
        raise ValueError(f"the scores of arm {arm} come without shares of the modalities ({', '.join(MODALITIES)})")
    return np.asarray(rows).mean(axis=1)


def layer_concordance(trace: Trace, p: float, arm: int = 0) -> np.ndarray:
    """PPCI of every layer with the first, mean over the passes, ``[layers]`` (Figure 4)."""
    scores = image_scores(trace, arm)
    return np.array([[ppci(step[0], layer, p) for layer in step] for step in scores]).mean(axis=0)


def step_concordance(trace: Trace, p: float, arm: int = 0) -> np.ndarray:
    """PPCI of every pass with the first of the same layer, ``[passes, layers]`` (Figure 5)."""
    scores = image_scores(trace, arm)
    return np.array([[ppci(first, now, p) for first, now in zip(scores[0], step, strict=True)] for step in scores])


def sparsity(trace: Trace, mass: float = 0.8, arm: int = 0) -> np.ndarray:
    """Share of the image tokens that hold ``mass`` of the attention on the image, per pass and layer ``[passes, layers]``.

    The paper finds 22.88 % of the tokens with over 80 % of the attention (LLaVA-1.5-7B on OCRVQA).
    """
    return np.array([[top_share(layer, mass) for layer in step] for step in image_scores(trace, arm)])


@dataclass(frozen=True)
class Divergence:
    """Where two answers part. ``common``: tokens of the shared prefix; ``same``: the answers are equal."""

    common: int
    same: bool
    first: tuple[int | None, int | None]


def divergence(trace: Trace, arms: tuple[int, int] = (0, 1)) -> Divergence:
    """Compare the answers of two arms of one trace. Raises ValueError where one of them has not ended."""
    answers = []
    for arm in arms:
        ends = trace.of(End, arm)
        if not ends:
            raise ValueError(f"arm {arm} of this trace has not ended: there is nothing to compare yet")
        answers.append(ends[0].tokens)
    one, two = answers
    common = next((place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    parted = tuple(answer[common] if common < len(answer) else None for answer in answers)
    return Divergence(common=common, same=one == two, first=(parted[0], parted[1]))
