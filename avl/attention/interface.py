"""The attention function registered with transformers: the model's own without our cache, adaptive attention with it.

transformers hands an attention function the keys that ``cache.update`` returned. Ours carry a tag that leads to the layer's entries; keys
without a tag go to the implementation that the model had before, so an attached model behaves as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from avl.attention.decode import attend_step
from avl.attention.prefill import attend_prompt
from avl.cache.layer import AdaptiveLayer

PREFIX = "avl_"


def register(before: str) -> str:
    """Make adaptive attention known to transformers on top of the implementation ``before``; returns its name. Idempotent."""
    name = PREFIX + before
    if name not in AttentionInterface._global_mapping:
        attend: Any = partial(_dispatch, before)
        AttentionInterface.register(name, attend)
        if before in AttentionMaskInterface._global_mapping:
            mask: Any = AttentionMaskInterface._global_mapping[before]
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
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    layer: AdaptiveLayer | None = getattr(key, "avl_layer", None)
    if layer is None:
        return _original(before, module)(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend_prompt(layer, query, key, value, scale) if layer.owner.t == 0 else attend_step(layer, query, scale)
    layer.attended()
    return out, None


def _original(before: str, module: torch.nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    # "eager" is no entry of the interface: every modeling file has its own
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return AttentionInterface().get_interface(before, eager)
