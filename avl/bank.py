"""Bookkeeping of what is stored: which window token sits in which slot, what was accumulated, which slots a core step reads.

Shapes: b rows of a group, G key-value heads, D head size, n layers of a bank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from avl.partition import best, weakest
from avl.spans import Row

FREE = 1 << 62
"""Order of a window slot that holds nothing (a power of two: torch passes padding values through a double)."""


@dataclass
class Group:
    """Rows of the batch that are laid out alike, and the window that each of them has in every layer.

    ``prompt``: prompt tokens that belong to the window. ``size``: most entries that stay stored, None for unlimited. ``recent``/``sinks``:
    newest/oldest entries that are never evicted. ``capacity``: slots. ``count``: entries stored now.
    """

    rows: list[int]
    row: Row
    prompt: int
    size: int | None
    recent: int
    sinks: int
    capacity: int
    accumulate: str | None
    count: int = 0

    @property
    def b(self) -> int:
        return len(self.rows)


@dataclass
class Part:
    """What one layer stores of one group.

    ``keys``/``values``: views ``[b, slots, G, D]`` of the layer's storages. ``ordinals [b, image]``: which image token a slot holds.
    ``order [b, 1 or G, capacity]``: which window token (0, 1, … by position) each window slot holds. ``accumulated``: likewise, sums of
    scores. ``index [b, core + capacity]``: slots that a core step reads, core first. ``read``: entries per row that the last step read.
    """

    keys: torch.Tensor
    values: torch.Tensor
    ordinals: torch.Tensor
    order: torch.Tensor
    accumulated: torch.Tensor | None
    index: torch.Tensor | None
    bank: Bank | None = None
    place: int = 0
    read: int = 0

    @property
    def image(self) -> int:
        """Pinned image tokens of each row."""
        return self.ordinals.shape[1]


class Bank:
    """Bookkeeping of layers alike in device and shape: one tensor for all of them, so that a step costs few operations, not some per layer.

    ``slot``: where the next token goes: one number while slots are free, then the slots ``[n, b, 1 or G]`` that the last eviction freed.
    ``core``: image tokens read at core steps, None for all. ``image_scores [n, b, image]``: of the last update step.
    """

    def __init__(self, group: Group, parts: list[Part], core: int | None) -> None:
        self.group, self.core = group, core
        self.slot: int | torch.Tensor = group.count
        self.order = torch.stack([part.order for part in parts])
        sums = [part.accumulated for part in parts if part.accumulated is not None]
        self.accumulated = torch.stack(sums) if sums else None
        cores = [part.index for part in parts if part.index is not None]
        self.index = torch.stack(cores) if cores else None
        self.image_scores = None
        if core is not None:
            dtype = torch.promote_types(parts[0].keys.dtype, torch.float32)
            self.image_scores = torch.zeros(len(parts), group.b, parts[0].image, dtype=dtype, device=self.order.device)
        for place, part in enumerate(parts):
            part.bank, part.place = self, place
            part.order = self.order[place]
            part.accumulated = None if self.accumulated is None else self.accumulated[place]
            part.index = None if self.index is None else self.index[place]

    def enter(self, newest: int) -> None:
        """Window token number ``newest`` takes its slot in every layer; nothing is accumulated for it yet."""
        if isinstance(self.slot, int):
            self.order[..., self.slot] = newest
            return
        slot = self.slot.unsqueeze(-1)
        self.order.scatter_(-1, slot, newest)
        if self.accumulated is not None:
            self.accumulated.scatter_(-1, slot, 0.0)

    def evict(self, seen: int) -> None:
        """Free the slot of the weakest entry outside the sinks and the recent part, of ``seen`` window tokens so far."""
        candidates = (self.order < seen - self.group.recent) & (self.order >= self.group.sinks)
        # where nothing is accumulated, age alone decides: the oldest goes
        scores = self.order.to(torch.float64) if self.accumulated is None else self.accumulated
        self.slot = weakest(scores, self.order, candidates)
        self.order.scatter_(-1, self.slot.unsqueeze(-1), FREE)

    def choose_core(self) -> None:
        """The best image tokens by the last update step's scores are read from the next step on (paper, Fig. 6)."""
        if self.core is not None and self.image_scores is not None and self.index is not None:
            self.index[..., : self.core] = best(self.image_scores, self.core)
