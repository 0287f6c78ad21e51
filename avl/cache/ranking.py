"""Rankings: turn scores and counts into the tokens to keep, read or evict. No other file ranks tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from avl.policies import Policy, PromptShape

if TYPE_CHECKING:
    from avl.cache.slots import WindowPlan


class Cover:
    """The image tokens that the layers hold whatever they score (``Policy.cover``), as weights that replace their scores.

    Weights are above any score, which is at most 1, and fall from a coverage's first token to its last; 0 means no weight.
    """

    def __init__(self, policy: Policy, shape: PromptShape) -> None:
        found = [policy.cover(layer, shape) for layer in range(shape.n_layers)]
        self._weights: torch.Tensor | None = None  # [layers, 2, N]: to store, and to keep in the core
        if any(cover is not None for cover in found):
            self._weights = torch.zeros(shape.n_layers, 2, shape.n_image)
            for layer, cover in zip(self._weights, found, strict=True):
                if cover is not None:
                    places = torch.tensor(cover.stored, dtype=torch.int64)
                    layer[:, places] = torch.linspace(3, 2, max(2, len(places)))[: len(places)]
                    layer[1, places[cover.core :]] = 0

    def to(self, device: torch.device) -> None:
        """Move the weights to a device, all layers' at once."""
        if self._weights is not None:
            self._weights = self._weights.to(device)

    def of(self, layer: int, image_idx: torch.Tensor, core: bool) -> torch.Tensor | None:
        """Return the weights, shaped as ``image_idx``, of those image tokens in ``layer``; None where none has one.

        Args:
            layer: number of the layer.
            image_idx: image tokens, of any shape.
            core: weights for the core, else those for what is stored.
        """
        if self._weights is None:
            return None
        self.to(image_idx.device)
        return self._weights[layer, int(core)][image_idx]


def lift(scores: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Return ``scores`` with those replaced that have a weight (see :class:`Cover`); both of one shape."""
    return scores if weights is None else torch.where(weights > 0, weights.to(scores.dtype), scores)


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


def best_of_prompt(window: WindowPlan, scores: torch.Tensor, stay: int) -> torch.Tensor:
    """Return the indices ``[..., stay]``, ascending, of a prompt's tokens that stay in a window whose tokens scores rank.

    Args:
        window: the layer's plan.
        scores: ``[..., n]`` of the prompt's tokens, in order of position.
        stay: number of tokens that stay, at most n.
    """
    observation, n, recent = window.observation, scores.shape[-1], min(window.recent, stay)
    assert observation is not None, "scores are there to rank"
    if observation.pool > 1:
        scores = torch.cat([max_pool(scores[..., : n - recent], observation.pool), scores[..., n - recent :]], dim=-1)
    return heavy_and_recent(scores, stay, recent, evicting=observation.decode)


def survivors(scores: torch.Tensor, safe: torch.Tensor, keep: int) -> torch.Tensor:
    """Return the indices ``[..., keep]``, ascending, that repeated eviction of the smallest score leaves; ties evict the lower index.

    Args:
        scores: ``[..., n]`` in order of position.
        safe: bool ``[..., n]``, tokens that are never evicted, at most ``keep`` of them.
        keep: number of tokens that stay, at most n.
    """
    n = scores.shape[-1]
    lifted = torch.where(safe, torch.inf, scores)
    return (n - 1 - ranking(lifted.flip(-1))[..., :keep]).sort(dim=-1).values


def max_pool(scores: torch.Tensor, width: int) -> torch.Tensor:
    """Return, for each of ``scores [..., n]``, the largest one within ``width // 2`` positions; ``width`` is odd."""
    if scores.shape[-1] == 0:
        return scores
    return torch.nn.functional.max_pool1d(scores.reshape(1, -1, scores.shape[-1]), width, stride=1, padding=width // 2).view_as(scores)
