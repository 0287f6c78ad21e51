"""The KV cache of one generation: its layers, the forward passes through them, and their totals in tokens and bytes.

Every forward pass begins and ends explicitly. A pass that transformers runs, prompt or step: ``begin_pass``, the layers, ``end_pass``. A
step of our own loop: ``begin_step`` (counts on the host), ``enter`` (gives the token its slots, on the device), the layers, ``evict`` (on
the device), ``end_step`` (counts on the host). A later turn of a conversation (avl/cache/turns.py) is ``extend``, a pass, and steps again.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from avl.cache import inspect, joined
from avl.cache.counts import Counted
from avl.cache.generated_turns import begin_generated_turn
from avl.cache.held import Past, Turn
from avl.cache.layer import NOT_ATTACHED, AdaptiveLayer
from avl.cache.layout import Row, check_image_tokens, check_images, check_mask, check_room, find_rows, ids_and_mask
from avl.cache.parts import make_tables, merge
from avl.cache.prefill_state import PrefillState
from avl.cache.readback import Readback
from avl.cache.recorder import Recorder
from avl.cache.slots import RowBucket, SlotTable
from avl.cache.turns import BROKEN, begin_turn, end_turn
from avl.models.families import Facts, describe, family_of, language_model
from avl.policies import Policy, check_policy
from avl.policies.base import PastTurn, whole

USED = (
    "this cache holds another generation already, or the call feeds several tokens a step (assisted decoding, use_cache=False): "
    "make a new one with avl.make_cache for every prompt, call its next_turn before a conversation goes on, and feed one token a step"
)


class AdaptiveCache(Counted):
    """KV cache of one generation under a policy; made by :func:`make_cache`, passed to ``model.generate(past_key_values=cache)``.

    Attributes:
        t: decode steps begun.
        seen: tokens of all completed passes, padding included.
        update_step: whether the last step was an update step.
        in_pass: whether a forward pass has begun and is not complete.
        looped: whether our own loop begins and ends steps (avl/engine/decoder.py), also those in which it runs the whole model.
        buckets: groups of rows with the same layout.
        tables: the slot tables of all layers; empty until the prompt is done.
        joined: the same, where steps run rows of all buckets together; else empty.
        pruned: row -> image tokens removed from the hidden states, of the prompt and of later turns.
        part: whether it holds some rows of another cache, which takes them back after the prompt (:meth:`chunk`).
        turn: a later turn of the conversation whose first pass has not run yet, None otherwise.
        turns: how many turns have begun.
        ahead: ``[B, 1]``, by how much the position of the next token exceeds the number of those before it; None before the prompt is done.
        split: whether its prompt runs now, in parts, so that passes begin and end for those.
        static: whether a step changes nothing but tensors at fixed addresses (see ``StaticSlotTable``); set before the prompt.
        peak_bytes: most bytes of keys and values held at any time, including the one layer whose full KV prefill holds.
    """

    layers: list[AdaptiveLayer]

    def __init__(
        self,
        model: Any,
        rows: tuple[Row, ...],
        policy: Policy,
        max_new_tokens: int,
        facts: Facts,
        pasts: Sequence[PastTurn | None] | None = None,
    ) -> None:
        n_layers = facts.layers
        super().__init__(layers=[AdaptiveLayer(self, number) for number in range(n_layers)])
        self.model = weakref.ref(model)
        self.facts = facts
        self.policy = policy
        self.t = self.seen = self.peak_bytes = 0
        self.update_step = self.in_pass = self.looped = self.static = self.part = self.split = False
        self.pruned: dict[int, list[int]] = {}
        self.recorder: Recorder | None = None  # of row 0, set by record()
        self.lay_out(rows, pasts or [None] * len(rows), max_new_tokens)
        self.turn: Turn | None = None
        self.turns = 1
        self.parked: dict[int, Past] = {}  # rows whose answer is complete while others go on
        self.ahead: torch.Tensor | None = None
        self.ids: list[torch.Tensor] | None = []  # ``[B, tokens]`` of every pass that ``generate`` ran; None where some are not known
        self.tables: list[SlotTable] = []
        self.joined: list[joined.JoinedRows] = []
        self.attended = 0  # layers whose attention ran in this pass
        self.stored_images: dict[int, list[Readback]] = {}  # kept by avl.cache.inspect.ImageSetsLater
        self._prefill: PrefillState | None = None
        self._read = [0] * n_layers
        self._token_bytes = 0

    def lay_out(self, rows: tuple[Row, ...], pasts: Sequence[PastTurn | None], max_new_tokens: int) -> None:
        """Take over the layout of all rows before an answer, and sort the rows into buckets."""
        self.rows, self.max_new_tokens = rows, max_new_tokens
        alike: dict[tuple[Row, PastTurn | None], list[int]] = {}
        for number, kind in enumerate(zip(rows, pasts, strict=True)):
            alike.setdefault(kind, []).append(number)
        layers = len(self.layers)
        self.buckets = [RowBucket.of(numbers, row, self.policy, max_new_tokens, layers, past) for (row, past), numbers in alike.items()]

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
        """State of the first pass, of a prompt or of what a later turn feeds; dropped after the last layer."""
        if self._prefill is None:
            pins = self.policy.pins_image
            rows = [bucket.rows for bucket in self.buckets]
            self._prefill = PrefillState(self.rows, rows, pins) if self.turn is None else self.turn.prefill(pins)
        return self._prefill

    def drop_prefill(self) -> PrefillState | None:
        """Forget the state of the first pass, and return it; None if nothing has asked for it."""
        state, self._prefill = self._prefill, None
        return state

    @property
    def prompts(self) -> list[RowBucket]:
        """The rows that run together in the first pass, as :attr:`prefill` has their columns: in a later turn, each by itself."""
        return self.buckets if self.turn is None else [part.buckets[0] for part in self.turn.caches(self)]

    def prepare(self, device: torch.device) -> None:
        """Copy to a device what the prompt's layers need there: within them, each copy would wait for all that is queued."""
        self.prefill.to(device)
        for bucket in self.prompts:
            bucket.cover.to(device)
            bucket.index(device)

    def record(self) -> Recorder:
        """Record the attention of row 0 in every pass from now on, and return the recorder; passes become slower."""
        assert not self.static, "recorded tensors have another shape at every step"
        assert not self.joined, "what is recorded is recorded from the prompt on"
        self.recorder = Recorder(self.rows[0], len(self.layers))
        return self.recorder

    def rows_of(self, states: torch.Tensor, bucket: RowBucket) -> torch.Tensor:
        """Return the rows of ``states [B, ...]`` that belong to ``bucket``; without a copy if those are all rows."""
        return states if len(self.buckets) == 1 else states.index_select(0, bucket.index(states.device))

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
        if self.turn is not None:
            if length != self.turn.width:
                raise ValueError(f"this turn feeds {self.turn.width} tokens, the model got {length}: {USED}")
            if not (checked or self.part):  # a row by itself is fed without padding
                check_mask(self.rows, mask, None)
            self._begin()
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
        if self.turn is not None:
            end_turn(self)
        elif not self.tables:
            self.end_prompt()
        else:
            self.evict()
            self.end_step()

    def end_prompt(self) -> None:
        """Complete the prompt's pass and make the slot tables.

        Raises:
            ValueError: the model's attention mask hides or shows more than padding.
        """
        prefill = self.prefill
        prefill.finish()
        self.open_tables()
        self.note_pruned(prefill)
        self.drop_prefill()
        self.seen = self.rows[0].pad + self.rows[0].length
        self.in_pass = False

    def next_turn(self, inputs: Any, max_new_tokens: int = 64) -> None:
        """Let a conversation go on: the next pass feeds what follows the tokens that this cache has seen.

        Then call ``model.generate(**inputs, past_key_values=cache, max_new_tokens=max_new_tokens)`` with the same inputs. The new tokens
        read all that is stored and one another; the last one's scores choose a new core, the text window is sized for the whole
        conversation, and what was evicted stays evicted (avl/cache/turns.py).

        Args:
            inputs: ``input_ids [B, L]`` and ``attention_mask`` of the whole conversation, image tokens included: what was fed before, the
                answer's last token, and the next question. Of pictures, those that this question brings alone (``pixel_values`` and what
                else the processor makes of them), in the order of the rows.
            max_new_tokens: most tokens of the next answer.

        Raises:
            ValueError: the conversation does not begin with what the cache has seen, brings nothing new, has other pictures than new ones,
                brings some to a model whose positions ``generate`` cannot count on, exceeds the model's context, or a pass broke off.
        """
        begin_generated_turn(self, inputs, whole("max_new_tokens", max_new_tokens, 1))

    def extend(
        self, new: list[int], max_new_tokens: int, said: list[int] | None = None, image: list[tuple[int, ...]] | None = None
    ) -> None:
        """Let every row be fed ``new`` tokens in the next pass, as a later turn with at most ``max_new_tokens`` of an answer.

        Args:
            new: tokens of each row.
            max_new_tokens: most tokens of the answer.
            said: how many of them, counted from the first, belong to the answer before; by default none.
            image: those of them that are image tokens of new pictures, from 0; by default none.

        Raises:
            ValueError: there is nothing new, it exceeds the model's context, the model takes no picture in a later turn, or a pass broke
                off.
        """
        begin_turn(self, new, said or [0] * len(new), max_new_tokens, image)

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
        for rows in self.joined:
            rows.enter(self.update_step)

    def evict(self) -> None:
        """Re-select the core after an update step, and evict the token that exceeds a window's size."""
        for rows in self.joined:
            rows.leave()
        for table in self.tables:
            table.evict(self.update_step)
        for rows in self.joined:
            rows.left()

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
            raise ValueError(BROKEN)
        self.in_pass, self.attended = True, 0

    def take_counts(self, other: AdaptiveCache, row: int) -> None:
        """Become the cache of one row of ``other``, which has run a prompt, as far as counts and positions go."""
        self._token_bytes = other._token_bytes
        self.ahead = None if other.ahead is None else other.ahead[row : row + 1]
        if row in other.pruned:
            self.pruned = {0: other.pruned[row]}

    def note_turn(self, layer: AdaptiveLayer, read: int, peak: int) -> None:
        """Count the tokens that the last query of a later turn's pass read in ``layer``, and the bytes held there at most; one row."""
        self._read[layer.number] = read
        self.peak_bytes = max(self.peak_bytes, peak)

    def note_prompt(self, layer: AdaptiveLayer) -> None:
        """Count the tokens that ``layer`` keeps of the prompt, while its full keys and values are still in memory."""
        assert layer.flat is not None
        storage, prefill = layer.flat[0], self.prefill
        self._token_bytes = 2 * storage.shape[1] * storage.shape[2] * storage.element_size()
        self._read[layer.number] = prefill.real_tokens()
        self.peak_bytes = max(self.peak_bytes, self.batch_size * prefill.length * self._token_bytes + self.allocated_bytes)

    def open_tables(self) -> None:
        """Make the slot tables, when all layers hold what they keep."""
        self.tables, self.joined = make_tables(self)

    def chunk(self, first: int, last: int) -> AdaptiveCache:
        """Return a cache for rows ``first`` to ``last - 1``, so that their prompt can run separately; :meth:`merge` takes it back."""
        chunk = AdaptiveCache(self.model(), self.rows[first:last], self.policy, self.max_new_tokens, self.facts)
        chunk.part = True
        if first == 0:
            chunk.recorder = self.recorder
        return chunk

    def merge(self, chunks: list[AdaptiveCache]) -> None:
        """Take over the keys and values of all chunks, in row order, each with its first pass done. They are empty afterwards."""
        merge(self, chunks)

    def take_over(self, chunks: list[AdaptiveCache]) -> None:
        """Take over counts and positions of the chunks whose rows were merged."""
        self._read = [sum(counts) for counts in zip(*(chunk.read_tokens for chunk in chunks), strict=True)]
        self.seen, self._token_bytes = self.rows[0].pad + self.rows[0].length, chunks[0]._token_bytes
        aheads = [chunk.ahead for chunk in chunks if chunk.ahead is not None]
        self.ahead = torch.cat(aheads) if len(aheads) == len(chunks) else None

    def note_pruned(self, prefill: PrefillState) -> None:
        """Note the image tokens that left the hidden states of the pass that just ended."""
        if prefill.survivors is None:
            return
        for columns in prefill.columns:
            for row, image_idx in zip(columns.rows, columns.image_idx.tolist(), strict=True):
                gone = set(range(columns.first_image, self.rows[row].n_image)) - set(image_idx)
                self.pruned[row] = sorted({*self.pruned.get(row, []), *gone})

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
    check_room(facts, max(row.length for row in rows) + max_new_tokens, max_new_tokens)
    return AdaptiveCache(model, rows, policy, max_new_tokens, facts)
