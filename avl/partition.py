"""From scores and shares to sets: who stays, who is read, who goes. Every ranking of the project is made here."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch


def share(percent: float, n: int) -> int:
    """``ceil(percent * n / 100)`` without the float error of ``0.07 * 100``; percent as it is written in decimal (7.1 means 71/10)."""
    exact = Fraction(str(percent)) * n / 100
    return -(-exact.numerator // exact.denominator)


def ranking(scores: torch.Tensor) -> torch.Tensor:
    """Indices ``[..., n]`` from the best score to the worst along the last dimension; ties go to the lower index.

    torch.topk promises no order among ties, a stable sort does.
    """
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` best indices ``[..., count]`` in ascending order; ties go to the lower index."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and 0 < count < scores.shape[-1]:
        return _best_on_a_cpu(scores, count)
    return ranking(scores)[..., :count].sort(dim=-1).values


def _best_on_a_cpu(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The same in a third of the time of torch's sort, which a step of a small model would feel."""
    bits = (scores.detach().numpy() + 0.0).view(np.int32)  # -0.0 becomes 0.0, which it equals
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))  # integers in the order of the floats
    n = scores.shape[-1]
    unique = (rising.astype(np.int64) << 32) + np.arange(n - 1, -1, -1)
    chosen = np.argpartition(unique, n - count, axis=-1)[..., n - count :]
    chosen.sort(axis=-1)
    return torch.from_numpy(chosen)


def weakest(scores: torch.Tensor, order: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Index ``[...]`` of the smallest score among ``candidates`` along the last dimension; ties go to the lower ``order`` (position)."""
    masked = torch.where(candidates, scores, torch.inf)
    tied = masked == masked.amin(dim=-1, keepdim=True)
    return torch.where(tied & candidates, order, torch.iinfo(order.dtype).max).argmin(dim=-1)


def heavy_and_recent(scores: torch.Tensor, keep: int, recent: int) -> torch.Tensor:
    """H2O's set ``[..., keep]``, ascending: the last ``recent`` tokens and the best of the others by accumulated score.

    Equals evicting the smallest score outside the recent part, lower position first among ties, until ``keep`` are left.

    Args:
        scores: ``[..., n]`` accumulated attention in order of position.
        keep: entries that stay, at most n. recent: newest entries that are never evicted, at most ``keep``.
    """
    n = scores.shape[-1]
    older, heavy = n - recent, keep - recent
    # flipped, so that the stable sort gives ties to the higher position: the lower one is evicted first
    chosen = older - 1 - ranking(scores[..., :older].flip(-1))[..., :heavy]
    newest = torch.arange(older, n, device=scores.device).expand(*scores.shape[:-1], recent)
    return torch.cat([chosen.sort(dim=-1).values, newest], dim=-1)
