"""What went wrong in a run whose logits are no numbers. Runs after the failure only, so it may wait for the device."""

from __future__ import annotations

import torch

from avl.cache.cache import AdaptiveCache
from avl.kernels.window.types import FREE


class NotFiniteError(ArithmeticError):
    """No token can be chosen. The message is one sentence for the user; ``arm`` is the run's number, None for one that is not told of."""

    def __init__(self, message: str, arm: int | None) -> None:
        super().__init__(message)
        self.arm = arm


def first_not_finite(cache: AdaptiveCache, row: int) -> int | None:
    """Return the first layer that stores a NaN or an infinite key or value of ``row``, None if there is none."""
    for place, bucket in enumerate(cache.buckets):
        if row not in bucket.rows:
            continue
        at = bucket.rows.index(row)
        for layer in cache.layers:
            kv = layer.kvs[place]
            finite = kv.keys[at].isfinite().all(dim=-1) & kv.values[at].isfinite().all(dim=-1)  # [slots, G]
            taken = torch.ones_like(finite)
            taken[kv.image :] = (kv.token_idx[at] != FREE).T  # a free slot holds what memory held
            if not bool((finite | ~taken).all()):
                return layer.number
    return None


def explain(cache: AdaptiveCache, row: int, token: int, settings: tuple[str, ...]) -> str:
    """Return the sentence for ``token`` of ``row``, which has no usable logits.

    Args:
        cache: of the run.
        row: of the batch.
        token: number of the token that cannot be chosen.
        settings: what the model's generation config states, as ``name=value``.
    """
    layer, dtype = first_not_finite(cache, row), cache.layers[0].kvs[0].keys.dtype
    where = f"the logits of row {row} are not finite numbers"
    if layer is not None:
        where += f", and neither are keys or values from layer {layer} on (of 0 to {len(cache.layers) - 1})"
        source = "the picture's features or the embeddings" if layer == 0 else f"layer {layer - 1}"
    else:
        where += ", although the keys and values of all layers are"
        source = "the last layer or the output head" + (
            f", or the generation settings leave no token ({', '.join(settings)})" if settings else ""
        )
    advice = "load the model with dtype='bf16' or 'fp32'" if dtype == torch.float16 else "check the checkpoint's weights"
    cause = "float16 has probably overflowed in" if dtype == torch.float16 else "the trouble is in"
    return f"token {token} cannot be chosen: {where}; {cause} {source}: {advice}"
