"""A later turn of a conversation: new tokens are fed, in one pass, to a cache that holds what the turns before have left.

In every layer the new tokens' queries read all that is stored and, causally, one another. Then the layer is laid out anew, as after a
prompt: its image tokens stay; of those that the turn brings, the last query's scores choose the ones that are stored, as of a first prompt;
they choose the core among all; and the window, the new tokens now in it, is cut to the size that the whole conversation gives it. What was
evicted stays evicted. Where a policy prunes a prompt, it prunes the new image tokens, between the same two layers.

Shapes: b rows (one, outside of tests), G key-value heads, D head size, I image tokens stored, n tokens of the window, Q new tokens in the
hidden states, M image tokens among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from avl.cache.held import Held, Past, Places, Turn, picked
from avl.cache.inspect import find
from avl.cache.layout import check_later_pictures, check_room
from avl.cache.prefill_state import PromptColumns
from avl.cache.ranking import best, best_of_prompt, lift, survivors
from avl.cache.recorder import Recorder
from avl.cache.slots import LayerKV, RowBucket, WindowPlan
from avl.kernels.window.types import FREE
from avl.models.families import family_of
from avl.policies import Policy
from avl.policies.base import PastTurn

if TYPE_CHECKING:
    from avl.cache.cache import AdaptiveCache
    from avl.cache.layer import AdaptiveLayer


BROKEN = "a pass of this cache broke off, so what it holds is not whole: make a new one with avl.make_cache"


def take_past(cache: AdaptiveCache, row: int) -> Past:
    """Return one row of a cache as it is between two steps, its keys and values still in the cache; or as it was when it was parked."""
    parked = cache.parked.get(row)
    if parked is not None:
        return parked
    bucket = cache.buckets[find(cache, row)[0]]
    return Past(bucket.row, PastTurn(bucket.shape, cache.t), [None] * len(cache.layers))


def park(cache: AdaptiveCache, row: int) -> None:
    """Copy a row whose answer is complete, so that the tokens that it is fed while others go on never reach the next turn."""
    place, at = find(cache, row)
    past = take_past(cache, row)
    past.layers = [Held.of(layer.kvs[place], at) for layer in cache.layers]
    cache.parked[row] = past


def begin_turn(
    cache: AdaptiveCache, new: list[int], said: list[int], max_new_tokens: int, image: list[tuple[int, ...]] | None = None
) -> None:
    """Lay a cache out for a later turn in which every row is fed ``new`` tokens; see :meth:`AdaptiveCache.extend`.

    A turn that has begun and not run may begin anew, with other tokens. Several rows get a cache each, because each is fed other tokens and
    may hold others; their keys and values are copied layer by layer, so that one layer at most is held twice.
    """
    if cache.in_pass:
        raise ValueError(BROKEN)
    if cache.turn is None and not cache.tables:
        raise ValueError("this cache has not seen its first prompt: run it, then the conversation can go on")
    model = cache.model()
    reason = None if model is None else family_of(model.config).no_turns()
    if reason is not None:
        raise ValueError(f"a conversation with {cache.facts.name} cannot go on with what is stored, {reason}: ask a new question")
    if cache.ahead is None:
        raise ValueError("this cache does not know the positions that its prompt had: let the model count them, or pass position_ids")
    if min(new) < 1:
        raise ValueError("the next turn brings no new tokens: add the next question")
    image = image or [()] * len(new)
    if model is not None and any(image):
        check_later_pictures(family_of(model.config), new, image)
    before, rows = cache.turn, cache.batch_size
    pasts = before.pasts if before is not None else [take_past(cache, row) for row in range(rows)]
    lengths = [past.row.length + past.turn.steps + more for past, more in zip(pasts, new, strict=True)]
    check_room(cache.facts, max(lengths) + max_new_tokens, max_new_tokens)
    if before is None:
        _leave_tables(cache, pasts)
    rows_now = zip(pasts, new, said, lengths, image, strict=True)
    grown = tuple(past.grown(more, few, max(lengths) - length, places) for past, more, few, length, places in rows_now)
    cache.lay_out(grown, [past.turn for past in pasts], max_new_tokens)
    cache.turn = Turn(pasts, new, image)
    cache.drop_prefill()
    cache.turns += before is None
    if rows > 1:
        cache.turn.parts = [_part(cache, number) for number in range(rows)]
    cache.t, cache.seen = 0, max(lengths) - max(new)
    cache.update_step = cache.looped = cache.static = False
    if cache.recorder is not None:
        cache.recorder = Recorder(cache.rows[0], len(cache.layers))
        cache.turn.caches(cache)[0].recorder = cache.recorder


def new_tokens(cache: AdaptiveCache, ids: torch.Tensor) -> torch.Tensor:
    """Return the tokens ``[B, columns]`` of a later turn's pass that brings pictures, with no placeholder of earlier ones among them.

    Rows that are fed fewer tokens than others have earlier ones before them, whose outputs nobody reads.
    """
    turn, token = cache.turn, cache.facts.image_token_id
    if turn is None or not turn.pictures or ids.shape[1] != turn.width:
        return ids
    begins = torch.tensor([turn.width - new for new in turn.new], device=ids.device)
    earlier = torch.arange(turn.width, device=ids.device) < begins[:, None]
    return ids.masked_fill(earlier & (ids == token), 1 if token == 0 else 0)


def _leave_tables(cache: AdaptiveCache, pasts: list[Past]) -> None:
    """Let the layers go without slot tables, and take their tokens out of them where there are several rows."""
    cache.tables, cache.joined, cache.stored_images, cache.parked = [], [], {}, {}
    places = [(place, at) for row in range(cache.batch_size) for place, at in [find(cache, row)]]
    for layer in cache.layers:
        layer.joined = None
        if len(pasts) > 1:
            for past, (place, at) in zip(pasts, places, strict=True):
                past.layers[layer.number] = past.layers[layer.number] or Held.of(layer.kvs[place], at)
            layer.flat, layer.kvs = None, []


def _part(cache: AdaptiveCache, row: int) -> AdaptiveCache:
    """Return the cache of one row of a turn that has begun."""
    assert cache.turn is not None
    past = cache.turn.pasts[row]
    part = type(cache)(cache.model(), (cache.rows[row],), cache.policy, cache.max_new_tokens, cache.facts, [past.turn])
    part.part, part.turn, part.turns = True, Turn([past], [cache.turn.new[row]], [cache.turn.image[row]]), cache.turns
    part.seen = cache.rows[row].pad + cache.rows[row].length - cache.turn.new[row]
    part.take_counts(cache, row)
    return part


def end_turn(cache: AdaptiveCache) -> None:
    """Complete the first pass of a later turn, and make the slot tables."""
    turn = cache.turn
    assert turn is not None
    if cache.ahead is not None:
        cache.ahead = cache.ahead + (turn.ahead if isinstance(turn.ahead, int) else turn.ahead.to(cache.ahead.device))
    state = cache.drop_prefill()
    if state is not None:
        state.finish()
    cache.turn, cache.in_pass = None, False
    cache.seen = cache.rows[0].pad + cache.rows[0].length
    if not turn.parts:
        cache.open_tables()
    else:
        held = sum(part.allocated_bytes for part in turn.parts)
        cache.peak_bytes = max(cache.peak_bytes, held + max(part.peak_bytes - part.allocated_bytes for part in turn.parts))
        for part in turn.parts:
            if part.turn is not None:
                end_turn(part)
        cache.merge(turn.parts)
    if state is not None:
        cache.note_pruned(state)


def held_by(layer: AdaptiveLayer, past: Past) -> Held:
    """Return what a layer holds of its only row, and free the layer's storage."""
    held = past.layers[layer.number]
    if held is None:
        held = Held.of(layer.kvs[0], 0)
    past.layers[layer.number], layer.flat, layer.kvs = None, None, []
    return held


def commit_turn(
    layer: AdaptiveLayer,
    held: Places,
    columns: PromptColumns,
    keys: torch.Tensor,
    values: torch.Tensor,
    scores: torch.Tensor | None,
    gained: torch.Tensor | None,
) -> None:
    """Lay a layer out anew after the new tokens' pass.

    Args:
        layer: of a cache of one row.
        held: what it held before.
        columns: where the new tokens are in the hidden states.
        keys: ``[1, G, I + n + Q, D]``, held and new ones after RoPE.
        values: likewise.
        scores: ``[1, I + n + Q]`` by the last query, None if no image tokens are ranked.
        gained: ``[1, 1 or G, n + Q]``, what all but the image tokens that were held gained in this pass, None if that ranks nothing.
    """
    (bucket,) = layer.owner.buckets
    window, device = bucket.windows[layer.number], keys.device
    old, stored = held.image_idx.shape[1], held.token_idx.shape[2]
    image_idx, image = _images(layer, held, columns, scores)  # [1, image], and their columns of keys
    entering = columns.window - columns.pad  # [1, new]
    new, behind = entering.shape[1], old + stored
    fresh = torch.arange(window.prompt - new, window.prompt, device=device).expand(*held.token_idx.shape[:2], new)
    tokens, sums = torch.cat([held.token_idx, fresh], dim=2), None
    places = torch.cat([torch.arange(old, behind, device=device), behind + entering[0]]).expand(tokens.shape)  # columns of keys
    if gained is not None:
        sums = gained.gather(2, (places - old).expand(-1, gained.shape[1], -1))
        sums = sums if held.sums is None else sums + pad(held.sums, (0, new))
    stay = _stay(window, tokens, sums, new)  # [1, 1 or G, start]
    free = window.capacity - window.start
    source = torch.cat([image[:, None].expand(-1, stay.shape[1], -1), places.gather(2, pad(stay, (0, free)))], dim=2)
    by_head = [picked(states, source) for states in (keys, values)]
    flat_keys, flat_values = (states.transpose(1, 2).contiguous().flatten(0, 1) for states in by_head)
    layer.flat = flat_keys, flat_values
    core, index, weights = layer.owner.policy.select(layer.number, bucket.shape), None, None
    if core is not None:
        assert scores is not None, "a policy that reads some image tokens ranks them"
        weights = bucket.cover.of(layer.number, image_idx, core=True)
        slots = image.shape[1] + torch.arange(window.capacity, device=device).expand(1, -1)
        index = torch.cat([best(lift(scores.gather(1, image), weights), core), slots], dim=1)
    layer.kvs = [
        LayerKV(
            keys=flat_keys.view(1, -1, *flat_keys.shape[1:]),
            values=flat_values.view(1, -1, *flat_values.shape[1:]),
            image_idx=image_idx,
            token_idx=pad(tokens.gather(2, stay), (0, free), value=FREE),
            sums=None if sums is None or not window.accumulates else pad(sums.gather(2, stay), (0, free)),
            index=index,
            window=window,
            weights=weights,
        )
    ]


def _images(layer: AdaptiveLayer, held: Places, columns: PromptColumns, scores: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image tokens ``[1, image]`` that a layer stores from now on, those it held first, and the columns of keys they are in."""
    (bucket,) = layer.owner.buckets
    policy, old = layer.owner.policy, held.image_idx.shape[1]
    kept = torch.arange(old, device=held.image_idx.device).expand(1, -1)
    if not policy.pins_image or not columns.image.shape[1]:
        return held.image_idx, kept
    fresh, image_idx = old + held.token_idx.shape[2] + columns.image - columns.pad, columns.image_idx
    count = policy.store(layer.number, bucket.shape).image - old
    if count < fresh.shape[1]:
        assert scores is not None, "a policy that drops image tokens ranks them"
        chosen = best(lift(scores.gather(1, fresh), bucket.cover.of(layer.number, image_idx, core=False)), count)
        fresh, image_idx = fresh.gather(1, chosen), image_idx.gather(1, chosen)
    return torch.cat([held.image_idx, image_idx], dim=1), torch.cat([kept, fresh], dim=1)


def chooses_new(policy: Policy, bucket: RowBucket, layer: int) -> bool:
    """Return whether the scores of ``layer`` choose among the image tokens that a later turn brings."""
    if not bucket.shape.new_image or not policy.pins_image:
        return False
    here, stored = policy.present(layer, bucket.shape), policy.store(layer, bucket.shape).image - policy.left(layer, bucket.shape)
    return stored < here or policy.present(layer + 1, bucket.shape) < here


def _stay(window: WindowPlan, tokens: torch.Tensor, sums: torch.Tensor | None, new: int) -> torch.Tensor:
    """Return the places ``[1, 1 or G, start]``, ascending, of the tokens that stay of ``tokens``, of which the last ``new`` are new ones.

    As after a prompt: the weakest of all leave one after another; or, where only a prompt's scores count, the weakest new ones.
    """
    count = tokens.shape[2]
    if window.start == count:
        return torch.arange(count, device=tokens.device).expand(tokens.shape)
    if window.observation is not None and not window.observation.decode:
        assert sums is not None, "what the scores of a prompt choose is ranked"
        stay = window.start - (count - new)
        before = torch.arange(count - new, device=tokens.device).expand(*tokens.shape[:2], -1)
        return torch.cat([before, count - new + best_of_prompt(window, sums[..., count - new :], stay)], dim=2)
    scores = tokens.double() if sums is None else sums  # without scores, the oldest leave
    safe = (tokens >= window.prompt - window.recent) | (tokens < window.sinks)
    return survivors(scores, safe, window.start)


def place_pictures(model: Any, cache: AdaptiveCache, ids: torch.Tensor, pictures: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Note where the tokens of a later turn stand that brings pictures, and return what the model takes beside its tokens.

    Args:
        model: the model.
        cache: of one row, extended.
        ids: ``[1, Q]`` new tokens.
        pictures: what the processor made of the new pictures, without anything that is one for each token; empty for none.
    """
    turn, family = cache.turn, family_of(model.config)
    if turn is None or not pictures:
        return {}
    begin = cache.seen if family.two_way else 0  # where tokens may see later ones, the model makes its mask of all that it has seen
    kinds = ids.new_zeros(1, begin + ids.shape[1])
    kinds[0, [begin + place for place in turn.image[0]]] = 1
    found = {**pictures} if family.token_types is None else {**pictures, family.token_types: kinds}
    own = family.later_positions(model, ids, found)
    if own is not None and cache.ahead is not None:
        where, turn.ahead = own
        turn.where = where + cache.rows[0].length - turn.new[0] + cache.ahead.to(where.device)
    return found


def note_ids(cache: AdaptiveCache, ids: torch.Tensor | None) -> None:
    """Note the tokens ``[B, columns]`` of a pass that ``generate`` runs, for a later turn; None where they are not known."""
    if ids is None or cache.looped:
        cache.ids = None
    elif cache.turn is not None:
        cache.ids = None if cache.turn.ids is None else [cache.turn.ids]
    elif cache.ids is not None:
        cache.ids.append(ids)


def positions(cache: AdaptiveCache, length: int) -> torch.Tensor | None:
    """Return the positions ``[B, length]`` or ``[axes, B, length]`` of the tokens that a pass feeds in a later turn.

    None where the model counts them itself.
    """
    if cache.turns == 1 or cache.looped or cache.ahead is None:
        return None
    if cache.turn is not None and cache.turn.where is not None:
        return cache.turn.where
    ends = torch.tensor([[row.length + cache.t] for row in cache.rows], device=cache.ahead.device) + cache.ahead
    return (ends + torch.arange(-length, 0, device=ends.device)).clamp(min=0)
