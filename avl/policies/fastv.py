"""FastV (Chen et al., ECCV 2024, arXiv 2403.06764): prune image tokens after an early layer of the prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl.policies.base import KVBudget, Policy, PromptShape, param, share


@dataclass(frozen=True)
class FastV(Policy):
    """After ``layer`` decoder layers, keep the ``keep`` % of the image tokens that the last prompt token attends to most.

    As in the A-VL paper's comparison: image tokens are pruned in prefill only, and every step reads the whole cache that prefill leaves.
    The pictures that a later turn of a conversation brings are pruned alike, among themselves.

    Args:
        layer: number of decoder layers that see all image tokens; the last one's scores rank them.
        keep: % of the image tokens that stay.

    Raises:
        ValueError: a parameter is out of range.
    """

    layer: int = param(2, label="after layer", help="the number of layers that see all image tokens", unit="layers", high=80)
    keep: float = param(50, label="keeps", help="the share of image tokens kept")

    name: ClassVar[str] = "FastV"
    title: ClassVar[str] = "FastV"
    budget: ClassVar[str | None] = "keep"

    def prune(self, layer: int, shape: PromptShape) -> int | None:
        return share(self.keep, shape.new_image) if layer == self.layer else None

    def store(self, layer: int, shape: PromptShape) -> KVBudget:
        return KVBudget(image=self.left(layer, shape) + self.present(layer, shape))

    def check_model(self, n_layers: int) -> None:
        if self.layer >= n_layers:
            raise ValueError(f"layer={self.layer!r} is out of range: FastV prunes after 1 to {n_layers - 1} of this model's layers")
