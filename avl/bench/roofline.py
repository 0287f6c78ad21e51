"""Floors of a decode step: the fewest bytes (or operations) it must move, over the rate that the machine showed.

Everything follows from the cost model (avl/policies/cost.py), so the gain to expect at a batch is known before a run. Counted: the text
decoder's weights and output head once per step, the keys and values that a row reads, and, where a policy ranks, the attention logits of
every query head, written once and read once in float32. Not counted, because small: activations, indices, the choice of experts, the new
token's own K and V.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avl.engine.decoder import rows_at_once
from avl.models.families import Facts, family_of, text_config
from avl.policies import Policy, PromptShape
from avl.policies.cost import Cost, allocated_tokens

SCORE_BYTES = 8
"""One logit of one query head in float32, written and read back for the mean over the heads."""


@dataclass(frozen=True)
class Sizes:
    """A text decoder's sizes.

    ``itemsize``: bytes of a weight, and of a value in the KV cache. ``ffn``: width of the MLP; with experts, of those that one token takes
    together, the fewest that a step reads. ``gated``: whether the MLP has a gate, hence three matrices and not two.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    itemsize: int
    gated: bool = True

    @classmethod
    def of(cls, config: Any, itemsize: int) -> Sizes:
        """Return the sizes that a model's config gives."""
        facts, text = Facts.of(family_of(config), config), text_config(config)
        experts = getattr(text, "num_experts_per_tok", None)
        ffn = experts * text.moe_intermediate_size if experts else facts.ffn
        gated = not hasattr(text, "ffn_dim")  # OPT's name for the width, and OPT has none
        return cls(facts.layers, facts.heads, facts.kv_heads, facts.head_dim, facts.hidden, ffn, facts.vocab, itemsize, gated)

    @property
    def step_weights(self) -> int:
        """Weights that a decode step multiplies with: four projections and the MLP of every layer, and the output head."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + (2 + self.gated) * self.hidden * self.ffn) + self.vocab * self.hidden

    @property
    def weight_bytes(self) -> int:
        """Bytes of :attr:`step_weights`; read once per step, whatever the batch."""
        return self.step_weights * self.itemsize

    @property
    def entry_bytes(self) -> int:
        """Bytes of one token's key and value in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.itemsize


@dataclass(frozen=True)
class Rates:
    """What the machine reaches, measured in the same run.

    Attributes:
        bytes_per_s: of a large copy.
        flops: operations per second of a large product.
        products: rows -> bytes of weights per second that the engine's own product of so many rows gets through. For a CPU, where a product
            of a few rows comes near neither of the two; empty elsewhere.
    """

    bytes_per_s: float
    flops: float
    products: Mapping[int, float] = field(default_factory=dict)


def weights_ms(sizes: Sizes, batch: int, rates: Rates) -> float:
    """Milliseconds of the weights alone: reading them, or multiplying with them where the batch is so large that this takes longer.

    Where the product of that batch was measured, at its rate: what an engine adds is then the rest.
    """
    if batch in rates.products:
        return 1e3 * sizes.weight_bytes / rates.products[batch]
    return 1e3 * max(sizes.weight_bytes / rates.bytes_per_s, 2 * sizes.step_weights * batch / rates.flops)


def floor_ms(sizes: Sizes, cost: Cost, batch: int, rates: Rates) -> float:
    """Milliseconds below which a step of ``batch`` rows with this cost cannot go at these rates."""
    moved = batch * (cost.read * sizes.entry_bytes + cost.scored * sizes.heads * SCORE_BYTES)
    return weights_ms(sizes, batch, rates) + 1e3 * moved / rates.bytes_per_s


def row_bytes(sizes: Sizes, policy: Policy, shape: PromptShape) -> tuple[int, int]:
    """Memory of one row: (its KV cache with the window's free slots, all layers; what prefill needs on top of it at its worst).

    The worst moment of prefill is the MLP of a layer whose keys and values are still whole: gate, up and product ``[L, ffn]``, six hidden
    states ``[L, hidden]`` (residual, normed, and what the model merged the image into), and that layer's K and V.
    """
    work = shape.length * ((3 * sizes.ffn + 6 * sizes.hidden) * sizes.itemsize + sizes.entry_bytes)
    return allocated_tokens(policy, shape) * sizes.entry_bytes, work


def batch_bytes(sizes: Sizes, policy: Policy, shape: PromptShape, batch: int) -> int:
    """Memory that ``batch`` rows need beside the weights: all their KV caches, and the prompts that run at once."""
    kept, work = row_bytes(sizes, policy, shape)
    return batch * kept + min(batch, rows_at_once(shape.length)) * work


def largest_batch(sizes: Sizes, policy: Policy, shape: PromptShape, free_bytes: float) -> int:
    """Rows that fit into ``free_bytes`` beside the weights; an estimate, see :func:`batch_bytes`."""
    kept, work = row_bytes(sizes, policy, shape)
    together = rows_at_once(shape.length)
    if free_bytes < together * (kept + work):
        return int(free_bytes // (kept + work))
    return int((free_bytes - together * work) // kept)
