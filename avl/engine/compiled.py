"""Whole decode steps compiled for a CPU (kernels/step/numba.py): one call where the fused layers make hundreds in torch.

For the models whose layers are fused (avl/engine/fusable.py), in a batch of few rows with one layout. Elsewhere steps run in torch. A
model's first step of each kind runs both ways, and where they differ the model stays with torch.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from avl.cache.cache import AdaptiveCache
from avl.cache.slots import LayerKV, StaticSlotTable
from avl.engine.fusable import plain_linear
from avl.engine.fused import FusedLayers, Weights
from avl.kernels import MOST_PRODUCT_ROWS, compiled_step
from avl.models.families import causal_model, describe, language_model

BYTES_PER_THREAD = 1 << 23
"""Bytes of weights, keys and values that a step must move for each thread it runs on: for less, threads wait longer than they help."""

_trusted: weakref.WeakKeyDictionary[Any, dict[bool, str | None]] = weakref.WeakKeyDictionary()
"""Text model -> kind of step (update or not) -> what was wrong with its compiled step, None if nothing."""


def why_not_compiled(model: Any, cache: AdaptiveCache, layers: FusedLayers) -> str | None:
    """Return why the steps of this cache cannot be compiled, or None if they can."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}, not on a CPU"
    text, head = language_model(model), causal_model(model).lm_head
    if compiled_step(model.device, dtype=text.dtype, head_size=describe(model).head_dim) is None:
        return "numba's kernels are not used"
    if cache.recorder is not None:
        return "its attention is recorded"
    if len(cache.buckets) > 1:
        return "the rows of the batch are laid out differently"
    if cache.batch_size > MOST_PRODUCT_ROWS:
        return f"torch's products are faster for more than {MOST_PRODUCT_ROWS} rows"
    for trouble in _trusted.get(text, {}).values():
        if trouble is not None:
            return trouble
    if not plain_linear(head) or head.weight.dtype != text.dtype:
        return "its output layer is not a plain linear layer"
    merged = len(layers.weights[0].qkv) == 1
    if merged or not all(weight.is_contiguous() for weight in _matrices(layers, head)):
        return "its weights do not lie in memory as they were made"
    windows, shape = cache.buckets[0].windows, cache.buckets[0].shape
    by_head = {window.observation is not None and window.observation.heads == "kv" for window in windows}
    if len(by_head) > 1 or (True in by_head and any(cache.policy.select(layer, shape) is not None for layer in range(len(windows)))):
        return "its policy ranks by head and chooses a core"
    return None


def _matrices(layers: FusedLayers, head: torch.nn.Linear) -> list[torch.Tensor]:
    """Return the weights of all products of a step."""
    products = (product for layer in layers.weights for product in (*layer.qkv, layer.out, *layer.gate_up, layer.down))
    return [*(weight for weight, _ in products), head.weight]


class CompiledStep:
    """The compiled step of one model and one cache.

    The cache must be static, and its prompt done.
    """

    def __init__(self, model: Any, cache: AdaptiveCache, layers: FusedLayers) -> None:
        facts, text, head = describe(model), language_model(model), causal_model(model).lm_head
        self._cache, self._text, self._embed = cache, text, text.embed_tokens
        self._dtype = text.dtype
        self._held: list[torch.Tensor] = []
        tables = [table for table in cache.tables if isinstance(table, StaticSlotTable)]
        width = max(table.image + table.window.capacity for table in tables)
        first = layers.weights[0]
        moved = sum(weight.nbytes for weight in _matrices(layers, head)) + cache.allocated_bytes  # at most
        self._step = compiled_step(model.device, dtype=text.dtype, head_size=facts.head_dim)(
            text.dtype, layers.cos_sin.contiguous(), text.norm.weight, text.norm.variance_epsilon, head.weight, head.bias,
            layers=facts.layers, rows=cache.batch_size, hidden=facts.hidden, heads=facts.heads, kv_heads=facts.kv_heads,
            size=facts.head_dim, inner=first.down[0].shape[1], vocab=head.weight.shape[0], width=width,
            threads=max(1, min(torch.get_num_threads(), moved // BYTES_PER_THREAD)),
        )  # fmt: skip
        observation = tables[0].window.observation
        self._by_group = observation is not None and observation.heads == "kv"
        for number, (layer, weights) in enumerate(zip(cache.layers, layers.weights, strict=True)):
            self._fill(self._step.layers[number], weights, layer.kvs[0])
        self._counted = [(table, [n for n, layer in enumerate(cache.layers) if layer.kvs[0].table is table]) for table in tables]
        for table, numbers in self._counted:
            record = self._step.layers[numbers[0]]  # one layer speaks for its table
            record["all_length"] = self._address(table.lengths[table.image])
            record["core_length"] = self._address(None if table.core is None else table.lengths[table.core])

    def check(self, logits: torch.Tensor, state: list[torch.Tensor], wanted: list[torch.Tensor]) -> str | None:
        """Note whether a model's first step of this kind did what torch did, and return what it did not.

        Args:
            logits: ``[B, V]`` of the compiled step.
            state: the tensors of the cache after it.
            wanted: torch's logits and tensors.
        """
        trouble = None
        for name, found, exact in zip(["logits", *["state"] * len(state)], [logits, *state], wanted, strict=True):
            if found.is_floating_point():
                off = (found.double() - exact.double()).abs().max() / exact.double().abs().max().clamp(min=1e-30)
                wrong = not bool(off <= torch.finfo(self._dtype).eps ** 0.5)
            else:  # which tokens are held and read: scores that are almost the same may rank either way
                wrong = bool(torch.isin(found, exact).double().mean() < 0.9)
            if wrong and trouble is None:
                trouble = f"a compiled step leaves another {name} than torch's"
        _trusted.setdefault(self._text, {})[self._cache.update_step] = trouble
        return trouble

    @property
    def trusted(self) -> bool:
        """Whether a step of this kind was checked for this model."""
        return self._cache.update_step in _trusted.get(self._text, {})

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Run a step whose token the cache has counted, from entering to eviction.

        Args:
            tokens: ``[B]``.
            positions: ``[B, 1]``.

        Returns:
            Logits ``[B, V]``.
        """
        for table, numbers in self._counted:
            self._step.layers["count"][numbers] = table.count
        embedded = self._embed(tokens).contiguous()
        return self._step(embedded, positions.contiguous(), self._cache.update_step, self._by_group).to(self._dtype, copy=True)

    def _address(self, tensor: torch.Tensor | None) -> int:
        """Return where a tensor lies, and keep it alive; 0 for None."""
        if tensor is None:
            return 0
        assert tensor.is_contiguous(), "a compiled step walks memory in order"
        self._held.append(tensor)
        return tensor.data_ptr()

    def _fill(self, record: Any, weights: Weights, kv: LayerKV) -> None:
        """Fill in what never changes about a layer."""
        query, key, value = weights.qkv
        gate, up = weights.gate_up
        products = {"query": query, "key": key, "value": value, "out": weights.out, "gate": gate, "up": up, "down": weights.down}
        for name, (weight, bias) in products.items():
            record[name], record[f"{name}_bias"] = self._address(weight), self._address(bias)
        record["first_norm"], record["second_norm"] = self._address(weights.first_norm), self._address(weights.second_norm)
        record["first_eps"], record["second_eps"], record["scale"] = weights.first_eps, weights.second_eps, weights.scale
        if weights.head_norms is not None:
            record["query_norm"], record["key_norm"] = (self._address(norm) for norm in weights.head_norms[:2])
            record["head_eps"] = weights.head_norms.eps
        table, window = kv.table, kv.window
        assert isinstance(table, StaticSlotTable)
        scores = None if table.image_scores is None else table.image_scores[kv.place]
        held = {
            "token_idx": kv.token_idx, "sums": kv.sums, "slot": table.slot[kv.place],
            "entered": table.new[kv.place], "index": kv.index, "image_scores": scores, "weights": kv.weights,
        }  # fmt: skip
        for name, tensor in held.items():
            record[name] = self._address(tensor)
        for name, stored in (("keys", kv.keys), ("values", kv.values)):
            assert stored.stride(3) == 1, "a vector lies in one piece"
            self._held.append(stored)
            record[name] = stored.data_ptr()
            for dim, end in enumerate(("row", "slot", "head")):
                record[f"{name}_{end}"] = stored.stride(dim) * stored.element_size()
        record["image"], record["core"] = kv.image, -1 if table.core is None else table.core
        record["capacity"], record["prompt"], record["most"] = window.capacity, window.prompt, -1 if window.size is None else window.size
        record["recent"], record["sinks"], record["windows"] = window.recent, window.sinks, kv.token_idx.shape[1]
