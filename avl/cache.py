"""What a layer stores: slots, positions, eviction, byte counts. The only place that moves keys and values.

Layout. Per layer one flat storage ``[slots, G, D]`` for keys and one for values, token-major, so that one slot index serves all heads.
Rows of a batch that are laid out alike (same padding, length and image positions) form a group and sit there as ``[b, slots, G, D]``;
a ragged batch has several groups and wastes nothing. Within a row: pinned image slots, then the window (text, or everything for
policies that know no modalities) with the free slots last. Keys are stored after RoPE, so order in memory means nothing and an
evicted entry's slot is simply overwritten by the next token.

Shapes: B rows, b rows of a group, G key-value heads, D head size, M image tokens a layer holds, n layers of a bank.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from avl.architectures import describe, language_model
from avl.bank import FREE, Bank, Group, Part
from avl.partition import best, heavy_and_recent
from avl.policies import Policy
from avl.prompt import Columns, Prompt
from avl.recorder import Recorder
from avl.spans import Row, find_rows

USED = "this cache holds another generation already: make a new one with avl.make_cache for every prompt"


class AdaptiveLayer(CacheLayerMixin):
    """The entries of one decoder layer. Works with the attention function of avl/attention.py, which finds it by a tag on the keys."""

    is_sliding = False

    def __init__(self, owner: AdaptiveCache, number: int) -> None:
        self.parts: list[Part] = []
        self.flat: tuple[torch.Tensor, torch.Tensor] | None = None
        super().__init__()
        # weak: a cycle would keep a cancelled generation's memory until the garbage collector happens to run
        self._owner = weakref.ref(owner)
        self.number = number
        self._waiting = False

    @property
    def owner(self) -> AdaptiveCache:
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
            self._write(key_states.detach(), value_states.detach())
        # an attribute of the tensor and not of the module: two generations may interleave on one model
        key_states.avl_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def _write(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put the new token's key and value ``[B, G, 1, D]`` into the slot that is free or was freed."""
        for group, part in zip(self.owner.groups, self.parts, strict=True):
            assert part.bank is not None
            slot = part.bank.slot
            for stored, new in ((part.keys, key), (part.values, value)):
                entry = self.owner.rows_of(new, group)[:, :, 0]
                if isinstance(slot, int):
                    stored[:, part.image + slot] = entry
                else:
                    row = torch.arange(group.b, device=entry.device)[:, None]
                    head = torch.arange(entry.shape[1], device=entry.device)
                    stored[row, part.image + slot[part.place], head] = entry

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

    def _image(
        self, group: Group, columns: Columns, scores: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Secondary and core (paper, Fig. 6): source columns and ordinals ``[b, image]``, slots of a core step ``[b, core + capacity]``."""
        policy = self.owner.policy
        if not policy.pins_image:
            return columns.image[:, :0], columns.ordinals[:, :0], None
        row = group.row
        image, ordinals = columns.image, columns.ordinals
        stored = policy.store(self.number, row.n_image, row.n_text, self.owner.max_new_tokens).image
        if stored < image.shape[1]:
            assert scores is not None, "a policy that drops image tokens ranks them"
            chosen = best(scores, stored)
            image, ordinals, scores = image.gather(1, chosen), ordinals.gather(1, chosen), scores.gather(1, chosen)
        core = policy.select(self.number, row.n_image)
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


class AdaptiveCache(Cache):
    """KV cache of one generation under a policy; made by :func:`make_cache`, passed to ``model.generate(past_key_values=cache)``.

    Attributes:
        t: decode steps begun. seen: tokens seen, padding included. update_step: the last step was an update step.
        pruned: row -> image tokens that left the hidden states in prefill.
        peak_bytes: most bytes of keys and values held at any time, the one layer that prefill holds whole included.
    """

    layers: list[AdaptiveLayer]  # type: ignore[assignment]

    def __init__(self, model: Any, rows: tuple[Row, ...], policy: Policy, max_new_tokens: int, n_layers: int) -> None:
        super().__init__(layers=[AdaptiveLayer(self, number) for number in range(n_layers)])
        self.model = weakref.ref(model)
        self.rows, self.policy, self.max_new_tokens = rows, policy, max_new_tokens
        self.t = 0
        self.seen = 0
        self.update_step = False
        self.peak_bytes = 0
        self.pruned: dict[int, list[int]] = {}
        self.recorder: Recorder | None = None  # of row 0, set by record()
        self.groups = self._alike()
        self._prompt: Prompt | None = None
        self._read = [0] * n_layers
        self._banks: list[Bank] = []
        self._entry_bytes = 0
        self._passed = False

    def _alike(self) -> list[Group]:
        alike: dict[Row, list[int]] = {}
        for number, row in enumerate(self.rows):
            alike.setdefault(row, []).append(number)
        groups = []
        for row, numbers in alike.items():
            store = self.policy.store(0, row.n_image, row.n_text, self.max_new_tokens)
            prompt = row.n_text if self.policy.pins_image else row.length
            longest = prompt + self.max_new_tokens
            # one slot more than the window: a new token is stored and attended to before the weakest entry leaves
            capacity = longest if store.window is None else min(store.window + 1, longest)
            count = prompt if store.window is None else min(prompt, store.window)
            accumulate = self.policy.observe(row.n_image, row.n_text, self.max_new_tokens).accumulate
            groups.append(Group(numbers, row, prompt, store.window, store.recent, store.sinks, capacity, accumulate, count))
        return groups

    @property
    def batch_size(self) -> int:
        return len(self.rows)

    @property
    def _is_user_defined(self) -> bool:
        """transformers' generate marks a cache that its caller passed, first of all; the one place to say that this one is used up."""
        return self._passed

    @_is_user_defined.setter
    def _is_user_defined(self, value: bool) -> None:
        if self.seen:
            raise ValueError(USED)
        self._passed = value

    def record(self) -> Recorder:
        """Keep every pass's attention of row 0 from now on; the passes take longer for it."""
        self.recorder = Recorder(self.rows[0], len(self.layers))
        return self.recorder

    def rows_of(self, states: torch.Tensor, group: Group) -> torch.Tensor:
        """The rows of ``states [B, ...]`` that belong to ``group``; no copy where that is all of them."""
        return states if len(self.groups) == 1 else states[group.rows]

    @property
    def prompt(self) -> Prompt:
        """State of the prompt pass; it lives until the last layer has run."""
        if self._prompt is None:
            self._prompt = Prompt(self.rows, [group.rows for group in self.groups], self.policy.pins_image)
        return self._prompt

    def enter(self, first_layer: Any, batch: int, length: int) -> None:
        """A forward pass of ``length`` tokens per row begins: checks that it is the one this cache was made for.

        Raises:
            ValueError: another model, another batch, a prompt other than the one the cache was made for, a cache used twice, or more
                steps than it has room for.
        """
        model = self.model()
        if model is None or language_model(model).layers[0] is not first_layer:
            raise ValueError("this cache was made for another model: make one with avl.make_cache(model, inputs, policy)")
        if batch != self.batch_size:
            raise ValueError(
                f"this cache was made for {self.batch_size} rows, the model got {batch}: make one for this batch "
                "(beam search and num_return_sequences are not supported)"
            )
        if self.seen == 0:
            expected = self.rows[0].pad + self.rows[0].length
            if length != expected:
                raise ValueError(f"this cache was made for a prompt of {expected} tokens, not {length}: make one from these inputs")
            self.seen = length
            return
        if length != 1 or not self._banks:
            raise ValueError(USED)
        if self.t >= self.max_new_tokens:
            raise ValueError(f"this cache has room for {self.max_new_tokens} new tokens: make it with a larger max_new_tokens")
        self.t += 1
        self.seen += 1
        self.update_step = self.policy.is_update(self.t)
        for group in self.groups:
            group.count += 1
        for bank in self._banks:
            bank.enter(bank.group.prompt + self.t - 1)

    def _attended(self, number: int) -> None:
        if self.t == 0:
            layer, prompt = self.layers[number], self.prompt
            assert layer.flat is not None
            storage = layer.flat[0]
            self._entry_bytes = 2 * storage.shape[1] * storage.shape[2] * storage.element_size()
            self._read[number] = prompt.real_tokens()
            whole = self.batch_size * prompt.length * self._entry_bytes
            self.peak_bytes = max(self.peak_bytes, whole + self.allocated_bytes)
        if number + 1 < len(self.layers):
            return
        if self.t == 0:
            self._open_banks()
            self._note_pruned()
            self._prompt = None
        else:
            self._leave()

    def _open_banks(self) -> None:
        for place, group in enumerate(self.groups):
            alike: dict[Any, list[Part]] = {}
            for layer in self.layers:
                part = layer.parts[place]
                core = self.policy.select(layer.number, group.row.n_image) if part.index is not None else None
                alike.setdefault((part.keys.device, part.image, core), []).append(part)
            self._banks += [Bank(group, parts, core) for (_, _, core), parts in alike.items()]

    def _note_pruned(self) -> None:
        prompt = self.prompt
        if prompt.survivors is None:
            return
        for group, columns in zip(self.groups, prompt.columns, strict=True):
            for row, ordinals in zip(group.rows, columns.ordinals.tolist(), strict=True):
                self.pruned[row] = sorted(set(range(group.row.n_image)) - set(ordinals))

    def _leave(self) -> None:
        """After a step: new core from an update step's scores; where the window is over its size, the weakest entry leaves."""
        for bank in self._banks:
            group = bank.group
            if self.update_step:
                bank.choose_core()
            if group.size is not None and group.count > group.size:
                bank.evict(group.prompt + self.t)
            else:
                bank.slot = group.count
        for group in self.groups:
            if group.size is not None:
                group.count = min(group.count, group.size)

    @property
    def stored_tokens(self) -> list[int]:
        """Per layer: entries held now, all rows added up (an entry is the key and value of all heads of one token)."""
        counts = [0] * len(self.layers)
        for number, layer in enumerate(self.layers):
            counts[number] = sum(group.b * (part.image + group.count) for group, part in zip(self.groups, layer.parts, strict=False))
        return counts

    @property
    def read_tokens(self) -> list[int]:
        """Per layer: entries that the last step's attention read, all rows added up; after prefill, those its last query could read."""
        if self.t == 0:
            return list(self._read)
        return [
            sum(group.b * part.read for group, part in zip(self.groups, layer.parts, strict=True)) for layer in self.layers
        ]

    @property
    def stored_bytes(self) -> int:
        """Bytes of keys and values held now, all layers and rows; free slots are not counted (see ``allocated_bytes``)."""
        return sum(self.stored_tokens) * self._entry_bytes

    @property
    def read_bytes(self) -> int:
        """Bytes of keys and values that the last step's attention read, all layers and rows."""
        return sum(self.read_tokens) * self._entry_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the storages behind the cache: ``stored_bytes`` and the window's free slots."""
        return sum(flat.untyped_storage().nbytes() for layer in self.layers for flat in layer.flat or ())

    def positions_read(self, part: Part, core: torch.Tensor | None) -> torch.Tensor:
        """Positions of the entries of row 0 that this step reads, in the order they are read: ``[n]``, or ``[G, n]`` per key-value head.

        ``core``: image slots that are read, None for all.
        """
        group = self.groups[0]
        row, device = group.row, part.order.device
        order = part.order[0, :, : group.count]
        prompt = torch.tensor(row.text if self.policy.pins_image else range(row.length), device=device)
        known = prompt[order.clamp(max=group.prompt - 1)]
        window = torch.where(order < group.prompt, known, order - group.prompt + row.length)
        ordinals = part.ordinals[0] if core is None else part.ordinals[0, core]
        image = torch.tensor(row.image, device=device)[ordinals].expand(window.shape[0], -1)
        return torch.cat([image, window], dim=1).squeeze(0)

    def image_sets(self, row: int = 0) -> list[tuple[list[int], list[int]]]:
        """Per layer: the image tokens (0 to N - 1) of one row that are stored, and those that a core step reads, both ascending.

        Policies that choose per key-value head give the union over the heads. Waits for the device.
        """
        group_place, place = self._find(row)
        group = self.groups[group_place]
        sets = []
        for layer in self.layers:
            part = layer.parts[group_place]
            if self.policy.pins_image:
                ordinals = part.ordinals[place]
                stored = ordinals.tolist()
                core = self.policy.select(layer.number, group.row.n_image)
                read = stored if part.index is None else ordinals[part.index[place, :core]].tolist()
            else:
                image = {position: ordinal for ordinal, position in enumerate(group.row.image)}
                held = set(part.order[place].flatten().tolist())
                stored = read = sorted(image[position] for position in held if position in image)
            sets.append((sorted(stored), sorted(read)))
        return sets

    def text_positions(self, layer: int, row: int = 0) -> list[int]:
        """Positions, counted from the row's first real token, of the text tokens that ``layer`` stores; ascending. Waits for the device."""
        group_place, place = self._find(row)
        group = self.groups[group_place]
        prompt = group.row.text if self.policy.pins_image else tuple(range(group.row.length))
        positions = prompt + tuple(range(group.row.length, group.row.length + self.t))
        held = {order for order in self.layers[layer].parts[group_place].order[place].flatten().tolist() if order != FREE}
        return sorted({positions[order] for order in held} - set(group.row.image))

    def _find(self, row: int) -> tuple[int, int]:
        for number, group in enumerate(self.groups):
            if row in group.rows:
                return number, group.rows.index(row)
        raise ValueError(f"row {row} is out of range: this cache has {self.batch_size} rows")


def make_cache(model: Any, inputs: Any, policy: Policy, max_new_tokens: int = 64) -> AdaptiveCache:
    """The KV cache for one ``model.generate`` call under ``policy``.

    Args:
        model: an attached LLaVA (see ``avl.attach``). inputs: the processor's output (``input_ids``, ``attention_mask``).
        policy: what to store and read. max_new_tokens: most tokens that will be generated; sizes the window (T) and the memory.

    Raises:
        ValueError: the model or policy is of an unsupported kind, a row has no image or is padded on the right, the prompt does not fit
            into the model's context, or max_new_tokens is not a positive number.
    """
    if not isinstance(policy, Policy):
        raise ValueError(f"{policy!r} is not a policy: pass avl.Full(), avl.AVL(...), avl.H2O(), avl.FastV() or avl.StreamingLLM()")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens!r} is out of range: it is a whole number of at least 1")
    facts = describe(model)
    policy.check_model(facts.layers)
    rows = find_rows(inputs["input_ids"], inputs.get("attention_mask"), facts.image_token_id)
    longest = max(row.length for row in rows) + max_new_tokens
    if longest > facts.context:
        raise ValueError(
            f"prompt and answer need {longest} tokens, the model's context has {facts.context}: "
            f"shorten the question, use fewer or smaller images, or lower max_new_tokens={max_new_tokens}"
        )
    return AdaptiveCache(model, rows, policy, max_new_tokens, facts.layers)
