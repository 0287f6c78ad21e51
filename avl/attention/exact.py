"""Exact attention over a prompt by torch's kernels, with the log-sum-exp of every query where they return it.

Flash attention computes each query's log-sum-exp anyway, but torch's public function drops it. With it, the weights of a few keys cost only
a product with those keys (``accumulated_columns``). The operators that return it have private names, which torch may change: their results
are checked once per device, dtype and head size, and where they are wrong or missing, the public function is used.
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
    """Compute causal attention, and the log-sum-exp of every query's logits if asked for.

    Args:
        query: ``[B, H, L, D]`` after RoPE.
        key: ``[B, G, L, D]`` after RoPE.
        value: ``[B, G, L, D]``.
        mask: bool ``[B, 1, L, L]``, None for plain causal attention.
        scale: factor of the logits.
        with_lse: whether the log-sum-exp is wanted.

    Returns:
        The output ``[B, H, L, D]``, and the natural log-sum-exp, float32 ``[B, H, L]``; None if it is not wanted, with a mask, or if no
        kernel returns it.
    """
    times = query.shape[1] // key.shape[1]
    if mask is not None:
        if times > 1:
            # with a mask, no memory-efficient backend supports grouped heads: SDPA would build the [L, L] matrix of all heads
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
    """Run one backend's kernel and return its output and log-sum-exp."""
    out, lse = attend_with_lse(backend, SDPBackend.CUDNN_ATTENTION.value, query, key, value, scale)
    return out, lse.reshape(query.shape[:3])


@functools.cache
def lse_backend(device: torch.device, dtype: torch.dtype, head_size: int, times: int) -> int | None:
    """Return the SDPA backend that returns a correct log-sum-exp here, None if there is none; tested once, on random states."""
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
