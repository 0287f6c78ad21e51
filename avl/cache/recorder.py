"""Keeps the attention of one row, layer by layer, for analysis: scores over its image tokens and the share of each modality.

Off unless asked for: a recorded step asks every layer for all its scores, which its time includes.

Shapes: N image tokens, n entries read, G key-value heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from avl.cache.layout import Row

MODALITIES = ("system", "image", "instruction", "generated")


@dataclass(frozen=True)
class LayerAttention:
    """One query's attention in one layer: ``image [N]`` (0 where not read) and ``shares [4]`` in the order of :data:`MODALITIES`."""

    image: np.ndarray
    shares: tuple[float, float, float, float]


class Recorder:
    """Attention of one row's last query, one entry per layer; every pass overwrites the one before."""

    def __init__(self, row: Row, n_layers: int) -> None:
        self._row = row
        first_image = row.image[0]
        self._image = {position: ordinal for ordinal, position in enumerate(row.image)}
        self._kinds = [1 if position in self._image else 0 if position < first_image else 2 for position in range(row.length)]
        self._raw: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * n_layers

    def note(self, layer: int, scores: torch.Tensor, positions: torch.Tensor) -> None:
        """Remember ``scores [n]`` (or ``[G, n]``) over entries at ``positions`` of the same shape, counted from the row's first token.

        Copies nothing to the host: that waits until someone asks, outside of a step's time.
        """
        self._raw[layer] = (scores.detach().clone(), positions.clone())

    def layers(self) -> list[LayerAttention]:
        """The last pass, per layer. Waits for the device."""
        result = []
        for raw in self._raw:
            assert raw is not None, "every layer was noted"
            weights = raw[0].double().cpu().numpy()
            places = raw[1].cpu().numpy()
            heads = weights.shape[0] if weights.ndim == 2 else 1
            image, shares = np.zeros(self._row.n_image), np.zeros(4)
            for weight, position in zip(weights.ravel() / heads, places.ravel(), strict=True):
                kind = self._kinds[position] if position < self._row.length else 3
                shares[kind] += weight
                if kind == 1:
                    image[self._image[int(position)]] += weight
            system, picture, instruction, generated = shares.tolist()
            result.append(LayerAttention(image, (system, picture, instruction, generated)))
        return result
