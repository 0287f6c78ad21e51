"""Slot tables: which KV slot holds which token, accumulated attention per slot, and the slots that a core step reads.

Shapes: b rows of a bucket, G key-value heads, D head size, n layers of a table, C slots of the window (its capacity).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from avl.cache.layout import Row
from avl.cache.ranking import Cover, best, lift
from avl.kernels import window_ops
from avl.kernels.window.eviction import weakest
from avl.kernels.window.types import FREE, Window
from avl.policies import Observation, Policy, PromptShape
from avl.policies.base import PastTurn
from avl.policies.cost import window_start, window_tokens


@dataclass(frozen=True)
class WindowPlan:
    """The evictable window of one layer, for rows with the same layout.

    Attributes:
        prompt: number of prompt tokens that belong to it; in a later turn of a conversation, of all tokens before the turn's answer.
        start: number of tokens stored before the first step.
        size: most tokens stored between steps, None for unlimited.
        recent: number of newest tokens that are never evicted.
        sinks: number of oldest tokens that are never evicted.
        capacity: number of slots.
        observation: which scores rank its tokens, None to rank by age.
    """

    prompt: int
    start: int
    size: int | None
    recent: int
    sinks: int
    capacity: int
    observation: Observation | None

    @classmethod
    def of(cls, policy: Policy, layer: int, shape: PromptShape) -> WindowPlan:
        """Return the window that ``policy`` plans for ``layer``."""
        budget, start = policy.store(layer, shape), window_start(policy, layer, shape)
        return cls(
            prompt=window_tokens(policy, shape),
            start=start,
            size=budget.window,
            recent=budget.recent,
            sinks=budget.sinks,
            capacity=budget.capacity(start, shape.max_new_tokens),
            observation=policy.observe(layer, shape),
        )

    @property
    def accumulates(self) -> bool:
        """Whether decode steps accumulate scores per token."""
        return self.observation is not None and self.observation.decode

    @property
    def ranked(self) -> bool:
        """Whether the prompt's scores are needed: to choose the tokens that stay, or as initial sums."""
        return self.observation is not None and (self.observation.decode or self.start < self.prompt)


@dataclass(frozen=True)
class RowBucket:
    """Rows of the batch with the same layout.

    Attributes:
        rows: their numbers in the batch.
        row: their layout.
        shape: their sizes.
        windows: the window of each layer.
        cover: the image tokens that each layer holds whatever they score.
    """

    rows: tuple[int, ...]
    row: Row
    shape: PromptShape
    windows: tuple[WindowPlan, ...]
    cover: Cover
    _index: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rows: list[int], row: Row, policy: Policy, max_new_tokens: int, n_layers: int, past: PastTurn | None = None) -> RowBucket:
        """Return the bucket of ``rows``, which all have the layout ``row`` and, in a later turn, the same turn behind them."""
        shape = PromptShape(row.n_image, row.n_text, max_new_tokens, n_layers, past)
        windows = tuple(WindowPlan.of(policy, layer, shape) for layer in range(n_layers))
        return cls(tuple(rows), row, shape, windows, Cover(policy, shape))

    def index(self, device: torch.device) -> torch.Tensor:
        """Return ``rows`` as a tensor ``[b]`` on a device; made once, because a list as an index is copied there at every use."""
        if device not in self._index:
            self._index[device] = torch.tensor(self.rows, device=device)
        return self._index[device]

    def alike(self, other: RowBucket) -> bool:
        """Return whether the rows of another bucket are laid out as those of this one."""
        return (self.row, self.shape) == (other.row, other.shape)

    @property
    def b(self) -> int:
        """Number of rows."""
        return len(self.rows)


class StepView(NamedTuple):
    """The keys and values that one layer's attention reads at a step, and the tensors that take its scores.

    Attributes:
        keys: ``[b, G, columns, D]``, a view of the layer's storage.
        values: ``[b, G, columns, D]``, likewise.
        slots: ``[b, columns]`` slots to read, None for all of ``keys``.
        length: ``[b]`` number of valid columns, None if all are.
        sums: ``[b, W]`` or ``[b, G, W]``, to which the scores of the last W columns are added; None if the window accumulates none.
        image_scores: ``[b, image]``, overwritten with the scores of the image tokens (the first columns); None if no ranking needs them.
        per_head: whether scores are means per key-value head rather than over all heads.
    """

    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor | None
    length: torch.Tensor | None
    sums: torch.Tensor | None
    image_scores: torch.Tensor | None
    per_head: bool


@dataclass
class LayerKV:
    """The tokens that one layer stores of one bucket.

    Attributes:
        keys: ``[b, slots, G, D]``, a view of the layer's storage; image slots first, then the window's.
        values: ``[b, slots, G, D]``, likewise.
        image_idx: ``[b, image]``, the image token in each image slot.
        token_idx: ``[b, 1 or G, C]``, the token of the window (0, 1, … by position) in each window slot.
        sums: shaped like ``token_idx``, accumulated scores; None if nothing accumulates.
        index: ``[b, core + C]``, slots that a core step reads, core first; None if every step reads all.
        window: the layer's plan.
        weights: ``[b, image]``, of the image tokens that are always in the core; None if scores alone decide.
        table: the slot table that the layer belongs to, None before the prompt is done.
        place: the layer's index in that table.
    """

    keys: torch.Tensor
    values: torch.Tensor
    image_idx: torch.Tensor
    token_idx: torch.Tensor
    sums: torch.Tensor | None
    index: torch.Tensor | None
    window: WindowPlan
    weights: torch.Tensor | None = None
    table: SlotTable | None = None
    place: int = 0
    _views: dict[bool, tuple[int, StepView]] = field(default_factory=dict)
    _by_head: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values as [b, G, slots, D]

    @property
    def image(self) -> int:
        """Number of pinned image tokens per row."""
        return self.image_idx.shape[1]

    @property
    def count(self) -> int:
        """Number of window tokens stored now."""
        return self.window.start if self.table is None else self.table.count

    @property
    def core(self) -> int | None:
        """Number of image tokens that a core step reads, None if every step reads all."""
        return None if self.index is None else self.index.shape[1] - self.window.capacity

    def view(self, update: bool) -> StepView:
        """Return the view for a step: everything stored at an ``update`` step or without a core, else core and window."""
        table = self.table
        assert table is not None, "slots have a table once the prompt is done"
        core = None if update else self.core
        image = self.image if core is None else core
        columns, length = table.extent(image)
        made = self._views.get(core is None)
        if made is None or made[0] != columns:
            made = self._views[core is None] = columns, self._make_view(table, core, columns, length)
        return made[1]

    def _make_view(self, table: SlotTable, core: int | None, columns: int, length: torch.Tensor | None) -> StepView:
        image = self.image if core is None else core
        index = None
        if self._by_head is None:
            self._by_head = self.keys.transpose(1, 2), self.values.transpose(1, 2)
        keys, values = self._by_head
        if core is None or table.contiguous:
            # narrow costs half of what slicing does, and a growing window needs a view at every step
            first = self.image - image
            keys, values = keys.narrow(2, first, columns), values.narrow(2, first, columns)
        else:
            assert self.index is not None
            index = self.index[:, :columns]
        per_head = self.window.observation is not None and self.window.observation.heads == "kv"
        sums = None if self.sums is None else self.sums[..., : columns - image]
        if sums is not None and not per_head:
            sums = sums[:, 0]
        scores = table.image_scores[self.place] if core is None and table.image_scores is not None else None
        return StepView(keys, values, index, length, sums, scores, per_head)


class SlotTable:
    """The slots of layers with the same device, shape and plan, in one tensor for all of them, so that a step needs few operations.

    Attributes:
        slot: where the next token goes: one number while slots are free, then the slots ``[n, b, 1 or G]`` freed last.
        image: number of image tokens stored.
        core: number of image tokens read at core steps, None for all.
        image_scores: ``[n, b, image]`` of the last update step.
        weights: ``[n, b, image]`` of the image tokens that are always in the core, None if scores alone decide.
        count: number of window tokens stored.
        entered: number of new tokens so far.
        read: tokens per row that the last step read.
        contiguous: whether the core fills the last image slots, next to the window.
        uncopied: the attribute that a copy makes anew (:meth:`adopt`).
    """

    slot: int | torch.Tensor
    contiguous = False
    uncopied = ""

    def __init__(self, bucket: RowBucket, kvs: list[LayerKV], core: int | None) -> None:
        self.bucket, self.core, self.image, self.window = bucket, core, kvs[0].image, kvs[0].window
        self.count = self.slot = self.window.start
        self.entered = self.read = 0
        self.token_idx = torch.stack([kv.token_idx for kv in kvs])
        sums = [kv.sums for kv in kvs if kv.sums is not None]
        self.sums = torch.stack(sums) if sums else None
        cores = [kv.index for kv in kvs if kv.index is not None]
        self.index = torch.stack(cores) if cores else None
        weights = [kv.weights for kv in kvs if kv.weights is not None]
        self.weights = torch.stack(weights) if weights else None
        self.image_scores = None
        if core is not None:
            dtype = torch.promote_types(kvs[0].keys.dtype, torch.float32)
            self.image_scores = torch.zeros(len(kvs), bucket.b, self.image, dtype=dtype, device=self.token_idx.device)
        for place, kv in enumerate(kvs):
            kv.table, kv.place = self, place
            kv.token_idx = self.token_idx[place]
            kv.sums = None if self.sums is None else self.sums[place]
            kv.index = None if self.index is None else self.index[place]
            kv.weights = None if self.weights is None else self.weights[place]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a deep copy copies; :meth:`adopt` makes the rest."""
        return {name: value for name, value in vars(self).items() if name != self.uncopied}

    def adopt(self, kvs: list[LayerKV]) -> None:
        """Complete this table after it was copied together with its layers ``kvs``."""

    def begin_step(self, update: bool) -> None:
        """Count the token that enters and the tokens that the step reads."""
        self.count += 1
        self.entered += 1
        self.read = (self.image if self.core is None or update else self.core) + self.count

    def end_step(self) -> None:
        """Count the token that was evicted, if any."""
        if self.window.size is not None:
            self.count = min(self.count, self.window.size)

    def extent(self, image: int) -> tuple[int, torch.Tensor | None]:
        """Return the columns that a step reads, ``image`` of them image tokens, and how many are valid per row ``[b]``, None for all."""
        return image + self.count, None

    def enter(self) -> None:
        """Give the step's token its slot in every layer, with nothing accumulated for it."""
        newest = self.window.prompt + self.entered - 1
        if isinstance(self.slot, int):
            self.token_idx[..., self.slot] = newest
            return
        slot = self.slot.unsqueeze(-1)
        self.token_idx.scatter_(-1, slot, newest)
        if self.sums is not None:
            self.sums.scatter_(-1, slot, 0.0)

    def evict(self, update: bool) -> None:
        """Re-select the core after an ``update`` step, and evict the weakest token of a window that exceeds its size."""
        if update:
            self.choose_core()
        window = self.window
        if window.size is None or self.count <= window.size:
            self.slot = self.count
            return
        candidates = self.token_idx < window.prompt + self.entered - window.recent
        if window.sinks:
            candidates &= self.token_idx >= window.sinks
        # without accumulated scores, the oldest token is evicted
        scores = self.token_idx.to(torch.float64) if self.sums is None else self.sums
        slot: torch.Tensor = weakest(scores, self.token_idx, candidates)
        self.token_idx.scatter_(-1, slot.unsqueeze(-1), FREE)
        self.slot = slot

    def choose_core(self) -> None:
        """Make the best image tokens by the last update step's scores the core from the next step on (paper, Fig. 6)."""
        if self.core is not None and self.image_scores is not None and self.index is not None:
            self.index[..., : self.core] = best(lift(self.image_scores, self.weights), self.core)


class StaticSlotTable(SlotTable):
    """A table whose whole state is in tensors at fixed addresses, so that a captured step can be replayed.

    Nothing in a step depends on a host-side number.

    Attributes:
        new: ``[n, b, 1 or G]``, number of new tokens so far, on the device.
        lengths: number of image tokens read -> ``[b]``, number of all tokens that such a step reads.
    """

    slot: torch.Tensor
    uncopied = "_ops"

    def __init__(self, bucket: RowBucket, kvs: list[LayerKV], core: int | None) -> None:
        super().__init__(bucket, kvs, core)
        device, window = self.token_idx.device, self.window
        if self.index is not None:
            # half the bytes, and the kernels are compiled for one kind of index
            self.index = self.index.int()
            for place, kv in enumerate(kvs):
                kv.index = self.index[place]
        self.slot = torch.full(self.token_idx.shape[:-1], window.start, device=device)
        self.new = torch.zeros_like(self.slot)
        self.lengths = {image: torch.full((bucket.b,), window.start, device=device) for image in (self.image, core) if image is not None}
        self.adopt(kvs)
        self._window = Window(window.prompt, window.start, window.size, window.recent, window.sinks)

    def adopt(self, kvs: list[LayerKV]) -> None:
        keys = kvs[0].keys
        self._ops = window_ops(keys.device, dtype=keys.dtype, head_size=keys.shape[-1])

    def state(self) -> list[torch.Tensor]:
        """Return every tensor that a step changes, except keys and values."""
        kept = (self.token_idx, self.sums, self.index, self.image_scores, self.slot, self.new, *self.lengths.values())
        return [tensor for tensor in kept if tensor is not None]

    def extent(self, image: int) -> tuple[int, torch.Tensor | None]:
        """Return the number of all columns, and the tensor of lengths ``[b]`` that says how many are valid."""
        return image + self.window.capacity, self.lengths[image]

    def enter(self) -> None:
        """Give the step's token its slot in every layer; the device counts the tokens."""
        self._ops.enter_window(self._window, self.token_idx, self.sums, self.slot, self.new, tuple(self.lengths.items()))

    def evict(self, update: bool) -> None:
        """Re-select the core and evict as :meth:`SlotTable.evict` does, with the count on the device."""
        if update:
            self.choose_core()
        self._ops.leave_window(self._window, self.token_idx, self.sums, self.slot, self.new)
