"""From scores and shares to sets: who stays, who is read, who goes. Every ranking of the project is made here."""

from __future__ import annotations

import numpy as np
import torch


def ranking(scores: torch.Tensor) -> torch.Tensor:
    """Indices ``[..., n]`` from the best score to the worst along the last dimension; ties go to the lower index.

    torch.topk promises no order among ties, a stable sort does.
    """
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` best indices ``[..., count]`` in ascending order; ties go to the lower index."""
    return ranking(scores)[..., :count].sort(dim=-1).values


def among_best(scores: torch.Tensor, count: int, ties: torch.Tensor) -> np.ndarray:
    """Which are among the ``count`` best: bool ``[..., n]``; of equal scores the one with the lower of ``ties`` wins. On a CPU.

    Args:
        scores: ``[..., n]``. count: from 1 to n. ties: ``[..., n]``, distinct.
    """
    # numpy's partition takes a quarter of the time of torch's sort, which a step of a small model would feel
    values, n = scores.numpy(), scores.shape[-1]
    chosen: np.ndarray = values >= np.partition(values, n - count, axis=-1)[..., n - count, None]
    if np.count_nonzero(chosen) == count * (chosen.size // n):
        return chosen
    order = ties.argsort(dim=-1)  # equal scores at the border
    places = order.gather(-1, ranking(scores.gather(-1, order))[..., :count])
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(-1, places, True).numpy()


def heavy_and_recent(scores: torch.Tensor, keep: int, recent: int, evicting: bool = True) -> torch.Tensor:
    """Return the set ``[..., keep]``, ascending, of the last ``recent`` tokens and the best of the others.

    Args:
        scores: ``[..., n]`` in order of position.
        keep: tokens that stay, at most n.
        recent: newest tokens that stay whatever their score, at most ``keep``.
        evicting: equal what evicting the smallest score, lower position first among ties, until ``keep`` are left would give (H2O);
            False: rank, and ties go to the lower position (SnapKV).
    """
    n = scores.shape[-1]
    older, heavy = n - recent, keep - recent
    if evicting:
        # flipped, so that the stable sort gives ties to the higher position: the lower one is evicted first
        chosen = older - 1 - ranking(scores[..., :older].flip(-1))[..., :heavy]
    else:
        chosen = ranking(scores[..., :older])[..., :heavy]
    newest = torch.arange(older, n, device=scores.device).expand(*scores.shape[:-1], recent)
    return torch.cat([chosen.sort(dim=-1).values, newest], dim=-1)


def max_pool(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Return the largest score within ``width // 2`` positions of each, along the last dimension ``[..., n]``; ``width`` is odd."""
    if scores.shape[-1] == 0:
        return scores
    return torch.nn.functional.max_pool1d(scores.reshape(1, -1, scores.shape[-1]), width, stride=1, padding=width // 2).view_as(scores)
