"""The prompt, layer by layer: where P (and FastV) shorten the sequence, and where a cache meets the model it was made for.

Works as forward pre-hooks of the decoder layers, so that ``model.generate`` and our own engine run the same prompt pass on the model's own
code: the layer loop of transformers hands every layer the full-length mask and rotary embeddings, and the hook hands it those of the tokens
that are still there.
"""

from __future__ import annotations

from typing import Any

import torch

from avl.cache.cache import AdaptiveCache


def before_layer(
    layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of every decoder layer; does nothing without one of our caches.

    Raises:
        ValueError: at the first layer, a pass that the cache was not made for (see ``AdaptiveCache.enter``).
    """
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, AdaptiveCache):
        return None
    number: int = layer.self_attn.layer_idx  # type: ignore[assignment,union-attr]
    hidden = args[0] if args else kwargs["hidden_states"]
    if number == 0:
        cache.enter(layer, hidden.shape[0], hidden.shape[1])
    if cache.t > 0:
        return None
    prompt = cache.prompt
    keep = [cache.policy.prune(number, cache.shape(group.row)) for group in cache.groups]
    if prompt.scores is not None and any(count is not None for count in keep):
        counts = [group.row.n_image if count is None else count for group, count in zip(cache.groups, keep, strict=True)]
        survivors = prompt.prune(counts)
        if survivors is not None:
            survivors = survivors.to(hidden.device)
            hidden = hidden.gather(1, survivors[..., None].expand(-1, -1, hidden.shape[2]))
    if prompt.survivors is None:
        return None
    # the survivors keep their original RoPE positions
    kwargs = dict(kwargs)
    kwargs["position_embeddings"] = tuple(_pick(states, prompt.survivors) for states in kwargs["position_embeddings"])
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = _pick(kwargs["position_ids"], prompt.survivors)
    kwargs["attention_mask"] = None  # ours is made from the cache's rows
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def _pick(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Columns ``[B, L']`` of ``states [B or 1, L, ...]``."""
    states = states.expand(columns.shape[0], *states.shape[1:])
    columns = columns.to(states.device)
    return states.gather(1, columns.view(*columns.shape, *[1] * (states.dim() - 2)).expand(*columns.shape, *states.shape[2:]))
