"""Bookkeeping of what is stored: which window token sits in which slot, what was accumulated, which slots a core step reads.

Shapes: b rows of a group, G key-value heads, D head size, n layers of a bank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from avl.cache.layout import Row
from avl.cache.ranking import best
from avl.kernels import window_ops
from avl.kernels.window.reference import FREE, Window, weakest


@dataclass
class Group:
    """Rows of the batch that are laid out alike, and the window that each of them has in every layer.

    ``prompt``: prompt tokens that belong to the window. ``size``: most entries that stay stored, None for unlimited. ``recent``/``sinks``:
    newest/oldest entries that are never evicted. ``capacity``: slots. ``count``: entries stored now. ``entered``: new tokens so far.
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
    entered: int = 0

    @property
    def b(self) -> int:
        return len(self.rows)


@dataclass
class Part:
    """What one layer stores of one group.

    ``keys``/``values``: views ``[b, slots, G, D]`` of the layer's storages. ``ordinals [b, image]``: which image token a slot holds.
    ``order [b, 1 or G, capacity]``: which window token (0, 1, … by position) each window slot holds. ``accumulated``: likewise, sums of
    scores. ``index [b, core + capacity]``: slots that a core step reads, core first.
    """

    keys: torch.Tensor
    values: torch.Tensor
    ordinals: torch.Tensor
    order: torch.Tensor
    accumulated: torch.Tensor | None
    index: torch.Tensor | None
    bank: Bank | None = None
    place: int = 0

    @property
    def image(self) -> int:
        """Pinned image tokens of each row."""
        return self.ordinals.shape[1]


class Bank:
    """Bookkeeping of layers alike in device and shape: one tensor for all of them, so that a step costs few operations, not some per layer.

    ``slot``: where the next token goes: one number while slots are free, then the slots ``[n, b, 1 or G]`` that the last eviction freed.
    ``image``: image tokens stored. ``core``: those read at core steps, None for all. ``image_scores [n, b, image]``: of the last update
    step. ``read``: entries per row that the last step read. ``consecutive``: the core lies in the last image slots, next to the window.
    """

    slot: int | torch.Tensor
    consecutive = False

    def __init__(self, group: Group, parts: list[Part], core: int | None) -> None:
        self.group, self.core, self.image = group, core, parts[0].image
        self.slot = group.count
        self.read = 0
        self.order = torch.stack([part.order for part in parts])
        sums = [part.accumulated for part in parts if part.accumulated is not None]
        self.accumulated = torch.stack(sums) if sums else None
        cores = [part.index for part in parts if part.index is not None]
        self.index = torch.stack(cores) if cores else None
        self.image_scores = None
        if core is not None:
            dtype = torch.promote_types(parts[0].keys.dtype, torch.float32)
            self.image_scores = torch.zeros(len(parts), group.b, self.image, dtype=dtype, device=self.order.device)
        for place, part in enumerate(parts):
            part.bank, part.place = self, place
            part.order = self.order[place]
            part.accumulated = None if self.accumulated is None else self.accumulated[place]
            part.index = None if self.index is None else self.index[place]

    def extent(self, image: int) -> tuple[int, torch.Tensor | None]:
        """How many slots a step reads of which ``image`` are the image's: columns, and how many of them count per row, None for all."""
        return image + self.group.count, None

    def enter(self, newest: int) -> None:
        """Window token number ``newest`` takes its slot in every layer; nothing is accumulated for it yet."""
        if isinstance(self.slot, int):
            self.order[..., self.slot] = newest
            return
        slot = self.slot.unsqueeze(-1)
        self.order.scatter_(-1, slot, newest)
        if self.accumulated is not None:
            self.accumulated.scatter_(-1, slot, 0.0)

    def leave(self, update: bool) -> None:
        """After a step: a new core from an ``update`` step's scores; a window over its size loses its weakest entry."""
        group = self.group
        if update:
            self.choose_core()
        if group.size is None or group.count <= group.size:
            self.slot = group.count
            return
        candidates = self.order < group.prompt + group.entered - group.recent
        if group.sinks:
            candidates &= self.order >= group.sinks
        # where nothing is accumulated, age alone decides: the oldest goes
        scores = self.order.to(torch.float64) if self.accumulated is None else self.accumulated
        slot: torch.Tensor = weakest(scores, self.order, candidates)
        self.order.scatter_(-1, slot.unsqueeze(-1), FREE)
        self.slot = slot

    def choose_core(self) -> None:
        """The best image tokens by the last update step's scores are read from the next step on (paper, Fig. 6)."""
        if self.core is not None and self.image_scores is not None and self.index is not None:
            self.index[..., : self.core] = best(self.image_scores, self.core)


class FixedBank(Bank):
    """A bank whose whole state is tensors at fixed addresses, so that one recorded step can be played again and again.

    ``entered [n, b, 1 or G]``: new tokens so far. ``lengths``: image tokens read -> entries ``[b]`` of which that many are the image's.
    Nothing in a step depends on a number of the host.
    """

    slot: torch.Tensor

    def __init__(self, group: Group, parts: list[Part], core: int | None) -> None:
        super().__init__(group, parts, core)
        device = self.order.device
        self.slot = torch.full(self.order.shape[:-1], group.count, device=device)
        self.entered = torch.zeros_like(self.slot)
        self.lengths = {image: torch.full((group.b,), group.count, device=device) for image in (self.image, core) if image is not None}
        keys = parts[0].keys
        self._ops = window_ops(device, dtype=keys.dtype, head_size=keys.shape[-1])
        self._window = Window(group.prompt, group.count, group.size, group.recent, group.sinks)

    def state(self) -> list[torch.Tensor]:
        """Every tensor that a step changes, keys and values apart."""
        kept = (self.order, self.accumulated, self.index, self.image_scores, self.slot, self.entered, *self.lengths.values())
        return [tensor for tensor in kept if tensor is not None]

    def extent(self, image: int) -> tuple[int, torch.Tensor | None]:
        """All slots there are; the length says how many count."""
        return image + self.group.capacity, self.lengths[image]

    def enter(self, newest: int) -> None:
        """As :meth:`Bank.enter`; the token's number is counted here."""
        self._ops.enter_window(self._window, self.order, self.accumulated, self.slot, self.entered, tuple(self.lengths.items()))

    def leave(self, update: bool) -> None:
        """As :meth:`Bank.leave`."""
        if update:
            self.choose_core()
        self._ops.leave_window(self._window, self.order, self.accumulated, self.slot, self.entered)
