"""Fused decoder layers for decode steps: 9 kernel launches per layer instead of about 50.

A step of one token is bound by reading the weights; launches come on top and are not in the paper's cost analysis. So queries, keys and
values come from one projection, gate and up from another, and between two projections runs a single kernel (kernels/layer/triton.py; a few
torch calls on a CPU) or attention's two, the first of which also rotates and stores the new token (kernels/core/triton.py). All policies of
a comparison run this code. The prompt, ``model.generate`` and models with unusual layers (avl/engine/fusable.py) run the model's own
modules.

On a GPU the weights of such projections are merged, so that one launch reads them all. This takes no extra memory: the modules' parameters
become views of the merged weights, until ``avl.detach`` separates them again. A CPU gains little, so its parameters are left alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from avl.attention.decode import append_and_attend
from avl.cache.cache import AdaptiveCache
from avl.engine.fusable import plain_embedding, why_not
from avl.kernels import Impl, choose_product, layer_ops, new_token_attention
from avl.kernels.layer.types import HeadNorms
from avl.models.families import TEXT_FAMILIES, describe, language_model
from avl.models.merging import merge, mergeable


class UnfusableError(ValueError):
    """The steps of a model cannot be fused, for the given ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the steps of this model cannot be fused, {reason}: run its modules")
        self.reason = reason


class FusedLayers:
    """The fused layers of one model, for the steps of one cache: :meth:`begin` takes the tokens in, a call runs the layers.

    Attributes:
        looks_up: whether :meth:`begin` runs nothing of the model, because its embedding is a plain table. It then writes to the same
            memory at every step, so it may run outside of a captured step.

    Attributes:
        weights: those of every layer.
        cos_sin: ``[positions, 2, D]``, RoPE of every possible position.

    Raises:
        UnfusableError: the model cannot be fused (see :func:`why_not`); a ValueError.
    """

    def __init__(self, model: Any, cache: AdaptiveCache, impl: Impl = "auto", merged: bool | None = None) -> None:
        reason = why_not(model)
        if reason is not None:
            raise UnfusableError(reason)
        self._text = text = language_model(model)
        self._cache = cache
        if merged is None:
            merged = model.device.type == "cuda"
        self.weights = [_weights(layer, merged) for layer in text.layers]
        size = describe(model).head_dim
        weight = text.embed_tokens.weight
        self._multiply = choose_product(weight.device, cache.batch_size, impl, dtype=weight.dtype)
        self._ops = layer_ops(weight.device, impl, dtype=weight.dtype, head_size=size)
        self._attention = new_token_attention(weight.device, impl, dtype=weight.dtype, head_size=size)
        # RoPE of every possible position, computed once: cosines, and sines whose first half carries the minus sign of the rotation.
        # Positions in several dimensions never exceed the number of tokens: a picture takes up as many as its longer side has tokens.
        positions = torch.arange(cache.longest, device=weight.device)[None]
        axes = TEXT_FAMILIES[text.config.model_type].axes
        cos, sin = text.rotary_emb(weight[:1], position_ids=positions if axes == 1 else positions.expand(axes, 1, -1))
        sin = torch.cat([-sin[..., : size // 2], sin[..., size // 2 :]], dim=-1)
        self.cos_sin = torch.stack([cos[0], sin[0]], dim=1)  # [positions, 2, D]
        self.looks_up = plain_embedding(text)
        self._begun: tuple[torch.Tensor, torch.Tensor] | None = None  # hidden states [B, hidden], cosines and sines [B, 2, D]

    def begin(self, tokens: torch.Tensor, positions: torch.Tensor) -> None:
        """Take in one token per row ``[B]`` at positions ``[B, 1]``, and advance the positions in place."""
        table, turns, rows = self._text.embed_tokens.weight, self.cos_sin, tokens.shape[0]
        if not self.looks_up:
            self._begun = self._text.embed_tokens(tokens), turns.index_select(0, positions[:, 0])
            positions += 1
            return
        if self._begun is None:
            self._begun = table.new_empty(rows, table.shape[1]), turns.new_empty(rows, *turns.shape[1:])
        self._ops.begin_step(tokens, positions, table, turns, *self._begun)

    def __call__(self) -> torch.Tensor:
        """Return normalized final hidden states ``[B, hidden]`` of the tokens that :meth:`begin` took in."""
        text, cache, ops, multiply = self._text, self._cache, self._ops, self._multiply
        assert self._begun is not None, "a step begins with its tokens"
        residual, rotation = self._begun
        cos, sin = rotation.unbind(1)
        delta = None
        for weights, held in zip(self.weights, cache.layers, strict=True):
            hidden = ops.add_rms_norm(residual, delta, weights.first_norm, weights.first_eps)
            qkv = self._project(hidden, weights.qkv)
            out = append_and_attend(held, ops, self._attention, qkv, cos, sin, weights.head_norms, weights.scale).flatten(1)
            hidden = ops.add_rms_norm(residual, multiply(out, *weights.out), weights.second_norm, weights.second_eps)
            delta = multiply(ops.silu_product(self._project(hidden, weights.gate_up)), *weights.down)
        return ops.add_rms_norm(residual, delta, text.norm.weight, text.norm.variance_epsilon)

    def _project(self, hidden: torch.Tensor, products: tuple[Product, ...]) -> torch.Tensor:
        """Return every projection of ``hidden [B, hidden]``, concatenated along the last dimension."""
        parts = [self._multiply(hidden, *one) for one in products]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


Product = tuple[torch.Tensor, torch.Tensor | None]
"""Weight ``[outputs, inputs]`` and bias ``[outputs]`` of a projection."""


class Weights(NamedTuple):
    """The weights of one layer, looked up once. ``qkv`` and ``gate_up`` hold separate projections, or one merged projection."""

    first_norm: torch.Tensor
    first_eps: float
    qkv: tuple[Product, ...]
    head_norms: HeadNorms | None
    scale: float
    out: Product
    second_norm: torch.Tensor
    second_eps: float
    gate_up: tuple[Product, ...]
    down: Product


def _weights(layer: Any, merged: bool) -> Weights:
    attention, mlp, first, second = layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm
    qkv, gate_up = ((merge(linears),) if merged else tuple(map(_product, linears)) for linears in mergeable(layer))
    query = getattr(attention, "q_norm", None)
    return Weights(
        first_norm=first.weight,
        first_eps=first.variance_epsilon,
        qkv=qkv,
        head_norms=None if query is None else HeadNorms(query.weight, attention.k_norm.weight, query.variance_epsilon),
        scale=attention.scaling,
        out=_product(attention.o_proj),
        second_norm=second.weight,
        second_eps=second.variance_epsilon,
        gate_up=gate_up,
        down=_product(mlp.down_proj),
    )


def _product(module: torch.nn.Linear) -> Product:
    return module.weight, module.bias
