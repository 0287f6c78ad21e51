"""Every private name of transformers and torch that this project uses, in one place: what to look at when a new release comes.

Public APIs give no way to do what these do. Each function says what it stands in for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch


def attention_name(config: Any) -> str:
    """Return the attention implementation of a text config (``config._attn_implementation``; there is no public getter)."""
    return str(config._attn_implementation)


def set_attention_name(config: Any, name: str) -> None:
    """Set it without the checks of ``model.set_attn_implementation``, which refuses names of implementations on top of others."""
    config._attn_implementation = name


def registered_mask(name: str) -> Any | None:
    """Return the mask function registered under ``name``, None if there is none (``AttentionMaskInterface._global_mapping``)."""
    from transformers.masking_utils import AttentionMaskInterface

    return AttentionMaskInterface._global_mapping.get(name)


def is_registered(name: str) -> bool:
    """Return whether an attention implementation of that name is registered (``AttentionInterface._global_mapping``)."""
    from transformers import AttentionInterface

    return name in AttentionInterface._global_mapping


def remove_hooks(module: torch.nn.Module, hooks: tuple[Callable[..., Any], ...]) -> None:
    """Take functions off a module's forward hooks. Handles of registration would be lost when a model is copied or pickled."""
    for registered in (module._forward_pre_hooks, module._forward_hooks):
        for number in [number for number, hook in registered.items() if hook in hooks]:
            del registered[number]
    for flags in (module._forward_pre_hooks_with_kwargs, module._forward_hooks_with_kwargs):
        for number in [number for number in flags if number not in module._forward_pre_hooks and number not in module._forward_hooks]:
            del flags[number]


def hooks_of(module: torch.nn.Module) -> tuple[list[Callable[..., Any]], list[Callable[..., Any]]]:
    """Return a module's forward pre-hooks and forward hooks."""
    return list(module._forward_pre_hooks.values()), list(module._forward_hooks.values())


def any_global_hook() -> bool:
    """Return whether forward hooks are registered for all modules (``torch.nn.modules.module.register_module_forward_hook``)."""
    from torch.nn.modules import module

    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)


def call_override(module: torch.nn.Module) -> bool:
    """Return whether ``module.compile()`` replaced what a call runs."""
    return module._compiled_call_impl is not None


def records_outputs(hook: Callable[..., Any]) -> bool:
    """Return whether a hook is one that transformers leaves behind after ``output_hidden_states=True``; it is idle in every other call."""
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def sdpa_backend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """Return the backend that ``scaled_dot_product_attention`` takes for causal attention of these (``torch._fused_sdp_choice``)."""
    options: Any = {"enable_gqa": query.shape[1] != key.shape[1]}
    return torch._fused_sdp_choice(query, key, value, None, 0.0, True, **options)


def attend_with_lse(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return causal attention and the log-sum-exp of every query, which the public function drops, by flash attention's own operator."""
    operators = torch.ops.aten
    if query.device.type == "cpu":
        out, lse = operators._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)[:2]
    else:
        out, lse = operators._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scale)[:2]
    return out, lse


def from_config(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    """Return a model with initialized weights in ``dtype`` (``_from_config``: the public constructor ignores the dtype)."""
    return model_class._from_config(config, dtype=dtype)


def set_commit_hash(config: Any, commit: str) -> None:
    """Note it where ``from_pretrained`` did; recent releases do not."""
    config._commit_hash = commit


def commit_hash(config: Any) -> str | None:
    """Return the commit of the Hub repository that a config came from, None for a local one."""
    return getattr(config, "_commit_hash", None)


def name_or_path(config: Any) -> str:
    """Return where a config came from: a Hub id or a folder."""
    return str(getattr(config, "_name_or_path", "") or "")


def prepared_generation_config(model: Any, **options: Any) -> Any:
    """Return the config that ``model.generate(**options)`` would use, a copy (``GenerationMixin._prepare_generation_config``)."""
    config, _ = model._prepare_generation_config(None, **options)
    return config


def logits_processors(model: Any, config: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> Any:
    """Return the logits processors of ``model.generate``, in its order (``GenerationMixin._get_logits_processor``).

    Args:
        model: the model.
        config: from :func:`prepared_generation_config`; changed in place.
        ids: the prompt ``[B, L]``, on the device that chooses tokens.
        mask: its attention mask ``[B, L]``, or None.
    """
    model._prepare_special_tokens(config, True, device=ids.device, batch_size=len(ids))
    model._prepare_generated_length(config, True, True, "input_ids", ids.shape[1], ids)
    if mask is not None:
        mask = None if bool((mask == 1).all()) else mask.to(ids.device)  # as generate: without padding it drops the mask
    return model._get_logits_processor(
        config, input_ids_seq_length=ids.shape[1], encoder_input_ids=ids, device=ids.device, model_kwargs={"attention_mask": mask}
    )


@contextlib.contextmanager
def allow_missing(kind: type, packages: Iterable[str]) -> Iterator[None]:
    """Let a class be constructed that asks for packages which are not installed (its module's global of that name is None).

    Args:
        kind: the class.
        packages: their names.
    """
    module: Any = sys.modules[kind.__module__]
    absent = [name for name in packages if getattr(module, name, module) is None]
    for name in absent:
        setattr(module, name, _absent)
    try:
        yield
    finally:
        for name in absent:
            setattr(module, name, None)


def _absent(*_: Any) -> Any:
    raise ImportError("a package is called for that is not installed")
