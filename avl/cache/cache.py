"""The KV cache of one generation: its layers, the forward passes through them, and their totals in tokens and bytes.

Every forward pass begins and ends explicitly. A pass that transformers runs, prompt or step: ``begin_pass``, the layers, ``end_pass``. A
step of our own loop: ``begin_step`` (counts on the host), ``enter`` (gives the token its slots, on the device), the layers, ``evict`` (on
the device), ``end_step`` (counts on the host).
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache

from avl.cache import inspect
from avl.cache.contiguous import ContiguousSlotTable
from avl.cache.layer import NOT_ATTACHED, AdaptiveLayer
from avl.cache.layout import Row, check_image_tokens, check_images, check_mask, find_rows, ids_and_mask
from avl.cache.prefill_state import PrefillState
from avl.cache.readback import Readback
from avl.cache.recorder import Recorder
from avl.cache.slots import LayerKV, RowBucket, SlotTable, StaticSlotTable
from avl.models.families import Facts, describe, family_of, language_model
from avl.policies import Policy, check_policy
from avl.policies.base import whole

USED = (
    "this cache holds another generation already, or the call feeds several tokens a step (assisted decoding, use_cache=False): "
    "make a new one with avl.make_cache for every prompt, and feed one token a step"
)


class AdaptiveCache(Cache):
    """KV cache of one generation under a policy; made by :func:`make_cache`, passed to ``model.generate(past_key_values=cache)``.

    Attributes:
        t: decode steps begun.
        seen: tokens of all completed passes, padding included.
        update_step: whether the last step was an update step.
        in_pass: whether a forward pass has begun and is not complete.
        looped: whether our own loop begins and ends steps (avl/engine/decoder.py), also those in which it runs the whole model.
        buckets: groups of rows with the same layout.
        tables: the slot tables of all layers; empty until the prompt is done.
        pruned: row -> image tokens removed from the hidden states in prefill.
        part: whether it holds some rows of another cache, which takes them back after the prompt (:meth:`chunk`).
        static: whether a step changes nothing but tensors at fixed addresses (see ``StaticSlotTable``); set before the prompt.
        peak_bytes: most bytes of keys and values held at any time, including the one layer whose full KV prefill holds.
    """

    layers: list[AdaptiveLayer]  # type: ignore[assignment]

    def __init__(self, model: Any, rows: tuple[Row, ...], policy: Policy, max_new_tokens: int, facts: Facts) -> None:
        n_layers = facts.layers
        super().__init__(layers=[AdaptiveLayer(self, number) for number in range(n_layers)])
        self.model = weakref.ref(model)
        self.facts = facts
        self.rows, self.policy, self.max_new_tokens = rows, policy, max_new_tokens
        self.t = self.seen = self.peak_bytes = 0
        self.update_step = self.in_pass = self.looped = self.static = self.part = False
        self.pruned: dict[int, list[int]] = {}
        self.recorder: Recorder | None = None  # of row 0, set by record()
        alike: dict[Row, list[int]] = {}
        for number, row in enumerate(rows):
            alike.setdefault(row, []).append(number)
        self.buckets = [RowBucket.of(numbers, row, policy, max_new_tokens, n_layers) for row, numbers in alike.items()]
        self.tables: list[SlotTable] = []
        self.attended = 0  # layers whose attention ran in this pass
        self.stored_images: dict[int, list[Readback]] = {}  # kept by inspect.ImageSetsLater
        self._prefill: PrefillState | None = None
        self._read = [0] * n_layers
        self._token_bytes = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> AdaptiveCache:
        """Copy everything but the model; the copy goes on independently, as for several continuations of one prompt."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        memo[id(self.facts)] = self.facts
        for name, value in vars(self).items():
            setattr(twin, name, copy.deepcopy(value, memo))
        for layer in twin.layers:
            layer.adopt(twin)
        for table in twin.tables:
            table.adopt([kv for layer in twin.layers for kv in layer.kvs if kv.table is table])
        return twin

    def __reduce__(self) -> Any:
        raise TypeError(
            "an AdaptiveCache cannot be pickled, it belongs to a model of this process: make it again from its inputs, or use copy.deepcopy"
        )

    @property
    def batch_size(self) -> int:
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Most positions of a row, prompt and answer."""
        return max(row.length for row in self.rows) + self.max_new_tokens

    @property
    def prefill(self) -> PrefillState:
        """State of the prompt's pass; dropped after the last layer."""
        if self._prefill is None:
            self._prefill = PrefillState(self.rows, [bucket.rows for bucket in self.buckets], self.policy.pins_image)
        return self._prefill

    def record(self) -> Recorder:
        """Record the attention of row 0 in every pass from now on, and return the recorder; passes become slower."""
        assert not self.static, "recorded tensors have another shape at every step"
        self.recorder = Recorder(self.rows[0], len(self.layers))
        return self.recorder

    def rows_of(self, states: torch.Tensor, bucket: RowBucket) -> torch.Tensor:
        """Return the rows of ``states [B, ...]`` that belong to ``bucket``; without a copy if those are all rows."""
        return states if len(self.buckets) == 1 else states[list(bucket.rows)]

    def begin_pass(self, text_model: Any, batch: int, length: int, mask: torch.Tensor | None, checked: bool = False) -> None:
        """Begin a forward pass driven by transformers: the prompt, or a step.

        Args:
            text_model: the text decoder that runs.
            batch: number of rows.
            length: tokens per row in this pass.
            mask: ``[B, tokens of this pass and all before]``, 0 for padding; None if the caller has none.
            checked: whether the caller has seen to it that only padding is hidden.

        Raises:
            ValueError: the model, the batch, the prompt or its mask is not the one this cache was made for, the cache was used before, or
                it has no room for another step.
        """
        model = self.model()
        if model is None or language_model(model) is not text_model:
            raise ValueError("this cache was made for another model: make one with avl.make_cache(model, inputs, policy)")
        if batch != self.batch_size:
            raise ValueError(
                f"this cache was made for {self.batch_size} rows, the model got {batch}: make one for this batch "
                "(beam search and num_return_sequences are not supported)"
            )
        if self.looped:
            self.attended = 0
            return
        if self.tables:
            if length != 1 or (mask is not None and mask.shape[1] != self.seen + 1):
                raise ValueError(USED)
            if not checked:
                check_mask(self.rows, mask, 1 + self.seen)
            self.begin_step()
            self.enter()
            return
        expected = self.rows[0].pad + self.rows[0].length
        if length != expected:
            raise ValueError(
                f"this cache was made for a prompt of {expected} tokens, the model got {length}: make one from these inputs, and feed them "
                "whole (prefill_chunk_size and assisted decoding are not supported)"
            )
        if not checked:
            check_mask(self.rows, mask, None)
        self._begin()

    def check_prompt(self, input_ids: torch.Tensor) -> None:
        """Refuse a prompt ``[B, L]`` whose image tokens are elsewhere than in the one this cache was made for (``ValueError``)."""
        check_image_tokens(self.rows, input_ids, self.facts.image_token_id)

    def end_pass(self) -> None:
        """Complete the pass that :meth:`begin_pass` began.

        Raises:
            RuntimeError: some layer ran an attention other than ours, so the result is wrong.
        """
        if self.attended != len(self.layers):
            raise RuntimeError(NOT_ATTACHED)
        if self.looped:
            return
        if not self.tables:
            self.end_prompt()
            return
        self.evict()
        self.end_step()

    def end_prompt(self) -> None:
        """Complete the prompt's pass and make the slot tables."""
        self._open_tables()
        self._note_pruned()
        self._prefill = None
        self.seen = self.rows[0].pad + self.rows[0].length
        self.in_pass = False

    def begin_step(self) -> None:
        """Begin a step and count its token.

        Raises:
            ValueError: there is no room for another token.
        """
        if self.t >= self.max_new_tokens:
            raise ValueError(f"this cache has room for {self.max_new_tokens} new tokens: make it with a larger max_new_tokens")
        self._begin()
        self.t += 1
        self.update_step = self.policy.is_update(self.t)
        for table in self.tables:
            table.begin_step(self.update_step)

    def end_step(self) -> None:
        """Complete a step and count the tokens it evicted."""
        for table in self.tables:
            table.end_step()
        self.seen += 1
        self.in_pass = False

    def enter(self) -> None:
        """Give the step's token its slot in every layer."""
        for table in self.tables:
            table.enter()

    def evict(self) -> None:
        """Re-select the core after an update step, and evict the token that exceeds a window's size."""
        for table in self.tables:
            table.evict(self.update_step)

    @contextlib.contextmanager
    def rehearsal(self, update: bool) -> Iterator[None]:
        """Let steps of one kind run uncounted, so that one can be captured; the caller restores the device tensors they change."""
        before = self.update_step
        self.update_step, self.in_pass = update, True
        try:
            yield
        finally:
            self.update_step, self.in_pass = before, False

    def _begin(self) -> None:
        if self.in_pass:
            raise ValueError("a pass of this cache broke off, so what it holds is not whole: make a new one with avl.make_cache")
        self.in_pass, self.attended = True, 0

    def note_prompt(self, layer: AdaptiveLayer) -> None:
        """Count the tokens that ``layer`` keeps of the prompt, while its full keys and values are still in memory."""
        assert layer.flat is not None
        storage, prefill = layer.flat[0], self.prefill
        self._token_bytes = 2 * storage.shape[1] * storage.shape[2] * storage.element_size()
        self._read[layer.number] = prefill.real_tokens()
        self.peak_bytes = max(self.peak_bytes, self.batch_size * prefill.length * self._token_bytes + self.allocated_bytes)

    def _open_tables(self) -> None:
        for place, bucket in enumerate(self.buckets):
            alike: dict[Any, list[LayerKV]] = {}
            for layer in self.layers:
                kv = layer.kvs[place]
                alike.setdefault((kv.keys.device, kv.image, kv.core, kv.window), []).append(kv)
            for (device, _, core, _), kvs in alike.items():
                if self.static:
                    self.tables.append(StaticSlotTable(bucket, kvs, core))
                elif core is not None and bucket.b == 1 and device.type == "cpu" and not self.part:
                    self.tables.append(ContiguousSlotTable(bucket, kvs, core))
                else:
                    self.tables.append(SlotTable(bucket, kvs, core))

    def chunk(self, first: int, last: int) -> AdaptiveCache:
        """Return a cache for rows ``first`` to ``last - 1``, so that their prompt can run separately; :meth:`merge` takes it back."""
        chunk = AdaptiveCache(self.model(), self.rows[first:last], self.policy, self.max_new_tokens, self.facts)
        chunk.part = True
        if first == 0:
            chunk.recorder = self.recorder
        return chunk

    def merge(self, chunks: list[AdaptiveCache]) -> None:
        """Take over the keys and values of all chunks, layer by layer, so that only one layer is ever held twice.

        Args:
            chunks: from :meth:`chunk`, in row order, each with its prompt done. They are empty afterwards.
        """
        assert len(self.buckets) == 1, "chunks hold consecutive rows of one layout"
        held, first = 0, 0
        for chunk in chunks:
            self.peak_bytes = max(self.peak_bytes, held + chunk.peak_bytes)
            held += chunk.allocated_bytes
            self.pruned |= {first + row: tokens for row, tokens in chunk.pruned.items()}
            first += chunk.batch_size
        for number, layer in enumerate(self.layers):
            layer.merge([chunk.layers[number] for chunk in chunks])
            self.peak_bytes = max(self.peak_bytes, held + sum(flat.nbytes for flat in layer.flat or ()))
        self._read = [sum(counts) for counts in zip(*(chunk.read_tokens for chunk in chunks), strict=True)]
        self.seen, self._token_bytes = chunks[0].seen, chunks[0]._token_bytes
        self._open_tables()

    def _note_pruned(self) -> None:
        prefill = self.prefill
        if prefill.survivors is None:
            return
        for bucket, columns in zip(self.buckets, prefill.columns, strict=True):
            for row, image_idx in zip(bucket.rows, columns.image_idx.tolist(), strict=True):
                self.pruned[row] = sorted(set(range(bucket.row.n_image)) - set(image_idx))

    @property
    def stored_tokens(self) -> list[int]:
        """Tokens stored now per layer, summed over rows (one token: the keys and values of all heads)."""
        pairs = (zip(self.buckets, layer.kvs, strict=False) for layer in self.layers)  # no KV before the layer's prompt has run
        return [sum(bucket.b * (kv.image + kv.count) for bucket, kv in alike) for alike in pairs]

    @property
    def read_tokens(self) -> list[int]:
        """Tokens read by the last step's attention per layer, summed over rows; after prefill, those visible to its last query."""
        if self.t == 0:
            return list(self._read)
        return [sum(kv.table.bucket.b * kv.table.read for kv in layer.kvs if kv.table) for layer in self.layers]

    @property
    def stored_bytes(self) -> int:
        """Bytes of keys and values stored now, all layers and rows; excludes free slots (see ``allocated_bytes``)."""
        return sum(self.stored_tokens) * self._token_bytes

    @property
    def read_bytes(self) -> int:
        """Bytes of keys and values read by the last step's attention, all layers and rows."""
        return sum(self.read_tokens) * self._token_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes allocated for keys and values: ``stored_bytes`` plus the windows' free slots."""
        return sum(flat.untyped_storage().nbytes() for layer in self.layers for flat in layer.flat or ())

    def image_sets(self, row: int = 0) -> inspect.ImageSets:
        """Return, per layer, the image tokens (0 to N - 1) of one row that are stored and those that a core step reads, both ascending.

        For policies that choose per key-value head, returns the union over the heads. Waits for the device.
        """
        return inspect.ImageSetsLater(self, row).get()

    def text_positions(self, layer: int, row: int = 0) -> list[int]:
        """Return the positions of the text tokens that ``layer`` stores, ascending, counted from the row's first real token."""
        return inspect.text_positions(self, layer, row)


def make_cache(model: Any, inputs: Any, policy: Policy, max_new_tokens: int = 64) -> AdaptiveCache:
    """Return the KV cache for one ``model.generate`` call under ``policy``.

    Prompts may be without image. A policy for image tokens then has only the text of such a row to choose from, and a warning says so.

    Args:
        model: an attached model (see ``avl.attach``).
        inputs: the processor's output (``input_ids``, ``attention_mask``).
        policy: what to store and read.
        max_new_tokens: most tokens to generate; determines the size of the text window (T) and of the memory.

    Raises:
        TypeError: the model's class is not supported.
        ValueError: the policy does not fit the model, a row is padded on the right, there are images and no image tokens, a prompt ends in
            an image that leaves the next position in doubt, prompt and answer exceed the model's context or the window of its layers, or
            max_new_tokens is not a positive number.
    """
    check_policy(policy)
    max_new_tokens = whole("max_new_tokens", max_new_tokens, 1)
    facts = describe(model)
    policy.check_model(facts.layers)
    rows = find_rows(*ids_and_mask(inputs), facts.image_token_id)
    check_images(rows, inputs, family_of(model.config), policy)
    longest = max(row.length for row in rows) + max_new_tokens
    if longest > facts.context:
        raise ValueError(
            f"prompt and answer need {longest} tokens, the model's context has {facts.context}: "
            f"shorten the question, use fewer or smaller images, or lower max_new_tokens={max_new_tokens}"
        )
    if facts.window is not None and longest > facts.window:
        raise ValueError(
            f"prompt and answer need {longest} tokens, and some layers of this model see a window of {facts.window}, within which adaptive "
            f"attention chooses nothing: shorten the question, use fewer or smaller images, or lower max_new_tokens={max_new_tokens}"
        )
    return AdaptiveCache(model, rows, policy, max_new_tokens, facts)
