"""Attach adaptive attention to a model and detach it. The state is in the model, so a copy of an attached model is attached."""

from __future__ import annotations

from typing import Any

from avl._compat import attention_name, set_attention_name
from avl.attention import hooks
from avl.attention.interface import PREFIX, register
from avl.models.families import describe
from avl.models.merging import separate


def attach(model: Any) -> Any:
    """Prepare an unmodified LLaVA for caches made by ``avl.make_cache``, and return it; idempotent.

    Renames the text model's attention implementation and adds forward hooks to the model, its text model and its layers; replaces no class
    or function. Without one of our caches the model computes exactly what it did before.

    Raises:
        TypeError: the model's class is not supported; lists the supported ones.
    """
    describe(model)
    config = model.config.text_config
    # the config may have our name already: that of a model unpickled in a new process, where nothing is registered
    set_attention_name(config, register(attention_name(config).removeprefix(PREFIX)))
    hooks.add(model)
    return model


def detach(model: Any) -> Any:
    """Restore the model to its state before :func:`attach`, and return it; does nothing if it is not attached.

    Weights that the decode loop merged on a GPU (avl/models/merging.py) are separated again, with the same values.
    """
    describe(model)
    if is_attached(model):
        config = model.config.text_config
        set_attention_name(config, attention_name(config).removeprefix(PREFIX))
        separate(model)
        hooks.remove(model)
    return model


def is_attached(model: Any) -> bool:
    """Return whether the model is attached."""
    return attention_name(model.config.text_config).startswith(PREFIX)
