"""The KV cache of one generation: its layers, the steps they take together, and what they add up to in tokens and bytes.

What a layer stores and how is in avl/layer.py, which slot holds what in avl/bank.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache

from avl.cache.contiguous import SlicedBank
from avl.cache.layer import AdaptiveLayer
from avl.cache.layout import Row, find_rows
from avl.cache.prefill_state import Prompt
from avl.cache.readback import Readback
from avl.cache.recorder import Recorder
from avl.cache.slots import FREE, Bank, FixedBank, Group, Part
from avl.models.families import describe, language_model
from avl.policies import Policy, PromptShape, check_policy
from avl.policies.base import check_whole

ImageSets = list[tuple[list[int], list[int]]]
"""Per layer: image tokens stored, and those that a core step reads."""

USED = "this cache holds another generation already: make a new one with avl.make_cache for every prompt"


class AdaptiveCache(Cache):
    """KV cache of one generation under a policy; made by :func:`make_cache`, passed to ``model.generate(past_key_values=cache)``.

    Attributes:
        t: decode steps begun. seen: tokens seen, padding included. update_step: the last step was an update step.
        banks: the bookkeeping of all layers; empty before the prompt.
        pruned: row -> image tokens that left the hidden states in prefill.
        fixed: all that a step changes lies in tensors that stay where they are (see ``FixedBank``); whoever sets it, before the prompt,
            calls ``advance`` before every step and ``settle`` after it.
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
        self.fixed = False
        self.peak_bytes = 0
        self.pruned: dict[int, list[int]] = {}
        self.recorder: Recorder | None = None  # of row 0, set by record()
        self.groups = self._alike()
        self._prompt: Prompt | None = None
        self._read = [0] * n_layers
        self.banks: list[Bank] = []
        self._stored_images: dict[int, list[list[int]]] = {}
        self._entry_bytes = 0
        self._passed = False

    def _alike(self) -> list[Group]:
        alike: dict[Row, list[int]] = {}
        for number, row in enumerate(self.rows):
            alike.setdefault(row, []).append(number)
        groups = []
        for row, numbers in alike.items():
            shape = self.shape(row)
            store = self.policy.store(0, shape)
            prompt = row.n_text if self.policy.pins_image else row.length
            longest = prompt + self.max_new_tokens
            # one slot more than the window: a new token is stored and attended to before the weakest entry leaves
            capacity = longest if store.window is None else min(store.window + 1, longest)
            count = prompt if store.window is None else min(prompt, store.window)
            observation = self.policy.observe(0, shape)
            accumulate = observation.heads if observation is not None else None
            groups.append(Group(numbers, row, prompt, store.window, store.recent, store.sinks, capacity, accumulate, count))
        return groups

    def shape(self, row: Row) -> PromptShape:
        """Return the sizes that the policy is asked about."""
        return PromptShape(row.n_image, row.n_text, self.max_new_tokens, len(self.layers))

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
        assert not self.fixed, "what is recorded has another shape at every step"
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
        if length != 1 or not self.banks:
            raise ValueError(USED)
        if not self.fixed:
            self.advance()
        for bank in self.banks:
            bank.enter(bank.group.prompt + self.t - 1)

    def advance(self) -> None:
        """Count the step that begins.

        Raises:
            ValueError: there is no room for another token.
        """
        if self.t >= self.max_new_tokens:
            raise ValueError(f"this cache has room for {self.max_new_tokens} new tokens: make it with a larger max_new_tokens")
        self.t += 1
        self.seen += 1
        self.update_step = self.policy.is_update(self.t)
        for group in self.groups:
            group.count += 1
            group.entered += 1
        for bank in self.banks:
            core = None if self.update_step else bank.core
            bank.read = (bank.image if core is None else core) + bank.group.count

    def settle(self) -> None:
        """Count what the step that ends evicted."""
        for group in self.groups:
            if group.size is not None:
                group.count = min(group.count, group.size)

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
            return
        for bank in self.banks:
            bank.leave(self.update_step)
        if not self.fixed:
            self.settle()

    def _open_banks(self) -> None:
        for place, group in enumerate(self.groups):
            alike: dict[Any, list[Part]] = {}
            for layer in self.layers:
                part = layer.parts[place]
                core = self.policy.select(layer.number, self.shape(group.row)) if part.index is not None else None
                alike.setdefault((part.keys.device, part.image, core), []).append(part)
            for (device, _, core), parts in alike.items():
                if self.fixed:
                    self.banks.append(FixedBank(group, parts, core))
                elif core is not None and group.b == 1 and device.type == "cpu":
                    self.banks.append(SlicedBank(group, parts, core))
                else:
                    self.banks.append(Bank(group, parts, core))

    def piece(self, first: int, last: int) -> AdaptiveCache:
        """A cache for rows ``first`` to ``last - 1`` alone, whose prompt runs by itself; :meth:`adopt` takes it back."""
        piece = AdaptiveCache(self.model(), self.rows[first:last], self.policy, self.max_new_tokens, len(self.layers))
        if first == 0:
            piece.recorder = self.recorder
        return piece

    def adopt(self, pieces: list[AdaptiveCache]) -> None:
        """Take over what the prompts of all rows left, layer by layer: only one layer is ever held twice.

        Args:
            pieces: from :meth:`piece`, in order, each with its prompt done. They are empty afterwards.
        """
        assert len(self.groups) == 1, "rows laid out alike follow one another in memory"
        held, first = 0, 0
        for piece in pieces:
            self.peak_bytes = max(self.peak_bytes, held + piece.peak_bytes)
            held += piece.allocated_bytes
            self.pruned |= {first + row: tokens for row, tokens in piece.pruned.items()}
            first += piece.batch_size
        for number, layer in enumerate(self.layers):
            parts = [piece.layers[number] for piece in pieces]
            layer.adopt(parts)
            self.peak_bytes = max(self.peak_bytes, held + sum(flat.nbytes for flat in layer.flat or ()))
        self._read = [sum(counts) for counts in zip(*(piece.read_tokens for piece in pieces), strict=True)]
        self.seen, self._entry_bytes = pieces[0].seen, pieces[0]._entry_bytes
        self._open_banks()

    def _note_pruned(self) -> None:
        prompt = self.prompt
        if prompt.survivors is None:
            return
        for group, columns in zip(self.groups, prompt.columns, strict=True):
            for row, ordinals in zip(group.rows, columns.ordinals.tolist(), strict=True):
                self.pruned[row] = sorted(set(range(group.row.n_image)) - set(ordinals))

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
        return [sum(part.bank.group.b * part.bank.read for part in layer.parts if part.bank) for layer in self.layers]

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

    def image_sets(self, row: int = 0) -> ImageSets:
        """Per layer: the image tokens (0 to N - 1) of one row that are stored, and those that a core step reads, both ascending.

        Policies that choose per key-value head give the union over the heads. Waits for the device.
        """
        return self.image_sets_later(row)()

    def image_sets_later(self, row: int = 0) -> Callable[[], ImageSets]:
        """The sets of :meth:`image_sets` as they are now, for later: waits for the device only when called."""
        group_place, place = self._find(row)
        group = self.groups[group_place]
        parts = [layer.parts[group_place] for layer in self.layers]
        if not self.policy.pins_image:
            orders = {id(bank): Readback(bank.order[:, place]) for bank in self.banks if bank.group is group}

            def held() -> ImageSets:
                image = {position: ordinal for ordinal, position in enumerate(group.row.image)}
                sets = []
                for part in parts:
                    there = set(orders[id(part.bank)].get()[part.place].flatten().tolist())
                    stored = sorted(image[position] for position in there if position in image)
                    sets.append((stored, stored))
                return sets

            return held
        # which image tokens a layer stores does not change after the prompt, and only a CPU moves them about
        if row not in self._stored_images or any(bank.consecutive for bank in self.banks):
            self._stored_images[row] = [part.ordinals[place].tolist() for part in parts]
        stored = self._stored_images[row]
        cores = {
            id(bank): Readback(bank.index[:, place, : bank.core])
            for bank in self.banks
            if bank.group is group and bank.index is not None
        }

        def chosen() -> ImageSets:
            sets = []
            for part, ordinals in zip(parts, stored, strict=True):
                read = ordinals
                if part.index is not None:
                    read = [ordinals[slot] for slot in cores[id(part.bank)].get()[part.place].tolist()]
                sets.append((sorted(ordinals), sorted(read)))
            return sets

        return chosen

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
    check_policy(policy)
    check_whole("max_new_tokens", max_new_tokens, 1)
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
