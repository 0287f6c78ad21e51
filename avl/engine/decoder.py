"""The prompt, then one token at a time."""

from __future__ import annotations

import threading
from typing import Any

import torch

from avl.attention.exact import lse_backend
from avl.cache.cache import AdaptiveCache
from avl.engine.fused import FusedLayers, UnfusableError
from avl.models.families import causal_model, describe, family_of, language_model

PROMPT_TOKENS = 1 << 15
"""Prompt tokens that pass through the layers together. This many keep a large GPU busy; more would only cost memory for activations (the
MLP of a 7B model takes 66 kB per token), so that a smaller batch would fit."""


CPU_PROMPT_TOKENS = 1 << 12
"""The same on a CPU, which is busy with far fewer, and where a run can be stopped only between two such pieces: seconds, not minutes."""


class Stopped(Exception):
    """A run was stopped while its prompt ran."""


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
        unfused: why steps run the model's own modules, None if they run avl/engine/fused.py.
    """

    def __init__(self, model: Any, cache: AdaptiveCache) -> None:
        self._model = model
        self.unfused: str | None = None
        self._layers: FusedLayers | None = None
        try:
            self._layers = FusedLayers(model, cache)
        except UnfusableError as error:
            self.unfused = error.reason
        facts = describe(model)
        lse_backend(model.device, model.dtype, facts.head_dim, facts.heads // facts.kv_heads)  # tried now, outside of the prompt's time
        self._text = language_model(model)
        self._causal = causal_model(model)
        self._family = family_of(model.config)
        self._cache = cache
        self._positions: torch.Tensor | None = None

    def prefill(self, inputs: dict[str, Any], stop: threading.Event | None = None) -> torch.Tensor:
        """Run the prompt and return logits ``[B, V]`` of its last token; a large batch of rows with one layout runs in chunks.

        Raises:
            Stopped: ``stop`` was set before the last chunk.
        """
        cache = self._cache
        rows = cache.batch_size
        some = rows_at_once(cache.rows[0].pad + cache.rows[0].length, self._model.device.type)
        if some >= rows or len(cache.buckets) > 1:
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
        cache.looped = True
        lengths = [row.length for row in cache.rows]
        self._positions = torch.tensor(lengths, device=logits.device)[:, None] + ahead.to(logits.device)
        return logits

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
        assert self._positions is not None, "the prompt comes first"
        self._cache.begin_step()
        logits = self._run(tokens, self._positions)
        self._cache.end_step()
        self._positions = self._positions + 1
        return logits

    def _run(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Run the device's part of a step: return logits ``[B, V]`` for one token per row ``[B]`` at positions ``[B, 1]``."""
        self._cache.enter()
        logits = self._through_layers(tokens, positions)
        self._cache.evict()
        return logits

    def _through_layers(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self._layers is not None:
            return self._causal.lm_head(self._layers(tokens, positions))
        # the whole model, so that everything hooked into it takes part
        inputs = {"input_ids": tokens[:, None], "position_ids": positions.to(tokens.device)}
        return self._causal(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[:, -1]
