"""The prompt, then one token at a time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import torch

from avl.attention.exact import lse_backend
from avl.cache.cache import AdaptiveCache
from avl.cache.turns import end_turn, place_pictures, positions
from avl.engine.compiled import CompiledStep, why_not_compiled
from avl.engine.fused import FusedLayers, UnfusableError
from avl.engine.pieces import Stopped, in_pieces
from avl.models.families import causal_model, describe, family_of, language_model

PROMPT_TOKENS = 1 << 15
"""Prompt tokens that pass through the layers together. This many keep a large GPU busy; more would only cost memory for activations (the
MLP of a 7B model takes 66 kB per token), so that a smaller batch would fit."""


CPU_PROMPT_TOKENS = 1 << 12
"""The same on a CPU, which is busy with far fewer, and where a run can be stopped only between two such pieces: seconds, not minutes."""


def refuse_offloaded(model: Any) -> None:
    """Refuse a model whose weights are not all in memory.

    Raises:
        ValueError: says how many are not, and what works.
    """
    away = sum(parameter.is_meta for parameter in model.parameters())
    if away:
        raise ValueError(
            f"{away} of the model's weights are offloaded, and each step would load them again: load the model where it fits whole, or use "
            "model.generate with avl.make_cache, which works, slowly"
        )


def rows_at_once(length: int, device: str = "cuda") -> int:
    """Return how many rows with prompts of ``length`` tokens run together on a device of that type."""
    return max(1, (min(PROMPT_TOKENS, CPU_PROMPT_TOKENS) if device == "cpu" else PROMPT_TOKENS) // length)


class Decoder:
    """Runs the prompt and then one token at a time through an attached model, with one cache.

    Where that computes the same (avl/engine/fusable.py), steps run our own loop over fused layers: transformers' forward builds a mask and
    collects outputs at every step, which takes longer than the attention of a small model. Elsewhere they run the model.

    Attributes:
        unfused: why steps run the model's own modules, None if they run avl/engine/fused.py or avl/engine/compiled.py.
        uncompiled: why they do not run avl/engine/compiled.py, None if they do.
    """

    def __init__(self, model: Any, cache: AdaptiveCache) -> None:
        self._model = model
        self.unfused: str | None = None
        self._layers: FusedLayers | None = None
        try:
            self._layers = FusedLayers(model, cache)
        except UnfusableError as error:
            self.unfused = error.reason
        self.uncompiled = self.unfused if self._layers is None else why_not_compiled(model, cache, self._layers)
        self._compiled: CompiledStep | None = None  # made at the first step
        cache.static |= self.uncompiled is None
        facts = describe(model)
        lse_backend(model.device, model.dtype, facts.head_dim, facts.heads // facts.kv_heads)  # tried now, outside of the prompt's time
        self._text = language_model(model)
        self._causal = causal_model(model)
        self._family = family_of(model.config)
        self._cache = cache
        self._positions: torch.Tensor | None = None
        self._tokens: torch.Tensor | None = None

    def prefill(self, inputs: dict[str, Any], stop: threading.Event | None = None) -> torch.Tensor:
        """Run the prompt and return logits ``[B, V]`` of its last token; a large batch runs in chunks of some rows.

        Raises:
            Stopped: ``stop`` was set before the last chunk.
        """
        cache = self._cache
        rows = cache.batch_size
        some = rows_at_once(cache.rows[0].pad + cache.rows[0].length, self._model.device.type)
        if some >= rows:
            logits, ahead = self._run_prompt(inputs, cache)
        elif len(cache.buckets) > 1:
            with in_pieces(self._text, cache, some, stop):
                logits, ahead = self._run_prompt(inputs, cache)
        else:
            found, further, chunks = [], [], []
            for first in range(0, rows, some):
                if stop is not None and stop.is_set():
                    raise Stopped
                last = min(rows, first + some)
                # every row has the same number of images, and pixel values are ordered by image
                part = {k: v[first * len(v) // rows : last * len(v) // rows] for k, v in inputs.items()}
                chunks.append(cache.chunk(first, last))
                logits, ahead = self._run_prompt(part, chunks[-1])
                found.append(logits)
                further.append(ahead)
            cache.merge(chunks)
            logits, ahead = torch.cat(found), torch.cat(further)
        cache.ahead = ahead.to(logits.device, torch.int64).clone()
        self._begin_answer()
        return logits

    def extend(
        self,
        new: Sequence[Sequence[int]],
        stop: threading.Event | None = None,
        pictures: Sequence[dict[str, torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Feed the tokens of a later turn, for which the cache was extended, row by row; return logits ``[B, V]`` of the last ones.

        Args:
            new: tokens of every row.
            stop: ends it before anything runs.
            pictures: what the processor made of every row's new pictures, empty where it brings none; by default none does.

        Raises:
            Stopped: ``stop`` was set before anything ran.
        """
        cache = self._cache
        turn = cache.turn
        assert turn is not None, "the cache is extended first"
        if stop is not None and stop.is_set():
            raise Stopped
        found = []
        for part, ids, seen in zip(turn.caches(cache), new, pictures or [{}] * len(new), strict=True):
            cache.in_pass = part is not cache  # broken until all rows have run
            given = torch.tensor([ids], device=self._model.device)
            more = place_pictures(self._model, part, given, seen)
            where = positions(part, len(ids))
            assert where is not None, "a later turn knows its positions"
            inputs = {"input_ids": given, "position_ids": where.to(given.device), **more}
            runs = self._model if seen else self._causal
            found.append(runs(**inputs, past_key_values=part, use_cache=True, logits_to_keep=1).logits[:, -1])
        if turn.parts:
            end_turn(cache)
        self._begin_answer()
        return torch.cat(found)

    def _begin_answer(self) -> None:
        cache = self._cache
        assert cache.ahead is not None
        cache.looped = True
        lengths = torch.tensor([[row.length] for row in cache.rows], device=self._model.device)
        self._positions = lengths + cache.ahead.to(lengths.device)

    def prefill_alike(self, prompt: AdaptiveCache) -> None:
        """Begin with the prompt of one row, run before, in every row: for measurements of steps.

        Args:
            prompt: cache of that row under the same policy, its prompt done; unchanged.
        """
        cache = self._cache
        cache.merge([copy.deepcopy(prompt)] * cache.batch_size)
        cache.looped = True
        self._positions = torch.tensor([[row.length] for row in cache.rows], device=self._model.device)

    def renew(self) -> None:
        """Forget what a compiled step was made for: the number of threads, say."""
        self._compiled = None

    def _run_prompt(self, inputs: dict[str, Any], cache: AdaptiveCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last token's logits ``[B, V]``, and by how much the next one's position exceeds the prompt's length ``[B, 1]``."""
        mask, pictures = inputs.get("attention_mask"), any(row.image for row in cache.rows)
        if mask is not None and any(row.pad for row in cache.rows):
            # transformers' forward gives positions to padding; its generate, like this engine, does not
            inputs = {**inputs, **self._family.positions(mask, pictures)}
        logits = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        # a model that counts positions itself knows them for its last prompt only
        ahead = torch.as_tensor(self._family.ahead(self._model, pictures), device=logits.device)
        return logits, ahead.expand(cache.batch_size, 1)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feed one token per row ``[B]`` and return logits ``[B, V]`` of the next."""
        self._cache.begin_step()
        if self.uncompiled is None:
            logits = self._run_compiled(tokens)
        else:
            self._take(tokens)
            logits = self._forward()
        self._cache.end_step()
        return logits

    def _run_compiled(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run a whole step compiled; a model's first one of its kind is compared with torch's, which counts if they differ."""
        layers, positions = self._layers, self._positions
        assert layers is not None
        assert positions is not None, "the prompt comes first"
        if self._compiled is None:
            self._compiled = CompiledStep(self._model, self._cache, layers)
        if self._compiled.trusted:
            logits = self._compiled(tokens, positions)
            positions += 1
            return logits
        state = [positions, *(tensor for table in self._cache.tables for tensor in table.state())]  # type: ignore[attr-defined]
        before = [tensor.clone() for tensor in state]

        def in_torch() -> torch.Tensor:
            self._take(tokens)
            return self._forward()

        wanted = [in_torch(), *(tensor.clone() for tensor in state[1:])]
        put_back(state, before)
        logits = self._compiled(tokens, positions)
        positions += 1
        self.uncompiled = self._compiled.check(logits, state[1:], wanted)
        if self.uncompiled is None:
            return logits
        put_back(state, before)
        return in_torch()

    def _take(self, tokens: torch.Tensor) -> None:
        """Take in one token per row ``[B]``: begin with it, or keep it where modules of the model look it up."""
        assert self._positions is not None, "the prompt comes first"
        if self._layers is not None and self._layers.looks_up:
            here = self._positions.device
            self._layers.begin(tokens if tokens.device == here else tokens.to(here), self._positions)
        else:
            self._keep(tokens)

    def _keep(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens

    def _forward(self) -> torch.Tensor:
        """Run the device's part of a step, from the tokens taken in to logits ``[B, V]``; advances the positions in place."""
        self._cache.enter()
        logits = self._through_layers()
        self._cache.evict()
        return logits

    def _through_layers(self) -> torch.Tensor:
        layers, tokens, positions = self._layers, self._tokens, self._positions
        assert positions is not None
        if layers is not None:
            if not layers.looks_up:
                assert tokens is not None
                layers.begin(tokens, positions)
            return self._causal.lm_head(layers())
        # the whole model, so that everything hooked into it takes part
        assert tokens is not None
        inputs = {"input_ids": tokens[:, None], "position_ids": positions.to(tokens.device)}
        logits = self._causal(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        positions += 1
        return logits


def put_back(state: list[torch.Tensor], before: list[torch.Tensor]) -> None:
    """Give tensors that a step changes the values they had before."""
    for tensor, old in zip(state, before, strict=True):
        tensor.copy_(old)
