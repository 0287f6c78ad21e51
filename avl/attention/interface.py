"""The attention function registered with transformers: adaptive attention with our cache, the model's own attention without."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from avl._compat import is_registered, registered_mask
from avl.attention.decode import attend_step
from avl.attention.prefill import attend_prompt
from avl.attention.turn import attend_turn
from avl.cache.cache import AdaptiveCache
from avl.cache.layer import AdaptiveLayer

PREFIX = "avl_"


def register(before: str) -> str:
    """Register adaptive attention on top of the implementation ``before`` with transformers, and return its name. Idempotent."""
    name = PREFIX + before
    if not is_registered(name):
        attend: Any = partial(_dispatch, before)
        AttentionInterface.register(name, attend)
        mask = registered_mask(before)
        if mask is not None:
            AttentionMaskInterface.register(name, mask)
    return name


def _dispatch(
    before: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    avl_layer: AdaptiveLayer | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend adaptively if avl/attention/hooks.py passed our cache's layer, else as the implementation ``before`` does."""
    if avl_layer is None:
        return _original(before, module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    cache = avl_layer.owner
    _refuse_unknown(kwargs, cache.longest)
    if cache.turn is not None:
        if cache.facts.two_way and cache.turn.pictures:
            _check_mask(cache, _of_new(cache, attention_mask), True, before)
    elif not cache.tables:
        _check_mask(cache, attention_mask, getattr(module, "is_causal", True), before)
    cache.attended += 1
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # as SDPA under autocast: its dtype for all three; what follows mixes precisions on purpose
        query, key, value = (states.to(torch.get_autocast_dtype(kind)) for states in (query, key, value))
        with torch.autocast(kind, enabled=False):
            return _attend(avl_layer, query, key, value, scale), None
    return _attend(avl_layer, query, key, value, scale), None


def _attend(layer: AdaptiveLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    if layer.owner.tables:
        return attend_step(layer, query, scale)
    return (attend_prompt if layer.owner.turn is None else attend_turn)(layer, query, key, value, scale)


def _of_new(cache: AdaptiveCache, mask: Any) -> Any:
    """Return the part of a later turn's mask ``[B or 1, 1, Q, seen + Q]`` that says which of its new tokens see which, as bool."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return mask
    newest = mask[..., -mask.shape[2] :]
    visible, valid = newest if mask.dtype == torch.bool else newest == 0, cache.prefill.valid(mask.device)
    return visible if valid is None else visible & valid[:, None, None, :]  # columns before a row's new tokens are in the cache


def _check_mask(cache: AdaptiveCache, mask: Any, causal: bool, before: str) -> None:
    """Compare the mask of a prompt with what the cache's rows say; take it over where tokens may see later ones.

    Args:
        cache: of the prompt.
        mask: what transformers made: who sees whom, for some implementations what is padding, None where causality is all.
        causal: whether the model's own attention is causal where it has no mask.
        before: the model's own implementation.

    Raises:
        ValueError: it says something else, or says nothing where it must.
    """
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        cache.prefill.check(mask, cache.facts.two_way)
        return
    if cache.prefill.survivors is not None:
        return  # of a shortened prompt, whose mask was looked at before
    # a mask of padding [B, L] was compared where the pass began
    if not causal or (cache.facts.two_way and any(row.image for row in cache.rows)):
        raise ValueError(
            f"{cache.facts.name} needs a mask that says who sees whom, which attention implementation {before!r} does not give for these "
            "inputs: pass the processor's token_type_ids, and use model.set_attn_implementation('sdpa') or 'eager'"
        )


_WITHOUT_EFFECT = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "num_items_in_batch",
        "logits_to_keep",
    }
)
"""Arguments that reach an attention function and change nothing in it."""

_WITHOUT_EFFECT_IF: dict[str, tuple[Any, ...]] = {"dropout": (0, None), "is_causal": (True, None), "output_attentions": (False, None)}
"""Arguments that change nothing at these values."""


def _refuse_unknown(given: dict[str, Any], longest: int) -> None:
    """Refuse what other attention functions obey and ours would ignore (softcap, sinks, biases, ...).

    Args:
        given: the keyword arguments that transformers or a model passes on.
        longest: most positions that the cache will see; a sliding window at least as long hides nothing.

    Raises:
        ValueError: names the first such argument.
    """
    for name, value in given.items():
        if value is None or name in _WITHOUT_EFFECT or any(value is known or value == known for known in _WITHOUT_EFFECT_IF.get(name, ())):
            continue
        if name == "sliding_window" and value >= longest:
            continue
        said = f"{name}={value}" if isinstance(value, (bool, int, float, str)) else name
        raise ValueError(
            f"the model calls its attention with {said}, which adaptive attention does not compute: run this model without our cache"
        )


def _original(before: str, module: torch.nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    # "eager" is not registered in the interface: every modeling file has its own
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return AttentionInterface().get_interface(before, eager)
