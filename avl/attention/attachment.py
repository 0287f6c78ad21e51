"""Attach adaptive attention to a model and take it off again. The model carries the state: a copy of an attached model is attached."""

from __future__ import annotations

from typing import Any

from avl.attention.hooks import before_layer
from avl.attention.interface import PREFIX, register
from avl.models.families import describe, language_model
from avl.models.merging import separate


def attach(model: Any) -> Any:
    """Make an unmodified LLaVA ready for caches made by ``avl.make_cache``; idempotent, returns the model.

    The text model's attention gets another name and its layers a pre-hook; no class or function is replaced. Without one of our caches the
    model computes exactly what it computed before.

    Raises:
        TypeError: the model's class is not supported; lists what is.
    """
    describe(model)
    config = model.config.text_config
    if is_attached(model):
        register(config._attn_implementation.removeprefix(PREFIX))  # a model unpickled into a fresh process
        return model
    config._attn_implementation = register(config._attn_implementation)
    for layer in language_model(model).layers:
        layer.register_forward_pre_hook(before_layer, with_kwargs=True)
    return model


def detach(model: Any) -> Any:
    """Restore the model exactly as it was before :func:`attach`; does nothing for a model that is not attached. Returns the model.

    Weights that our decode loop merged on a GPU (avl/fused.py) get memory of their own again, with the same values.
    """
    describe(model)
    if is_attached(model):
        config = model.config.text_config
        config._attn_implementation = config._attn_implementation.removeprefix(PREFIX)
        separate(model)
        for layer in language_model(model).layers:
            for number in [number for number, hook in layer._forward_pre_hooks.items() if hook is before_layer]:
                del layer._forward_pre_hooks[number]
                layer._forward_pre_hooks_with_kwargs.pop(number, None)
    return model


def is_attached(model: Any) -> bool:
    """Whether :func:`attach` is in force."""
    return str(model.config.text_config._attn_implementation).startswith(PREFIX)
