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
    cache.attended += 1
    if cache.tables:
        return attend_step(avl_layer, query, scale), None
    return attend_prompt(avl_layer, query, key, value, scale), None


def _original(before: str, module: torch.nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    # "eager" is not registered in the interface: every modeling file has its own
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return AttentionInterface().get_interface(before, eager)
