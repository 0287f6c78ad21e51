"""Floors of a decode step: the fewest bytes (or operations) it must move, over the rate that the machine showed.

Everything follows from a policy's closed forms (``store``, ``select``, ``is_update``, ``observe``), so the gain to expect at a batch is
known before a run. Counted: the text decoder's weights and output head once per step, the keys and values that a row reads, and, where a
policy ranks, the attention logits of every query head, written once and read once in float32. Not counted, because small: activations,
indices, the new token's own entry.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from avl.engine.decoder import rows_at_once
from avl.policies import Full, Policy
from avl.policies.base import Store

SCORE_BYTES = 8
"""One logit of one query head in float32, written and read back for the mean over the heads."""


@dataclass(frozen=True)
class Sizes:
    """A text decoder's sizes. ``itemsize``: bytes of a weight, and of a value in the KV cache."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    itemsize: int

    @classmethod
    def of(cls, config: Any, itemsize: int) -> Sizes:
        """From a LLaVA's transformers config."""
        text = config.text_config
        return cls(
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            hidden=text.hidden_size,
            ffn=text.intermediate_size,
            vocab=text.vocab_size,
            itemsize=itemsize,
        )

    @property
    def step_weights(self) -> int:
        """Weights that a decode step multiplies with: four projections and the gated MLP of every layer, and the output head."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn) + self.vocab * self.hidden

    @property
    def weight_bytes(self) -> int:
        """Bytes of :attr:`step_weights`; read once per step, whatever the batch."""
        return self.step_weights * self.itemsize

    @property
    def entry_bytes(self) -> int:
        """Bytes of one token's key and value in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.itemsize


@dataclass(frozen=True)
class Request:
    """One row: ``n_image`` image and ``n_text`` text tokens of the prompt, ``new_tokens`` of the answer at most."""

    n_image: int
    n_text: int
    new_tokens: int

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.n_image + self.n_text


@dataclass(frozen=True)
class Load:
    """What one decode step of one row touches, added up over the layers: entries (tokens times layers), not bytes.

    ``stored``: held after the step. ``read``: keys and values that attention reads. ``scored``: entries whose logits are ranked.
    """

    stored: float
    read: float
    scored: float


@dataclass(frozen=True)
class Rates:
    """What the machine reaches, measured in the same run: bytes per second of a large copy, operations per second of a large product."""

    bytes_per_s: float
    flops: float


@functools.lru_cache(maxsize=256)
def _alike(policy: Policy, layers: int, request: Request) -> tuple[tuple[Store, int | None, int], ...]:
    """What the layers store and select, and how many layers do so: most are alike, so sums over steps need not visit each one."""
    pairs = (
        (policy.store(layer, request.n_image, request.n_text, request.new_tokens), policy.select(layer, request.n_image))
        for layer in range(layers)
    )
    return tuple((store, core, count) for (store, core), count in Counter(pairs).items())


def step_load(policy: Policy, layers: int, request: Request, t: int) -> Load:
    """What decode step ``t`` (1, 2, …) of one row touches."""
    accumulates = policy.observe(request.n_image, request.n_text, request.new_tokens).accumulate is not None
    update = policy.is_update(t)
    prompt = request.n_text if policy.pins_image else request.length
    stored = read = scored = 0
    for store, core, count in _alike(policy, layers, request):
        size = prompt + t if store.window is None else store.window
        # a new token is stored and attended to before the weakest entry leaves: one entry more than the window is read
        window = min(min(prompt, size) + t, size + 1)
        stored += count * (store.image + min(window, size))
        read += count * (window + (store.image if core is None or update else core))
        scored += count * ((window if accumulates else 0) + (store.image if core is not None and update else 0))
    return Load(stored, read, scored)


def _mean(loads: Sequence[Load]) -> Load:
    stored, read, scored = (sum(parts) / len(loads) for parts in zip(*map(astuple, loads), strict=True))
    return Load(stored, read, scored)


def mean_load(policy: Policy, layers: int, request: Request) -> Load:
    """Mean of :func:`step_load` over the steps of a whole answer (the prompt gives its first token, so one step fewer than tokens)."""
    return _mean([step_load(policy, layers, request, t) for t in range(1, max(2, request.new_tokens))])


def kinds(policy: Policy, layers: int, request: Request) -> dict[str, Load]:
    """Mean load of the core steps and of the update steps apart; empty for a policy whose steps are all alike."""
    if all(core is None for _, core, _ in _alike(policy, layers, request)):
        return {}
    found: dict[str, list[Load]] = {"core": [], "update": []}
    for t in range(1, max(2, request.new_tokens)):
        found["update" if policy.is_update(t) else "core"].append(step_load(policy, layers, request, t))
    return {name: _mean(loads) for name, loads in found.items() if loads}


def weights_ms(sizes: Sizes, batch: int, rates: Rates) -> float:
    """Milliseconds of the weights alone: reading them, or multiplying with them where the batch is so large that this takes longer."""
    return 1e3 * max(sizes.weight_bytes / rates.bytes_per_s, 2 * sizes.step_weights * batch / rates.flops)


def floor_ms(sizes: Sizes, load: Load, batch: int, rates: Rates) -> float:
    """Milliseconds below which a step of ``batch`` rows with this load cannot go at these rates."""
    moved = batch * (load.read * sizes.entry_bytes + load.scored * sizes.heads * SCORE_BYTES)
    return weights_ms(sizes, batch, rates) + 1e3 * moved / rates.bytes_per_s


def expected_gain(sizes: Sizes, policy: Policy, request: Request, batch: int, rates: Rates) -> float:
    """Floor of full attention over the floor of ``policy``, mean over the answer: how many times faster a step can become, at most."""
    full, other = (floor_ms(sizes, mean_load(each, sizes.layers, request), batch, rates) for each in (Full(), policy))
    return full / other


def row_bytes(sizes: Sizes, policy: Policy, request: Request) -> tuple[int, int]:
    """Memory of one row: (its KV cache with the window's free slots, all layers; what the prompt pass needs on top of it at its worst).

    The prompt's worst moment is the MLP of a layer whose keys and values are still whole: gate, up and product ``[L, ffn]``, six hidden
    states ``[L, hidden]`` (residual, normed, and what the model merged the image into), and that layer's K and V.
    """
    longest = (request.n_text if policy.pins_image else request.length) + request.new_tokens
    kept = sum(
        count * (store.image + (longest if store.window is None else min(store.window + 1, longest)))
        for store, _, count in _alike(policy, sizes.layers, request)
    )
    work = request.length * ((3 * sizes.ffn + 6 * sizes.hidden) * sizes.itemsize + sizes.entry_bytes)
    return kept * sizes.entry_bytes, work


def batch_bytes(sizes: Sizes, policy: Policy, request: Request, batch: int) -> int:
    """Memory that ``batch`` rows need beside the weights: all their KV caches, and the prompts that run at once."""
    kept, work = row_bytes(sizes, policy, request)
    return batch * kept + min(batch, rows_at_once(request.length)) * work


def largest_batch(sizes: Sizes, policy: Policy, request: Request, free_bytes: float) -> int:
    """Rows that fit into ``free_bytes`` beside the weights; an estimate, see :func:`batch_bytes`."""
    kept, work = row_bytes(sizes, policy, request)
    together = rows_at_once(request.length)
    if free_bytes < together * (kept + work):
        return int(free_bytes // (kept + work))
    return int((free_bytes - together * work) // kept)
