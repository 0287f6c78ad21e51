"""FastV (Chen et al., ECCV 2024, arXiv 2403.06764): drop image tokens early in the prompt, keep that cache while answering."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from avl.policies.base import Policy, Store, check_count, check_fraction, check_percent, share


@dataclass(frozen=True)
class FastV(Policy):
    """After ``layer`` decoder layers, keep the ``keep`` % of the image tokens that the last prompt token attends to most.

    As the A-VL paper compares against it: pruned in prefill, and the cache that prefill leaves is used for every step.

    Args:
        layer: decoder layers that see all image tokens; the scores of the last of them rank.
        keep: image tokens that stay, in %.

    Raises:
        ValueError: a parameter is out of range.
    """

    layer: int = 2
    keep: float = 50

    name: ClassVar[str] = "FastV"

    def __post_init__(self) -> None:
        check_count("layer", self.layer, 1)
        check_percent("keep", self.keep, "the share of image tokens kept, in percent")

    def prune(self, layer: int, n_image: int) -> int | None:
        return share(self.keep, n_image) if layer == self.layer else None

    def store(self, layer: int, n_image: int, n_text: int, max_new_tokens: int) -> Store:
        return Store(image=self.image_counts(layer, n_image))

    def check_model(self, n_layers: int) -> None:
        if self.layer >= n_layers:
            raise ValueError(f"layer={self.layer!r} is out of range: FastV prunes after 1 to {n_layers - 1} of this model's layers")

    def at_stored(self, fraction: float, n_image: int, n_text: int, n_layers: int) -> FastV:
        check_fraction(fraction)
        self.check_model(n_layers)
        pruned = n_layers - self.layer
        keep = (fraction * n_layers * (n_image + n_text) - n_layers * n_text - self.layer * n_image) / (pruned * n_image)
        if keep <= 0:
            raise ValueError(
                f"FastV cannot store {fraction:.0%}: the first {self.layer} of {n_layers} layers and all text stay whole; raise the share"
            )
        return replace(self, keep=round(min(keep * 100, 100.0), 3))
