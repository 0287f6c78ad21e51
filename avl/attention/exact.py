"""Exact attention over a prompt by torch's kernels, with the log-sum-exp of every query where they return it.

Flash attention computes each query's log-sum-exp anyway, but torch's public function drops it. With it, the weights of a few keys cost only
a product with those keys (``accumulated_columns``). The operators that return it have private names, which torch may change: their results
are checked once per device, dtype and head size, and where they are wrong or missing, the public function is used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from avl._compat import attend_with_lse, sdpa_backend


def spare_plans(devices: Iterable[torch.device]) -> None:
    """Take cuDNN out of torch's choice of attention, for this process, where one of the devices is a GPU.

    On Hopper and later torch prefers it, and it makes a plan for every new length of the prompt, in every thread: 0.4 s within the time to
    the first token, to save a few percent of a long prompt.
    """
    if any(device.type == "cuda" for device in devices):
        torch.backends.cuda.enable_cudnn_sdp(False)


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
    causal = mask is None and query.shape[2] > 1
    if with_lse and causal:
        chosen = sdpa_backend(query, key, value)
        if chosen == lse_backend(query.device, query.dtype, query.shape[-1], query.shape[1] // key.shape[1]):
            return _attend_with_lse(query, key, value, scale)
    times = repeats(query, key, value, mask)
    if times > 1:
        key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, is_causal=causal, enable_gqa=grouped), None


def repeats(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> int:
    """Return how often each key-value head must be repeated for torch's attention not to build the [L, L] matrix of all heads.

    Where no memory-efficient backend takes grouped heads as they are: with a mask none does, and without one only flash attention, which
    float32 and older GPUs do not have.
    """
    times = query.shape[1] // key.shape[1]
    needed = times > 1 and (mask is not None or sdpa_backend(query, key, value) == SDPBackend.MATH.value)
    return times if needed else 1


def _attend_with_lse(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run flash attention and return its output and log-sum-exp."""
    out, lse = attend_with_lse(query, key, value, scale)
    return out, lse.reshape(query.shape[:3])


@functools.cache
def lse_backend(device: torch.device, dtype: torch.dtype, head_size: int, times: int) -> int | None:
    """Return the SDPA backend that returns a correct log-sum-exp here, None if there is none; tested once, on random states."""
    spare_plans([device])  # a model may have moved here since it was attached
    make = torch.Generator().manual_seed(0)
    length, scale = 200, head_size**-0.5
    with torch.inference_mode():
        query, key, value = (torch.randn(2, heads, length, head_size, generator=make).to(device, dtype) for heads in (2 * times, 2, 2))
        try:
            chosen = sdpa_backend(query, key, value)
            if chosen != SDPBackend.FLASH_ATTENTION.value:
                return None
            out, lse = _attend_with_lse(query, key, value, scale)
        except (RuntimeError, TypeError, AttributeError):  # another torch, another build, another device
            return None
        logits = scale * query.double() @ key.double().repeat_interleave(times, dim=1).transpose(2, 3)
        logits = logits.masked_fill(torch.ones(length, length, device=device).triu(1).bool(), -torch.inf)
        public = scaled_dot_product_attention(query, key, value, scale=scale, is_causal=True, enable_gqa=times > 1)
        right = torch.allclose(lse.double(), logits.logsumexp(dim=-1), rtol=0, atol=1e-3)
        return chosen if right and torch.allclose(out, public, rtol=0, atol=4 * torch.finfo(dtype).eps) else None
