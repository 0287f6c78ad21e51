"""Rankings: turn scores and counts into the tokens to keep, read or evict. No other file ranks tokens."""

from __future__ import annotations

import numpy as np
import torch


def ranking(scores: torch.Tensor) -> torch.Tensor:
    """Return the indices ``[..., n]`` from the best score to the worst along the last dimension; ties go to the lower index.

    torch.topk guarantees no order among ties; a stable sort does.
    """
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices ``[..., count]`` of the ``count`` best scores, ascending; ties go to the lower index."""
    return ranking(scores)[..., :count].sort(dim=-1).values


def among_best(scores: torch.Tensor, count: int, ties: torch.Tensor) -> np.ndarray:
    """Return a bool mask ``[..., n]`` of the ``count`` best scores. On a CPU.

    Args:
        scores: ``[..., n]``.
        count: from 1 to n.
        ties: ``[..., n]``, distinct; among equal scores, the lower value wins.
    """
    # numpy's partition is four times as fast as torch's sort, which matters in a step of a small model
    values, n = scores.numpy(), scores.shape[-1]
    chosen: np.ndarray = values >= np.partition(values, n - count, axis=-1)[..., n - count, None]
    if np.count_nonzero(chosen) == count * (chosen.size // n):
        return chosen
    order = ties.argsort(dim=-1)  # equal scores at the threshold
    places = order.gather(-1, ranking(scores.gather(-1, order))[..., :count])
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(-1, places, True).numpy()


def heavy_and_recent(scores: torch.Tensor, keep: int, recent: int, evicting: bool = True) -> torch.Tensor:
    """Return the indices ``[..., keep]``, ascending, of the last ``recent`` tokens and the best of the others.

    Args:
        scores: ``[..., n]`` in order of position.
        keep: number of tokens that stay, at most n.
        recent: number of newest tokens that stay regardless of score, at most ``keep``.
        evicting: True keeps what repeated eviction of the smallest score would leave, where ties evict the lower position (H2O); False
            ranks the tokens, where ties keep the lower position (SnapKV).
    """
    n = scores.shape[-1]
    older, heavy = n - recent, keep - recent
    if evicting:
        # flipped, so that ties go to the higher position: the lower one is evicted first
        chosen = older - 1 - ranking(scores[..., :older].flip(-1))[..., :heavy]
    else:
        chosen = ranking(scores[..., :older])[..., :heavy]
    newest = torch.arange(older, n, device=scores.device).expand(*scores.shape[:-1], recent)
    return torch.cat([chosen.sort(dim=-1).values, newest], dim=-1)


def max_pool(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Return, for each of ``scores [..., n]``, the largest one within ``width // 2`` positions; ``width`` is odd."""
    if scores.shape[-1] == 0:
        return scores
    return torch.nn.functional.max_pool1d(scores.reshape(1, -1, scores.shape[-1]), width, stride=1, padding=width // 2).view_as(scores)
