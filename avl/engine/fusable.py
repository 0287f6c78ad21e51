"""Whether decode steps may run avl/engine/fused.py instead of the model's modules: only where both compute the same.

Equality is proved by identity, not by names: every module that takes part is of transformers' (or torch's) own class, with that class's own
forward, and nothing is hooked into it or between it and the model. Adapters, replaced activations, patched classes, parametrizations,
hooks and compiled modules all fail the proof, and the model then runs as it is.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch.nn.modules import module as torch_module
from transformers import modeling_layers
from transformers.activations import ACT2FN

from avl._compat import any_global_hook, call_override, hooks_of, records_outputs
from avl.attention.hooks import OURS
from avl.models.families import TEXT_FAMILIES, TextFamily, causal_model, family_of, language_model
from avl.models.merging import mergeable

_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that depend on nothing but the position."""

_CALLED = ("apply_rotary_pos_emb", "rotate_half", "eager_attention_forward")
"""Functions of a modeling file that its attention calls."""


def why_not(model: Any) -> str | None:
    """Return why the steps of this model cannot be fused, or None if they can."""
    text = language_model(model)
    if text.training or torch.is_grad_enabled():
        return "it is in training mode, or gradients are on"
    if torch.is_autocast_enabled(text.embed_tokens.weight.device.type):
        return "autocast is on"
    if any_global_hook():
        return "a hook is registered for all modules"
    if len({parameter.device for parameter in text.parameters()}) > 1:
        return "its layers are on several devices"
    family, text_family = family_of(model.config), TEXT_FAMILIES.get(text.config.model_type)
    if text_family is None:
        return f"its text model, {text.config.model_type}, has other layers than those that are fused"
    modeling = _modeling(text_family.modeling)
    for name in _CALLED:
        if not _written_in(getattr(modeling, name, None), modeling):
            return f"{name} of {modeling.__name__} was replaced"
    around = _around(model, text, _modeling(family.model_type), family.model_class, f"{family.prefix}Model")
    causal = causal_model(model)
    if causal is not model:  # a language model of its own inside
        around = itertools.chain(
            _around(model, causal, _modeling(family.model_type), family.model_class),
            _around(causal, text, modeling, text_family.class_name("ForCausalLM")),
        )
    proved: set[type] = set()
    # one after another: a layer of an unknown class need not have the parts that come after it
    for name, module, home, known in itertools.chain(around, _inside(text, modeling, text_family)):
        kind = type(module)
        if kind is not getattr(home, known, None) or (kind.__module__, kind.__qualname__) != (home.__name__, known):
            return f"{name} is {_short(module)}"
        if kind not in proved:
            if not _written_in(kind.forward, home) or not any(
                _written_in(kind.__call__, owner) for owner in (torch_module, modeling_layers)
            ):
                return f"the forward of {known} was replaced"
            proved.add(kind)
        reason = _altered(module)
        if reason is not None:
            return f"{name} {reason}"
    for number, layer in enumerate(text.layers):
        reason = _uneven(layer)
        if reason is not None:
            return f"{reason} of layer {number}"
    rotary = text.rotary_emb
    # a dynamic one grows where a sequence exceeds the context, which a cache of ours refuses, and shrinks again after it
    if rotary.rope_type not in _ROTARY and not (rotary.rope_type == "dynamic" and rotary.max_seq_len_cached <= rotary.original_max_seq_len):
        return f"its rotary embedding, {rotary.rope_type!r}, depends on the length"
    if len({parameter.dtype for parameter in text.parameters()}) > 1:
        return "its parameters differ in dtype"
    return None


def plain_linear(module: Any) -> bool:
    """Return whether a module is torch's own linear layer and nothing else, so that its product may be computed elsewhere."""
    own = type(module) is torch.nn.Linear and _written_in(torch.nn.Linear.forward, inspect.getmodule(torch.nn.Linear))
    return own and _altered(module) is None


def plain_embedding(text: Any) -> bool:
    """Return whether all that the embedding of a text model does is to look up rows of its weight."""
    module = text.embed_tokens
    home = inspect.getmodule(torch.nn.Embedding)
    known = type(module) is torch.nn.Embedding and _written_in(module.forward, home) and _written_in(type(module).__call__, torch_module)
    return known and module.max_norm is None and _altered(module) is None and module.weight.stride(-1) == 1


def _modeling(model_type: str) -> ModuleType:
    """Return transformers' modeling file of a model type."""
    return importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")


def _around(model: Any, text: Any, home: ModuleType, *classes: str) -> Iterator[tuple[str, Any, ModuleType, str]]:
    """Yield (name, module, file of its class, class) of the modules from the model down to its text model, which is left out."""
    path = next(name for name, module in model.named_modules() if module is text).split(".")
    names = [".".join(path[:depth]) for depth in range(len(path))]
    for number, name in enumerate(names):
        known = classes[number] if number < len(classes) else "?"
        yield name or "the model", model.get_submodule(name), home, known


def _inside(text: Any, home: ModuleType, family: TextFamily) -> Iterator[tuple[str, Any, ModuleType, str]]:
    """Yield (name, module, file of its class, class) of the text model and every module whose work the fused step does."""
    linear, activation = inspect.getmodule(torch.nn.Linear), ACT2FN["silu"]
    assert linear is not None
    yield "the text model", text, home, family.class_name("Model")
    yield "the rotary embedding", text.rotary_emb, home, family.class_name("RotaryEmbedding")
    yield "the final norm", text.norm, home, family.class_name("RMSNorm")
    silu = inspect.getmodule(type(activation))
    assert silu is not None
    for number, layer in enumerate(text.layers):
        yield f"layer {number}", layer, home, family.class_name("DecoderLayer")
        for name, kind in (
            ("self_attn", "Attention"),
            ("mlp", "MLP"),
            ("input_layernorm", "RMSNorm"),
            ("post_attention_layernorm", "RMSNorm"),
        ):
            yield f"{name} of layer {number}", getattr(layer, name), home, family.class_name(kind)
        for letter in "qk" if family.head_norms else "":
            yield f"{letter}_norm of layer {number}", getattr(layer.self_attn, f"{letter}_norm"), home, family.class_name("RMSNorm")
        for letter in "qkvo":
            yield f"{letter}_proj of layer {number}", getattr(layer.self_attn, f"{letter}_proj"), linear, "Linear"
        for name in ("gate_proj", "up_proj", "down_proj"):
            yield f"{name} of layer {number}", getattr(layer.mlp, name), linear, "Linear"
        yield f"the activation of layer {number}", layer.mlp.act_fn, silu, type(activation).__name__


def _written_in(function: Callable[..., Any] | None, home: ModuleType | None) -> bool:
    """Return whether the code of a function, decorators aside, is in a module's file."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return code is not None and home is not None and code.co_filename == home.__file__


def _altered(module: torch.nn.Module) -> str | None:
    """Return what about a module of a known class differs from a plain one, as the end of a sentence; None if nothing does."""
    before, after = hooks_of(module)
    if any(hook not in OURS and not records_outputs(hook) for hook in (*before, *after)):
        return "has a hook"
    if "forward" in vars(module):
        return "has another forward"
    if call_override(module):
        return "is compiled"
    for name in ("weight", "bias"):
        found = getattr(module, name, None)
        if found is not None and (type(found) is not torch.nn.Parameter or type(found.data) is not torch.Tensor):
            return f"has a {name} of class {type(found.data if type(found) is torch.nn.Parameter else found).__name__}"
    return None


def _uneven(layer: Any) -> str | None:
    """Return what keeps parts of a layer from being computed together; None if nothing does."""
    for group in mergeable(layer):
        if len({linear.bias is None for linear in group}) > 1:
            return "only some projections with one input have a bias, those"
    attention = layer.self_attn
    if hasattr(attention, "q_norm") and attention.q_norm.variance_epsilon != attention.k_norm.variance_epsilon:
        return "the norms of queries and keys have epsilons of their own, those"
    return None


def _short(module: Any) -> str:
    kind = type(module)
    return f"a {kind.__name__} of {kind.__module__}" if kind.__module__ != "builtins" else f"a {kind.__name__}"
