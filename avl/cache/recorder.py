"""Recording of one row's attention, layer by layer, for analysis: scores over its image tokens and the share of each modality.

Off by default: a recorded step computes all scores in every layer, which makes it slower.

Shapes: N image tokens, n tokens read, G key-value heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from avl.cache.layout import Row

MODALITIES = ("system", "image", "instruction", "generated", "between")
"""What a token read may be: the kinds of ``Row.kinds``, and tokens of the answer."""

_GENERATED = MODALITIES.index("generated")


@dataclass(frozen=True)
class LayerAttention:
    """One query's attention in one layer: ``image [N]`` (0 where not read) and ``shares [5]`` in the order of :data:`MODALITIES`."""

    image: np.ndarray
    shares: tuple[float, ...]


class Recorder:
    """Attention of one row's last query in every layer; each pass overwrites the previous one."""

    def __init__(self, row: Row, n_layers: int) -> None:
        self._row = row
        # of every position of the prompt, and of the answer's behind them; N where it is no image token
        self._number = np.full(row.length + 1, row.n_image)
        self._number[list(row.image)] = np.arange(row.n_image)
        self._kind = np.array([*map(MODALITIES.index, row.kinds), _GENERATED])
        self._raw: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * n_layers

    def note(self, layer: int, scores: torch.Tensor, positions: torch.Tensor) -> None:
        """Note the scores of one layer. Copies nothing to the host: :meth:`layers` does, outside of a step's time.

        Args:
            layer: the layer's number.
            scores: ``[n]`` or ``[G, n]``, attention on the tokens read.
            positions: of those tokens, in the same shape, counted from the row's first real token.
        """
        self._raw[layer] = (scores.detach().clone(), positions.clone())

    def tokens(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return per layer the tokens that the last pass read: positions ``[n]`` and attention ``[n]``, mean over heads.

        A position is there once for every group of key-value heads that read it. Waits for the device.
        """
        found = []
        for raw in self._raw:
            assert raw is not None, "every layer was noted"
            weights = raw[0].double().cpu().numpy()
            found.append((raw[1].cpu().numpy().ravel(), weights.ravel() / (weights.shape[0] if weights.ndim == 2 else 1)))
        return found

    def layers(self) -> list[LayerAttention]:
        """Return the attention of the last pass per layer. Waits for the device."""
        result = []
        for positions, weights in self.tokens():
            places = np.minimum(positions, self._row.length)
            image = np.bincount(self._number[places], weights, minlength=self._row.n_image)[: self._row.n_image]
            shares = np.bincount(self._kind[places], weights, minlength=len(MODALITIES))
            result.append(LayerAttention(image, tuple(shares.tolist())))
        return result
