"""Which share of full attention's score a setting keeps: intervals of it, and a bound that may be looked at again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avl.evaluation.rows import DRAWS

BETS = tuple(np.geomspace(0.01, 0.98, 32))
"""Stakes of the sequential bound, as shares of the largest that cannot lose everything."""


def kept_interval(points: Sequence[float], full: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the share kept (0 to 1, or above), from a paired bootstrap over the samples.

    Args:
        points: a setting's score of each sample.
        full: full attention's, of the same samples.
    """
    ours, whole = np.asarray(points, float), np.asarray(full, float)
    drawn = np.random.default_rng(0).integers(len(ours), size=(DRAWS, len(ours)))
    base = whole[drawn].mean(axis=1)
    shares = np.divide(ours[drawn].mean(axis=1), base, out=np.zeros(DRAWS), where=base > 0)
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


def evidence(points: Sequence[float], full: Sequence[float], keep: float) -> float:
    """Return the evidence that a setting keeps less than ``keep`` of full attention's score: a fair gambler's wealth, 1 at the start.

    With d = score - keep × full's score of a sample, keeping enough means that d is at least 0 in the mean. A gambler who bets λ on
    every sample being short multiplies his wealth by 1 - λ d. For 0 ≤ λ < 1 / max d it is never negative, and while the setting keeps
    enough and samples are independent it cannot grow in the mean. So, by Ville's inequality, it ever reaches 20 with a probability of at
    most 5 %, however often one looks and whenever one stops (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
    betting", JRSS B 2024). The wealth is the mean over the constant bets :data:`BETS`; nothing is tuned to the data, and the samples'
    order does not count.

    Scores lie in 0 to 1. Where some exceed 1 (captions), the largest seen stands in for the bound, and 5 % holds about.
    """
    ours, whole = np.asarray(points, float), np.asarray(full, float)
    short = (ours - keep * whole) / max(1.0, ours.max(initial=0.0))
    logs = np.log1p(-np.outer(BETS, short)).sum(axis=1)
    return float(np.exp(np.minimum(logs, 600)).mean())


def upper_bound(points: Sequence[float], full: Sequence[float], error: float = 0.05) -> float:
    """Return an upper bound of the share kept that holds at all looks at once, with probability 1 - ``error``.

    It is the largest share against which :func:`evidence` stays below 1 / ``error``, to 0.0001; at most 2.
    """
    low, high = 0.0, 2.0
    if evidence(points, full, high) < 1 / error:
        return high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if evidence(points, full, middle) < 1 / error else (low, middle)
    return high
