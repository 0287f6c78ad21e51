"""Attach adaptive attention to a model and detach it. The state is in the model, so a copy of an attached model is attached."""

from __future__ import annotations

from typing import Any

from avl._compat import attention_name, set_attention_name
from avl.attention import hooks
from avl.attention.exact import spare_plans
from avl.attention.interface import PREFIX, register
from avl.models.families import describe, family_of, language_model
from avl.models.families.refusals import attention_misfit
from avl.models.merging import separate


def attach(model: Any) -> Any:
    """Prepare an unmodified model for caches made by ``avl.make_cache``, and return it; idempotent.

    Renames the text model's attention implementation and adds forward hooks to the model, its text model and its layers; replaces no class
    or function. Without one of our caches the model computes exactly what it did before; where it is on a GPU, torch's attention does so
    without cuDNN from here on, in the whole process (``spare_plans``).

    Raises:
        TypeError: the model's class is not supported, which lists the supported ones; or its attention is more than a causal softmax
            (softcap, sinks, windows), which names it.
    """
    describe(model)
    text = language_model(model)
    _refuse_unusual(text, family_of(model.config).bidirectional)
    set_attention_name(text.config, register(attention_name(text.config).removeprefix(PREFIX)))
    hooks.add(model)
    spare_plans(parameter.device for parameter in model.parameters())
    return model


def detach(model: Any) -> Any:
    """Restore the model to its state before :func:`attach`, and return it; does nothing if it is not attached.

    An attention implementation chosen meanwhile (``model.set_attn_implementation``) stays. Weights that the decode loop merged on a GPU
    (avl/models/merging.py) are separated again, with the same values.
    """
    describe(model)
    text = language_model(model)
    set_attention_name(text.config, attention_name(text.config).removeprefix(PREFIX))
    if hooks.present(model):
        separate(model)
        hooks.remove(model)
    return model


def is_attached(model: Any) -> bool:
    """Return whether the model is attached: whether it has our hooks and runs our attention."""
    return hooks.present(model) and attention_name(language_model(model).config).startswith(PREFIX)


def _refuse_unusual(text: Any, bidirectional: bool) -> None:
    """Refuse a text model whose attention is more than a causal softmax over all tokens: ours would leave the rest out.

    Args:
        text: the text decoder.
        bidirectional: whether it may call itself not causal (see ``Family``).

    Raises:
        TypeError: names the layer and what it does.
    """
    reason = attention_misfit(text.config, bidirectional)
    if reason is not None:
        raise TypeError(reason)
    for number, layer in enumerate(text.layers):
        attention = layer.self_attn
        if getattr(attention, "sinks", None) is not None:
            raise TypeError(f"the attention of layer {number} has sinks, which adaptive attention does not compute")
        if not (bidirectional or getattr(attention, "is_causal", True)):
            raise TypeError(f"the attention of layer {number} is not causal; adaptive attention needs a causal decoder")
