"""What one run's recorded attention shows: the numbers behind the paper's Figures 1, 3, 4 and 5.

Needs a trace recorded with ``scores=True`` (one Scores event per pass), best of the full-attention arm: a policy's scores are 0 where it
reads nothing.
"""

from __future__ import annotations

import numpy as np

from avl.cache.recorder import MODALITIES
from avl.policies.base import share
from avl.trace import Scores, Trace, unpack_scores


def held(scores: np.ndarray) -> np.ndarray:
    """Return the share of the attention ``[..., N]`` that the 1, 2, … most attended tokens hold together.

    Raises:
        ValueError: some of the score vectors ``[..., N]`` are all 0.
    """
    ordered = -np.sort(-np.asarray(scores, dtype=np.float64), axis=-1)
    total = ordered.sum(axis=-1, keepdims=True)
    if ordered.shape[-1] == 0 or not (total > 0).all():
        raise ValueError("which share of the attention a token holds needs at least one positive score")
    return np.cumsum(ordered, axis=-1) / total


def top_share(scores: np.ndarray, mass: float = 0.8) -> np.ndarray:
    """Share of the tokens, the most attended first, that together receive ``mass`` of the attention ``[..., N]``.

    The paper's sparsity statistic.
    """
    return (np.count_nonzero(held(scores) < mass * (1 - 1e-12), axis=-1) + 1) / np.shape(scores)[-1]


def tops(scores: np.ndarray, p: float) -> np.ndarray:
    """Return which tokens are the top p % of score vectors ``[..., N]``, as bool; of equal scores the earlier token comes first."""
    count = share(p, scores.shape[-1])
    if not 0 < count <= scores.shape[-1]:
        raise ValueError(f"p must be above 0 and at most 100, not {p!r}")
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, best, True, axis=-1)
    return chosen


def shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return which part of the chosen tokens two choices ``[..., N]`` of :func:`tops` have in common, ``[...]``."""
    return np.count_nonzero(first & second, axis=-1) / np.count_nonzero(first, axis=-1)


def ppci(first: np.ndarray, second: np.ndarray, p: float) -> float:
    """p-percentile concordance index of two score vectors ``[N]``: shared part of their top p % (Eq. 2). In [0, 1]."""
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"ppci compares two score vectors of one length, not {first.shape} and {second.shape}")
    return float(shared(tops(first, p), tops(second, p)))


def _scores(trace: Trace, arm: int) -> list[Scores]:
    events = trace.of(Scores, arm)
    if not events:
        raise ValueError(f"this trace holds no scores of arm {arm}: record it with scores=True")
    return events


def image_scores(trace: Trace, arm: int = 0) -> np.ndarray:
    """Scores over the image tokens, ``[passes, layers, N]``; pass 0 is the prompt's last query (Figure 3).

    Raises:
        ValueError: the trace holds no scores of that arm, or lists only the highest of each layer.
    """
    n = trace.start.n_image
    scores = np.stack([np.stack([unpack_scores(layer, n) for layer in event.image]) for event in _scores(trace, arm)])
    fewest = n - int(np.isnan(scores).sum(axis=2).max())
    if fewest < n:
        raise ValueError(
            f"this trace lists the {fewest} highest of {n} scores per layer, as the page records them, and these figures need all: record "
            "it with avl compare --scores --out FILE.json"
        )
    return scores


def modality_shares(trace: Trace, arm: int = 0) -> np.ndarray:
    """Attention on system, image, instruction, generated and in-between tokens per pass, mean over layers, ``[passes, 5]`` (Figure 1)."""
    rows = [[(*layer, 0.0)[:5] for layer in event.shares] for event in _scores(trace, arm) if event.shares is not None]
    if not rows:
        raise ValueError(f"the scores of arm {arm} come without shares of the modalities ({', '.join(MODALITIES)})")
    return np.asarray(rows).mean(axis=1)


def layer_concordance(trace: Trace, p: float, arm: int = 0) -> np.ndarray:
    """PPCI of every layer with the first, mean over the passes, ``[layers]`` (Figure 4)."""
    best = tops(image_scores(trace, arm), p)
    return shared(best, best[:, :1]).mean(axis=0)


def step_concordance(trace: Trace, p: float, arm: int = 0) -> np.ndarray:
    """PPCI of every pass with the first of the same layer, ``[passes, layers]`` (Figure 5)."""
    best = tops(image_scores(trace, arm), p)
    return shared(best, best[:1])


def sparsity(trace: Trace, mass: float = 0.8, arm: int = 0) -> np.ndarray:
    """Share of the image tokens that hold ``mass`` of the attention on the image, per pass and layer ``[passes, layers]``.

    The paper finds 22.88 % of the tokens with over 80 % of the attention (LLaVA-1.5-7B on OCRVQA).
    """
    return top_share(image_scores(trace, arm), mass)
