"""Forward hooks that connect transformers' layer loop to our cache, so that ``model.generate`` and our engine run the same prompt.

The text model's hooks begin and end a pass of the cache. Each decoder layer's hook passes that layer's part of the cache on to the
attention function, and in prefill it shortens the sequence where P (and FastV) prune: the loop gives every layer the full-length mask and
rotary embeddings, and the hook replaces them by those of the remaining tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from avl._compat import attention_name, hooks_of, remove_hooks
from avl.attention.interface import PREFIX, register
from avl.cache.cache import USED, AdaptiveCache
from avl.cache.layer import NOT_ATTACHED
from avl.cache.layout import check_mask
from avl.cache.turns import new_tokens, note_ids, positions
from avl.models.families import family_of, language_model


def add(model: Any) -> None:
    """Add the hooks to a model, its text model and its layers; idempotent."""
    text_model = language_model(model)
    if present(model):
        return
    model.register_forward_pre_hook(check_prompt, with_kwargs=True)
    text_model.register_forward_pre_hook(begin_pass, with_kwargs=True)
    text_model.register_forward_hook(end_pass, with_kwargs=True)
    for layer in text_model.layers:
        layer.register_forward_pre_hook(before_layer, with_kwargs=True)


def present(model: Any) -> bool:
    """Return whether the model has the hooks."""
    return begin_pass in hooks_of(language_model(model))[0]


def remove(model: Any) -> None:
    """Remove the hooks."""
    text_model = language_model(model)
    for module in (model, text_model, *text_model.layers):
        remove_hooks(module, OURS)


def check_prompt(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Refuse a prompt that is not the cache's, and a second one even if generate cut off what it takes for cached; the model's pre-hook.

    Raises:
        ValueError: the cache holds a prompt already, or was made for another one.
    """
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, AdaptiveCache):
        return None
    ids = args[0] if args else kwargs.get("input_ids")
    if cache.turn is not None:
        if kwargs.get("pixel_values") is not None and not cache.turn.pictures:
            raise ValueError("the pictures are in the cache already: leave them out of a later turn")
        bare = kwargs.get("pixel_values") is None and not kwargs.get("mm_encoder_outputs")
        if bare and cache.turn.pictures and ids is not None:
            raise ValueError(
                "this turn brings pictures, and the model got none: pass it the same inputs as next_turn, pixel_values included"
            )
        cache.turn.check_ids(ids)
        _prepare(model, cache)
    elif not cache.tables:
        if ids is not None:
            cache.check_prompt(ids)
        mask = kwargs.get("attention_mask")
        if cache.facts.two_way and (mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2)):
            check_mask(cache.rows, mask, None)  # the text model gets what the model makes of it
        _prepare(model, cache)
    elif kwargs.get("pixel_values") is not None or (ids is not None and ids.shape[1] != 1):
        raise ValueError(USED)
    if not cache.looped and not cache.split:
        note_ids(cache, ids)
    if cache.turn is None or ids is None or not cache.turn.pictures:
        return None
    ids = new_tokens(cache, ids)
    return ((ids, *args[1:]), kwargs) if args else (args, {**kwargs, "input_ids": ids})


def _prepare(model: torch.nn.Module, cache: AdaptiveCache) -> None:
    """Copy what the first pass's layers need to their device now, while nothing is queued."""
    first = next(language_model(model).layers[0].parameters()).device
    if first.type != "meta" and not cache.split:  # as weights are that accelerate fetches for each use
        cache.prepare(first)


def begin_pass(text_model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Begin the cache's pass; the text model's pre-hook. Does nothing without one of our caches.

    Features of a picture that the text model adds after several layers (deepstack) are taken out of its loop, which adds them to the
    columns of the whole prompt; :func:`before_layer` adds them to those that are left.

    Raises:
        RuntimeError: the model's attention was changed after it was attached.
        ValueError: the cache was not made for this pass (see ``AdaptiveCache.begin_pass``), or the mask hides more than padding.
    """
    name = attention_name(text_model.config)
    if name.startswith(PREFIX):
        register(name.removeprefix(PREFIX))  # once: a model that was pickled attached runs in a process that has not attached one
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, AdaptiveCache) or cache.split:
        return None
    if not name.startswith(PREFIX):
        raise RuntimeError(NOT_ATTACHED)
    tokens = kwargs.get("inputs_embeds")
    if tokens is None:
        tokens = args[0] if args else kwargs["input_ids"]
    mask = kwargs.get("attention_mask")
    own = mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2)
    if own and not cache.facts.two_way:
        raise ValueError("adaptive attention takes an attention_mask [batch, length] that hides padding, none that says who sees whom")
    # the model's own masks, one for every kind of layer, are looked at where a layer attends
    cache.begin_pass(text_model, tokens.shape[0], tokens.shape[1], None if own else mask, checked=own)
    where = positions(cache, tokens.shape[1])
    changed: dict[str, Any] = {} if where is None else {"position_ids": where.to(tokens.device)}
    features = kwargs.get("deepstack_visual_embeds")
    if features is not None and not cache.tables:
        cache.prefill.added = spread_out(features, kwargs["visual_pos_masks"])
        changed |= {"deepstack_visual_embeds": None, "visual_pos_masks": None}
    return (args, {**kwargs, **changed}) if changed else None


def end_pass(text_model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Complete the pass that :func:`begin_pass` began; the text model's hook."""
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, AdaptiveCache) or cache.split:
        return
    model, first = cache.model(), not cache.tables and cache.turn is None
    cache.end_pass()
    if first and not cache.part and model is not None:
        cache.ahead = _ahead(model, cache, kwargs.get("position_ids"))


def _ahead(model: Any, cache: AdaptiveCache, where: torch.Tensor | None) -> torch.Tensor | None:
    """Return by how much the next position exceeds the length of a prompt that just ran, ``[B, 1]``; None where that is not known.

    Args:
        model: which counts it for its last prompt only, so that it is noted now.
        cache: of the prompt.
        where: the positions that its text model got, ``[B or 1, L]`` or ``[axes, B or 1, L]``; None where it counted them itself.
    """
    if where is None:
        ahead = family_of(model.config).ahead(model, any(row.image for row in cache.rows))
        return None if ahead is None else torch.as_tensor(ahead).expand(cache.batch_size, 1).clone()
    if where.dim() == 3:
        where = (where[1:] if len(where) == 4 else where).amax(dim=0)  # of four, the first count the tokens
    lengths = torch.tensor([[row.length] for row in cache.rows], device=where.device)
    return where[:, -1:] + 1 - lengths


def before_layer(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pass the cache's layer on, and prune the sequence in prefill; the pre-hook of every decoder layer. Does nothing without our cache."""
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, AdaptiveCache):
        return None
    number: int = layer.self_attn.layer_idx  # type: ignore[assignment,union-attr]
    # decoder layers pass unknown keyword arguments on to the attention function
    kwargs = {**kwargs, "avl_layer": cache.layers[number]}
    if cache.tables:
        return args, kwargs
    hidden = args[0] if args else kwargs["hidden_states"]
    prefill = cache.prefill
    if 0 < number <= len(prefill.added):
        more = prefill.added[number - 1].to(hidden.device, hidden.dtype)
        hidden = hidden + (more if prefill.survivors is None else _pick(more, prefill.survivors))
    prompts = cache.prompts
    keep = [cache.policy.prune(number, bucket.shape) for bucket in prompts]
    if prefill.scores is not None and any(count is not None for count in keep):
        counts = [bucket.shape.new_image if count is None else count for bucket, count in zip(prompts, keep, strict=True)]
        survivors = prefill.prune(counts, [bucket.cover for bucket in prompts], number - 1)
        if survivors is not None:
            survivors = survivors.to(hidden.device)
            hidden = hidden.gather(1, survivors[..., None].expand(-1, -1, hidden.shape[2]))
    if prefill.survivors is None:
        return _with_hidden(hidden, args, kwargs)
    # the survivors keep their original RoPE positions
    if kwargs.get("position_embeddings") is not None:
        kwargs["position_embeddings"] = tuple(_pick(states, prefill.survivors) for states in kwargs["position_embeddings"])
    if kwargs.get("position_ids") is not None:
        kwargs["position_ids"] = _pick(kwargs["position_ids"], prefill.survivors)
    kwargs["attention_mask"] = None  # our attention makes its own from the cache's rows
    return _with_hidden(hidden, args, kwargs)


def _with_hidden(hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def spread_out(features: list[torch.Tensor], where: torch.Tensor) -> list[torch.Tensor]:
    """Return features ``[image tokens of all rows, hidden]`` of every layer as ``[B, L, hidden]``, zero where ``where [B, L]`` is False."""
    found = []
    for rows in features:
        whole = rows.new_zeros(*where.shape, rows.shape[-1])
        # an index by a mask would wait for the device, to count it
        found.append(whole.masked_scatter_(where.to(rows.device)[..., None], rows))
    return found


def _pick(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return columns ``[B, L']`` of ``states [B or 1, L, ...]``."""
    states = states.expand(columns.shape[0], *states.shape[1:])
    columns = columns.to(states.device)
    return states.gather(1, columns.view(*columns.shape, *[1] * (states.dim() - 2)).expand(*columns.shape, *states.shape[2:]))


OURS = (check_prompt, begin_pass, end_pass, before_layer)
"""Every hook that :func:`add` adds."""
