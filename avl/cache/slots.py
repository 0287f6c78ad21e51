"""Slot tables: which KV slot holds which token, accumulated attention per slot, and the slots that a core step reads.

Shapes: b rows of a bucket, G key-value heads, D head size, n layers of a table, C slots of the window (its capacity).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from avl.cache.layout import Row
from avl.cache.ranking import best
from avl.kernels import window_ops
from avl.kernels.window.eviction import weakest
from avl.kernels.window.types import FREE, Window
from avl.policies import Observation, Policy, PromptShape
from avl.policies.cost import window_tokens


@dataclass(frozen=True)
class WindowPlan:
    """The evictable window of one layer, for rows laid out alike.

    Attributes:
        prompt: prompt tokens that belong to it.
        start: tokens stored after prefill.
        size: most tokens that stay stored, None for unlimited.
        recent: newest tokens that are never evicted.
        sinks: oldest tokens that are never evicted.
        capacity: slots.
        observation: which scores rank its tokens, None for age alone.
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
        """Return what ``policy`` plans for ``layer``."""
        budget, tokens = policy.store(layer, shape), window_tokens(policy, shape)
        return cls(
            prompt=tokens,
            start=budget.start(tokens),
            size=budget.window,
            recent=budget.recent,
            sinks=budget.sinks,
            capacity=budget.capacity(tokens, shape.max_new_tokens),
            observation=policy.observe(layer, shape),
        )

    @property
    def accumulates(self) -> bool:
        """Whether decode steps add up scores per token."""
        return self.observation is not None and self.observation.decode

    @property
    def ranked(self) -> bool:
        """Whether scores of the prompt are needed: to choose what stays, or as the start of the sums."""
        return self.observation is not None and (self.observation.decode or self.start < self.prompt)


@dataclass(frozen=True)
class RowBucket:
    """Rows of the batch that are laid out alike, their sizes, and the window of each layer."""

    rows: tuple[int, ...]
    row: Row
    shape: PromptShape
    windows: tuple[WindowPlan, ...]

    @classmethod
    def of(cls, rows: list[int], row: Row, policy: Policy, max_new_tokens: int, n_layers: int) -> RowBucket:
        """Return the bucket of ``rows``, each laid out as ``row``."""
        shape = PromptShape(row.n_image, row.n_text, max_new_tokens, n_layers)
        return cls(tuple(rows), row, shape, tuple(WindowPlan.of(policy, layer, shape) for layer in range(n_layers)))

    @property
    def b(self) -> int:
        """Number of rows."""
        return len(self.rows)


@dataclass(frozen=True)
class StepView:
    """What one layer's attention reads at a step, and where its scores go.

    Attributes:
        keys, values: ``[b, G, columns, D]``, views of the layer's storage.
        index: ``[b, columns]`` slots to read, None for all of ``keys``.
        length: ``[b]`` columns that count, None for all.
        sums: ``[b, W]`` or ``[b, G, W]``, the window's sums, which the scores of the last W columns are added to; None for nothing.
        image_scores: ``[b, image]`` takes the scores of the image tokens, which come first; None: nothing is ranked.
        per_head: scores are means per key-value head, not over all heads.
    """

    keys: torch.Tensor
    values: torch.Tensor
    index: torch.Tensor | None
    length: torch.Tensor | None
    sums: torch.Tensor | None
    image_scores: torch.Tensor | None
    per_head: bool

    @property
    def plain(self) -> bool:
        """Whether it is ordinary attention over all columns that asks for no scores."""
        return self.index is None and self.length is None and self.sums is None and self.image_scores is None


@dataclass
class LayerKV:
    """What one layer stores of one bucket.

    Attributes:
        keys, values: ``[b, slots, G, D]``, views of the layer's storage; image slots first, then the window's.
        image_idx: ``[b, image]``, which image token a slot holds.
        token_idx: ``[b, 1 or G, C]``, which of the window's tokens (0, 1, … by position) each window slot holds.
        sums: like ``token_idx``, accumulated scores; None where nothing accumulates.
        index: ``[b, core + C]``, slots that a core step reads, core first; None where all are read.
        window: the layer's plan.
        table, place: the table that keeps the books, and the layer's place in it.
    """

    keys: torch.Tensor
    values: torch.Tensor
    image_idx: torch.Tensor
    token_idx: torch.Tensor
    sums: torch.Tensor | None
    index: torch.Tensor | None
    window: WindowPlan
    table: SlotTable | None = None
    place: int = 0
    _views: dict[bool, tuple[int, StepView]] = field(default_factory=dict)

    @property
    def image(self) -> int:
        """Pinned image tokens of each row."""
        return self.image_idx.shape[1]

    @property
    def count(self) -> int:
        """Window tokens stored now."""
        return self.window.start if self.table is None else self.table.count

    def core_slots(self) -> torch.Tensor | None:
        """Return the slots ``[b, core]`` of the core, None where every step reads all."""
        return None if self.index is None else self.index[:, : self.index.shape[1] - self.window.capacity]

    def view(self, update: bool) -> StepView:
        """Return what a step reads: all that is stored where it is an ``update`` step or nothing is selected, else core and window."""
        table = self.table
        assert table is not None, "slots have a table once the prompt is done"
        core = None if self.index is None or update else self.index.shape[1] - self.window.capacity
        image = self.image if core is None else core
        columns, length = table.extent(image)
        made = self._views.get(core is None)
        if made is None or made[0] != columns:
            made = self._views[core is None] = columns, self._make_view(core, columns, length)
        return made[1]

    def _make_view(self, core: int | None, columns: int, length: torch.Tensor | None) -> StepView:
        keys, values = self.keys.transpose(1, 2), self.values.transpose(1, 2)
        image, index = self.image, None
        if core is None:
            keys, values = keys[:, :, :columns], values[:, :, :columns]
        elif self.table is not None and self.table.contiguous:
            first, image = image - core, core
            keys, values = keys[:, :, first : first + columns], values[:, :, first : first + columns]
        else:
            assert self.index is not None
            index, image = self.index[:, :columns], core
        per_head = self.window.observation is not None and self.window.observation.heads == "kv"
        sums = None if self.sums is None else self.sums[..., : columns - image]
        if sums is not None and not per_head:
            sums = sums[:, 0]
        ranks = core is None and self.table is not None and self.table.image_scores is not None
        scores = self.table.image_scores[self.place] if ranks else None  # type: ignore[union-attr,index]
        return StepView(keys, values, index, length, sums, scores, per_head)


class SlotTable:
    """Slots of layers alike in device, shape and plan: one tensor for all of them, so that a step costs few operations, not some per layer.

    Attributes:
        slot: where the next token goes: one number while slots are free, then the slots ``[n, b, 1 or G]`` that were freed last.
        image: image tokens stored. core: those read at core steps, None for all.
        image_scores: ``[n, b, image]`` of the last update step.
        count: window tokens stored. entered: new tokens so far. read: tokens per row that the last step read.
        contiguous: the core lies in the last image slots, next to the window.
    """

    slot: int | torch.Tensor
    contiguous = False

    def __init__(self, bucket: RowBucket, kvs: list[LayerKV], core: int | None) -> None:
        self.bucket, self.core, self.image, self.window = bucket, core, kvs[0].image, kvs[0].window
        self.count = self.slot = self.window.start
        self.entered = self.read = 0
        self.token_idx = torch.stack([kv.token_idx for kv in kvs])
        sums = [kv.sums for kv in kvs if kv.sums is not None]
        self.sums = torch.stack(sums) if sums else None
        cores = [kv.index for kv in kvs if kv.index is not None]
        self.index = torch.stack(cores) if cores else None
        self.image_scores = None
        if core is not None:
            dtype = torch.promote_types(kvs[0].keys.dtype, torch.float32)
            self.image_scores = torch.zeros(len(kvs), bucket.b, self.image, dtype=dtype, device=self.token_idx.device)
        for place, kv in enumerate(kvs):
            kv.table, kv.place = self, place
            kv.token_idx = self.token_idx[place]
            kv.sums = None if self.sums is None else self.sums[place]
            kv.index = None if self.index is None else self.index[place]

    def begin_step(self, update: bool) -> None:
        """Count the token that enters and what the step reads."""
        self.count += 1
        self.entered += 1
        self.read = (self.image if self.core is None or update else self.core) + self.count

    def end_step(self) -> None:
        """Count the token that left."""
        if self.window.size is not None:
            self.count = min(self.count, self.window.size)

    def extent(self, image: int) -> tuple[int, torch.Tensor | None]:
        """Return how many columns a step reads of which ``image`` are the image's, and how many of them count per row, None for all."""
        return image + self.count, None

    def enter(self) -> None:
        """Give the step's token its slot in every layer; nothing is accumulated for it yet."""
        newest = self.window.prompt + self.entered - 1
        if isinstance(self.slot, int):
            self.token_idx[..., self.slot] = newest
            return
        slot = self.slot.unsqueeze(-1)
        self.token_idx.scatter_(-1, slot, newest)
        if self.sums is not None:
            self.sums.scatter_(-1, slot, 0.0)

    def evict(self, update: bool) -> None:
        """After a step: choose a new core from an ``update`` step's scores; a window over its size loses its weakest token."""
        if update:
            self.choose_core()
        window = self.window
        if window.size is None or self.count <= window.size:
            self.slot = self.count
            return
        candidates = self.token_idx < window.prompt + self.entered - window.recent
        if window.sinks:
            candidates &= self.token_idx >= window.sinks
        # where nothing is accumulated, age alone decides: the oldest goes
        scores = self.token_idx.to(torch.float64) if self.sums is None else self.sums
        slot: torch.Tensor = weakest(scores, self.token_idx, candidates)
        self.token_idx.scatter_(-1, slot.unsqueeze(-1), FREE)
        self.slot = slot

    def choose_core(self) -> None:
        """Read the best image tokens by the last update step's scores from the next step on (paper, Fig. 6)."""
        if self.core is not None and self.image_scores is not None and self.index is not None:
            self.index[..., : self.core] = best(self.image_scores, self.core)


class StaticSlotTable(SlotTable):
    """A table whose whole state is tensors at fixed addresses, so that one captured step can be replayed again and again.

    Nothing in a step depends on a number of the host.

    Attributes:
        new: ``[n, b, 1 or G]``, new tokens so far, on the device.
        lengths: image tokens read -> ``[b]``, tokens that a step reads of which that many are the image's.
    """

    slot: torch.Tensor

    def __init__(self, bucket: RowBucket, kvs: list[LayerKV], core: int | None) -> None:
        super().__init__(bucket, kvs, core)
        device, window = self.token_idx.device, self.window
        self.slot = torch.full(self.token_idx.shape[:-1], window.start, device=device)
        self.new = torch.zeros_like(self.slot)
        self.lengths = {image: torch.full((bucket.b,), window.start, device=device) for image in (self.image, core) if image is not None}
        keys = kvs[0].keys
        self._ops = window_ops(device, dtype=keys.dtype, head_size=keys.shape[-1])
        self._window = Window(window.prompt, window.start, window.size, window.recent, window.sinks)

    def state(self) -> list[torch.Tensor]:
        """Return every tensor that a step changes, keys and values apart."""
        kept = (self.token_idx, self.sums, self.index, self.image_scores, self.slot, self.new, *self.lengths.values())
        return [tensor for tensor in kept if tensor is not None]

    def extent(self, image: int) -> tuple[int, torch.Tensor | None]:
        """Return all columns there are; the length says how many count."""
        return image + self.window.capacity, self.lengths[image]

    def enter(self) -> None:
        """As :meth:`SlotTable.enter`; the token's number is counted on the device."""
        self._ops.enter_window(self._window, self.token_idx, self.sums, self.slot, self.new, tuple(self.lengths.items()))

    def evict(self, update: bool) -> None:
        """As :meth:`SlotTable.evict`."""
        if update:
            self.choose_core()
        self._ops.leave_window(self._window, self.token_idx, self.sums, self.slot, self.new)
