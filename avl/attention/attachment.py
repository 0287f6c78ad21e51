"""Attach adaptive attention to a model and take it off again. The model carries the state: a copy of an attached model is attached."""

from __future__ import annotations

from typing import Any

from avl._compat import attention_name, set_attention_name
from avl.attention import hooks
from avl.attention.interface import PREFIX, register
from avl.models.families import describe
from avl.models.merging import separate


def attach(model: Any) -> Any:
    """Make an unmodified LLaVA ready for caches made by ``avl.make_cache``; idempotent, returns the model.

    The text model's attention gets another name, and the model, its text model and its layers get forward hooks; no class or function is
    replaced. Without one of our caches the model computes exactly what it computed before.

    Raises:
        TypeError: the model's class is not supported; lists what is.
    """
    describe(model)
    config = model.config.text_config
    # under our name already: a model unpickled into a fresh process, where nothing is registered
    set_attention_name(config, register(attention_name(config).removeprefix(PREFIX)))
    hooks.add(model)
    return model


def detach(model: Any) -> Any:
    """Restore the model exactly as it was before :func:`attach`; does nothing for a model that is not attached. Returns the model.

    Weights that our decode loop merged on a GPU (avl/models/merging.py) get memory of their own again, with the same values.
    """
    describe(model)
    if is_attached(model):
        config = model.config.text_config
        set_attention_name(config, attention_name(config).removeprefix(PREFIX))
        separate(model)
        hooks.remove(model)
    return model


def is_attached(model: Any) -> bool:
    """Return whether :func:`attach` is in force."""
    return attention_name(model.config.text_config).startswith(PREFIX)
