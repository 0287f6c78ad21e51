"""Exact attention over a prompt: torch's own kernels, and the log-sum-exp of every query where they give it.

Flash attention computes each query's log-sum-exp anyway; torch's public function drops it. With it the weights of a few keys cost a product
with those keys alone (``accumulated_columns``). The operators that return it have private names, which torch may change:
whether they give what they should is tried once per device, dtype and head size, and where they do not, the public function serves.
"""

from __future__ import annotations

import functools

import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from avl._compat import attend_with_lse, sdpa_backend


def attend_exactly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float, with_lse: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Causal attention ``[B, H, L, D]``, and the natural log-sum-exp of every query's logits, float32 ``[B, H, L]``, or None.

    Args:
        query: ``[B, H, L, D]``; key, value: ``[B, G, L, D]``, after RoPE. mask: bool ``[B, 1, L, L]``, None for plain causality.
        with_lse: whether the log-sum-exp is wanted; with a mask, or where no kernel gives it, there is none.
    """
    times = query.shape[1] // key.shape[1]
    if mask is not None:
        if times > 1:
            # with a mask, no memory-efficient backend takes grouped heads: SDPA would build the [L, L] matrix of all heads
            key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale), None
    causal = query.shape[2] > 1
    if with_lse and causal:
        chosen = sdpa_backend(query, key, value)
        if chosen == lse_backend(query.device, query.dtype, query.shape[-1], times):
            return _attend_with_lse(chosen, query, key, value, scale)
    return scaled_dot_product_attention(query, key, value, scale=scale, is_causal=causal, enable_gqa=times > 1), None


def _attend_with_lse(
    backend: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """That backend's kernel, with all that it returns."""
    out, lse = attend_with_lse(backend, SDPBackend.CUDNN_ATTENTION.value, query, key, value, scale)
    return out, lse.reshape(query.shape[:3])


@functools.cache
def lse_backend(device: torch.device, dtype: torch.dtype, head_size: int, times: int) -> int | None:
    """The backend behind torch's attention that gives a right log-sum-exp here, None if none does; tried once, on random states."""
    make = torch.Generator().manual_seed(0)
    length, scale = 200, head_size**-0.5
    with torch.inference_mode():
        query, key, value = (torch.randn(2, heads, length, head_size, generator=make).to(device, dtype) for heads in (2 * times, 2, 2))
        try:
            chosen = sdpa_backend(query, key, value)
            if chosen not in (SDPBackend.FLASH_ATTENTION.value, SDPBackend.CUDNN_ATTENTION.value):
                return None
            out, lse = _attend_with_lse(chosen, query, key, value, scale)
        except (RuntimeError, TypeError, AttributeError):  # another torch, another build, another device
            return None
        logits = scale * query.double() @ key.double().repeat_interleave(times, dim=1).transpose(2, 3)
        logits = logits.masked_fill(torch.ones(length, length, device=device).triu(1).bool(), -torch.inf)
        public = scaled_dot_product_attention(query, key, value, scale=scale, is_causal=True, enable_gqa=times > 1)
        right = torch.allclose(lse.double(), logits.logsumexp(dim=-1), rtol=0, atol=1e-3)
        return chosen if right and torch.allclose(out, public, rtol=0, atol=4 * torch.finfo(dtype).eps) else None
