"""What one decoder layer stores: slots, positions, and what of the prompt goes into them. The only place that moves keys and values.

Layout. One flat storage ``[slots, G, D]`` for keys and one for values, token-major, so that one slot index serves all heads. Rows of a
batch that are laid out alike (same padding, length and image positions) form a group and sit there as ``[b, slots, G, D]``; a ragged
batch has several groups and wastes nothing. Within a row: pinned image slots, then the window (text, or everything for policies that know
no modalities) with the free slots last. Keys are stored after RoPE, so order in memory means nothing and an evicted entry's slot is
simply overwritten by the next token.

Shapes: B rows, b rows of a group, G key-value heads, D head size, M image tokens a layer holds.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from avl.cache.prefill_state import Columns
from avl.cache.ranking import best, heavy_and_recent
from avl.cache.slots import FREE, Group, Part


class AdaptiveLayer(CacheLayerMixin):
    """The entries of one decoder layer. Works with the attention function of avl/attention.py, which finds it by a tag on the keys."""

    is_sliding = False

    def __init__(self, owner: Any, number: int) -> None:
        self.parts: list[Part] = []
        self.flat: tuple[torch.Tensor, torch.Tensor] | None = None
        super().__init__()
        # weak: a cycle would keep a cancelled generation's memory until the garbage collector happens to run
        self._owner = weakref.ref(owner)
        self.number = number
        self._waiting = False

    @property
    def owner(self) -> Any:
        """The AdaptiveCache this layer is part of (its module imports this one, so it cannot be named here)."""
        owner = self._owner()
        assert owner is not None, "a layer lives inside its cache"
        return owner

    @property  # type: ignore[override]
    def keys(self) -> torch.Tensor | None:
        """Stored keys: ``[B, G, slots, D]`` where all rows are laid out alike, else flat ``[slots, G, D]``; free slots included."""
        return self._view(0)

    @keys.setter
    def keys(self, value: torch.Tensor | None) -> None:
        """Set by transformers' base class, to None alone."""

    @property  # type: ignore[override]
    def values(self) -> torch.Tensor | None:
        """Stored values, laid out like :attr:`keys`."""
        return self._view(1)

    @values.setter
    def values(self, value: torch.Tensor | None) -> None:
        """Set by transformers' base class, to None alone."""

    def _view(self, which: int) -> torch.Tensor | None:
        if self.flat is None:
            return None
        return self.flat[which].view(self.parts[0].keys.shape).transpose(1, 2) if len(self.parts) == 1 else self.flat[which]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing can be allocated before the prompt was scored."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Take keys and values ``[B, G, T, D]`` of new tokens; returns them tagged, for the attention function to find this layer.

        Raises:
            RuntimeError: the model's attention is not ours, so it would attend to the new tokens alone.
        """
        if self._waiting:
            raise RuntimeError("this cache needs adaptive attention, but the model does not run it: call avl.attach(model) first")
        self._waiting = True
        if self.owner.t > 0:
            for group, part in zip(self.owner.groups, self.parts, strict=True):
                new = (self.owner.rows_of(states.detach(), group)[:, :, 0] for states in (key_states, value_states))
                for stored, entry in zip((part.keys, part.values), new, strict=True):
                    self._write(stored, entry, part)
        # an attribute of the tensor and not of the module: two generations may interleave on one model
        key_states.avl_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    @staticmethod
    def _write(stored: torch.Tensor, entry: torch.Tensor, part: Part) -> None:
        """Put the new token's key or value ``[b, G, D]`` into the slot that is free or was freed."""
        assert part.bank is not None
        slot = part.bank.slot
        if isinstance(slot, int):
            stored[:, part.image + slot] = entry
            return
        row = torch.arange(entry.shape[0], device=entry.device)[:, None]
        head = torch.arange(entry.shape[1], device=entry.device)
        stored[row, part.image + slot[part.place], head] = entry

    def take(self, ops: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """The same from a step's queries, keys and values before RoPE, in one go: puts the new token into its slot, returns the queries.

        Args:
            ops: from ``avl.kernels.layer_ops``. qkv: ``[B, (H + 2 G) D]``. cos, sin: ``[B, D]``, as ``rotate_and_store`` takes them.

        Returns:
            ``[B, H, 1, D]`` after RoPE.
        """
        if len(self.parts) == 1:
            return self._take(ops, self.parts[0], qkv, cos, sin)[:, :, None]
        query = None
        for group, part in zip(self.owner.groups, self.parts, strict=True):
            found = self._take(ops, part, *(self.owner.rows_of(states, group) for states in (qkv, cos, sin)))
            if query is None:
                query = found.new_empty(qkv.shape[0], 1, *found.shape[1:])
            query[group.rows, 0] = found
        assert query is not None
        return query.transpose(1, 2)

    @staticmethod
    def _take(ops: Any, part: Part, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Of one group's rows: queries ``[b, H, D]``."""
        assert part.bank is not None
        slot = part.bank.slot
        return ops.rotate_and_store(
            qkv, cos, sin, part.keys, part.values, slot if isinstance(slot, int) else slot[part.place], part.image
        )

    def commit(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        image_scores: list[torch.Tensor] | None,
        accumulated: list[torch.Tensor] | None,
    ) -> None:
        """Keep what the policy stores of the prompt; the rest is gone with ``key`` and ``value`` before the next layer runs.

        Args:
            key, value: ``[B, G, L, D]`` of the prompt, after RoPE. image_scores: per group, ``[b, M]``, last query.
            accumulated: per group, ``[b, 1 or G, n]`` over the window's prompt tokens.
        """
        owner, device = self.owner, key.device
        sources: list[torch.Tensor] = []
        sets: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]] = []
        for number, (group, columns) in enumerate(zip(owner.groups, owner.prompt.columns, strict=True)):
            columns.to(device)
            scores = None if image_scores is None else image_scores[number]
            image, ordinals, index = self._image(group, columns, scores)
            chosen, sums = self._window(group, None if accumulated is None else accumulated[number], device)
            window = columns.window[:, None].expand(-1, chosen.shape[1], -1).gather(2, chosen)
            free = group.capacity - window.shape[2]
            # a free slot copies some entry; it is written before it is ever read
            source = torch.cat([image[:, None].expand(-1, window.shape[1], -1), torch.nn.functional.pad(window, (0, free))], dim=2)
            sources.append(source.transpose(1, 2))  # [b, slots, 1 or G]
            sets.append((ordinals, torch.nn.functional.pad(chosen, (0, free), value=FREE), sums, index))
        self.flat = (self._gather(key, sources), self._gather(value, sources))
        self.parts, start = [], 0
        for group, source, (ordinals, order, sums, index) in zip(owner.groups, sources, sets, strict=True):
            shape = (group.b, source.shape[1], *self.flat[0].shape[1:])
            stop = start + shape[0] * shape[1]
            keys, values = (flat[start:stop].view(shape) for flat in self.flat)
            self.parts.append(Part(keys, values, ordinals, order, sums, index))
            start = stop

    def adopt(self, others: list[AdaptiveLayer]) -> None:
        """Hold what layers of other caches hold of one group's rows, behind one another; they hold nothing afterwards."""
        parts = [other.parts[0] for other in others]
        shape = (sum(part.keys.shape[0] for part in parts), *parts[0].keys.shape[1:])
        flats = [other.flat for other in others if other.flat is not None]
        self.flat = (torch.cat([keys for keys, _ in flats]), torch.cat([values for _, values in flats]))
        ordinals, order = torch.cat([part.ordinals for part in parts]), torch.cat([part.order for part in parts])
        sums = [part.accumulated for part in parts if part.accumulated is not None]
        index = [part.index for part in parts if part.index is not None]
        self.parts = [
            Part(
                self.flat[0].view(shape),
                self.flat[1].view(shape),
                ordinals,
                order,
                torch.cat(sums) if sums else None,
                torch.cat(index) if index else None,
            )
        ]
        self.is_initialized = True
        for other in others:
            other.flat, other.parts = None, []

    def _image(
        self, group: Group, columns: Columns, scores: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Secondary and core (paper, Fig. 6): source columns and ordinals ``[b, image]``, slots of a core step ``[b, core + capacity]``."""
        policy = self.owner.policy
        if not policy.pins_image:
            return columns.image[:, :0], columns.ordinals[:, :0], None
        row = group.row
        image, ordinals = columns.image, columns.ordinals
        stored = policy.store(self.number, self.owner.shape(row)).image
        if stored < image.shape[1]:
            assert scores is not None, "a policy that drops image tokens ranks them"
            chosen = best(scores, stored)
            image, ordinals, scores = image.gather(1, chosen), ordinals.gather(1, chosen), scores.gather(1, chosen)
        core = policy.select(self.number, self.owner.shape(row))
        if core is None:
            return image, ordinals, None
        assert scores is not None, "a policy that reads some image tokens ranks them"
        window = stored + torch.arange(group.capacity, device=image.device).expand(group.b, -1)
        return image, ordinals, torch.cat([best(scores, core), window], dim=1)

    def _window(
        self, group: Group, accumulated: torch.Tensor | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Which of the window's prompt tokens stay ``[b, 1 or G, count]``, and their sums padded to the capacity."""
        n, stay = group.prompt, group.count
        if stay == n:
            chosen = torch.arange(n, device=device).expand(group.b, 1 if accumulated is None else accumulated.shape[1], n)
        elif accumulated is not None:
            chosen = heavy_and_recent(accumulated, stay, min(group.recent, stay))
        else:
            oldest = torch.cat([torch.arange(group.sinks), torch.arange(n - stay + group.sinks, n)])
            chosen = oldest.to(device).expand(group.b, 1, stay)
        if accumulated is None:
            return chosen, None
        return chosen, torch.nn.functional.pad(accumulated.gather(2, chosen), (0, group.capacity - stay))

    def _gather(self, states: torch.Tensor, sources: list[torch.Tensor]) -> torch.Tensor:
        """One storage ``[slots, G, D]`` of exactly the columns asked for: a view would keep the whole prompt's states alive."""
        tokens = states.detach().transpose(1, 2)  # [B, L, G, D]
        head = torch.arange(tokens.shape[2], device=tokens.device)
        pieces = []
        for group, source in zip(self.owner.groups, sources, strict=True):
            row = torch.tensor(group.rows, device=tokens.device)[:, None]
            picked = tokens[row, source[..., 0]] if source.shape[2] == 1 else tokens[row[..., None], source, head]
            pieces.append(picked.flatten(0, 1))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def attended(self) -> None:
        """The attention function has served the last update; after the last layer the step, or the prompt, is complete."""
        self._waiting = False
        self.is_initialized = True
        self.owner._attended(self.number)

    def abandon(self) -> None:
        """A step broke off between its keys and its attention; the next one may begin."""
        self._waiting = False

    def get_seq_length(self) -> int:
        """Tokens seen, padding included, from which transformers derives positions; not tokens stored."""
        return self.owner.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return self.owner.batch_size

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise ValueError("adaptive attention does not do beam search, its rows are different requests: use num_beams=1")

    def reset(self) -> None:
        raise ValueError("this cache belongs to one generation: make a new one with avl.make_cache")
