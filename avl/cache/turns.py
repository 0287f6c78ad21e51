"""A later turn of a conversation: new tokens are fed, in one pass, to a cache that holds what the turns before have left.

In every layer the new tokens' queries read all that is stored and, causally, one another. Then the layer is laid out anew, as after a
prompt: its image tokens stay, the last query's scores choose the core among them, and the window, the new tokens now in it, is cut to the
size that the whole conversation gives it. What was evicted stays evicted.

Shapes: b rows (one, outside of tests), G key-value heads, D head size, I image tokens stored, n tokens of the window, Q new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import pad

from avl.cache.inspect import find
from avl.cache.layout import Row, check_room, find_rows, ids_and_mask
from avl.cache.ranking import best, lift, survivors
from avl.cache.recorder import Recorder
from avl.cache.slots import LayerKV, WindowPlan
from avl.kernels.window.types import FREE
from avl.models.families import family_of
from avl.policies.base import PastTurn

if TYPE_CHECKING:
    from avl.cache.cache import AdaptiveCache
    from avl.cache.layer import AdaptiveLayer


class Places(NamedTuple):
    """Which tokens a layer holds of one row between two turns, in order of position and without free slots.

    Attributes:
        image_idx: ``[1, I]``.
        token_idx: ``[1, 1 or G, n]``.
        sums: shaped like ``token_idx``, accumulated scores; None if nothing accumulates.
    """

    image_idx: torch.Tensor
    token_idx: torch.Tensor
    sums: torch.Tensor | None


class Held(NamedTuple):
    """What a layer holds of one row: keys and values ``[1, G, I + n, D]``, image tokens first, and their places."""

    keys: torch.Tensor
    values: torch.Tensor
    places: Places

    @classmethod
    def of(cls, kv: LayerKV, place: int) -> Held:
        """Copy what ``kv`` holds of its ``place``-th row."""
        one = slice(place, place + 1)
        image_idx, by_image = kv.image_idx[one].sort(dim=1)
        token_idx, by_token = kv.token_idx[one].sort(dim=2)
        token_idx, by_token = token_idx[..., : kv.count], by_token[..., : kv.count]  # a free slot's index is larger than any token's
        slots = torch.cat([by_image[:, None].expand(-1, by_token.shape[1], -1), kv.image + by_token], dim=2)
        keys, values = (_picked(stored[one].transpose(1, 2), slots) for stored in (kv.keys, kv.values))
        return cls(keys, values, Places(image_idx, token_idx, None if kv.sums is None else kv.sums[one].gather(2, by_token)))

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes


def _picked(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return columns ``[1, 1 or G, m]`` of ``states [1, G, L, D]``, a copy."""
    heads, size = states.shape[1], states.shape[3]
    return states.gather(2, columns.expand(-1, heads, -1)[..., None].expand(-1, -1, -1, size))


BROKEN = "a pass of this cache broke off, so what it holds is not whole: make a new one with avl.make_cache"


@dataclass
class Past:
    """One row as the turns before have left it.

    Attributes:
        row: its layout when the last turn began.
        turn: the last turn.
        layers: what each layer holds, None where it still lies in the cache's own storage.
    """

    row: Row
    turn: PastTurn
    layers: list[Held | None]

    def grown(self, new: int, said: int, pad: int) -> Row:
        """Return the row's layout with the last answer's fed tokens and ``new`` ones behind them, of which it said the first ``said``."""
        first = self.row.length
        end = first + self.turn.steps + said
        answers = (*self.row.answers, *([(first, end)] if end > first else []))
        return Row(pad, first + self.turn.steps + new, self.row.image, answers)


@dataclass
class Turn:
    """A turn whose first pass has not run yet.

    Attributes:
        pasts: of every row.
        new: tokens that each row is fed.
        parts: a cache for each row, which :meth:`AdaptiveCache.merge` takes back; empty where the only row stays in its cache.
        ids: ``[B, L]`` of the whole conversation, left-padded, which the new tokens end; None where the caller has not told them.
    """

    pasts: list[Past]
    new: list[int]
    parts: list[AdaptiveCache] = field(default_factory=list)
    ids: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that are in no layer of the cache itself."""
        parts = sum(part.allocated_bytes for part in self.parts)
        return parts or sum(held.nbytes for past in self.pasts for held in past.layers if held is not None)

    def check_ids(self, ids: torch.Tensor | None) -> None:
        """Refuse tokens ``[B, columns]`` other than those that the turn was begun with (``ValueError``)."""
        if self.ids is None or ids is None:
            return
        if ids.shape[1] != self.width or not torch.equal(ids, self.ids[:, -self.width :].to(ids.device)):
            raise ValueError("the model got other tokens than next_turn was given: pass it the same inputs")

    @property
    def width(self) -> int:
        """Columns of the pass, where rows run together."""
        return max(self.new)

    def caches(self, own: AdaptiveCache) -> list[AdaptiveCache]:
        """Return the cache of each row."""
        return self.parts or [own]


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


def begin_turn(cache: AdaptiveCache, new: list[int], said: list[int], max_new_tokens: int) -> None:
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
    before, rows = cache.turn, cache.batch_size
    pasts = before.pasts if before is not None else [take_past(cache, row) for row in range(rows)]
    lengths = [past.row.length + past.turn.steps + more for past, more in zip(pasts, new, strict=True)]
    check_room(cache.facts, max(lengths) + max_new_tokens, max_new_tokens)
    if before is None:
        _leave_tables(cache, pasts)
    rows_now = zip(pasts, new, said, lengths, strict=True)
    grown = tuple(past.grown(more, few, max(lengths) - length) for past, more, few, length in rows_now)
    cache.lay_out(grown, [past.turn for past in pasts], max_new_tokens)
    cache.turn = Turn(pasts, new)
    cache.turns += before is None
    if rows > 1:
        cache.turn.parts = [_part(cache, number) for number in range(rows)]
    cache.t, cache.seen = 0, max(lengths) - max(new)
    cache.update_step = cache.looped = cache.static = False
    if cache.recorder is not None:
        cache.recorder = Recorder(cache.rows[0], len(cache.layers))
        cache.turn.caches(cache)[0].recorder = cache.recorder


def begin_generated_turn(cache: AdaptiveCache, inputs: Any, max_new_tokens: int) -> None:
    """Compare a whole conversation with what a cache has seen, and begin the turn that feeds the rest (``AdaptiveCache.next_turn``)."""
    ids, mask = ids_and_mask(inputs)
    if inputs.get("pixel_values") is not None:
        raise ValueError("the pictures are in the cache already: leave them out of the inputs; new ones need a conversation of their own")
    if cache.looped or not cache.ids:
        raise ValueError(
            "this cache does not know the tokens that it has seen: run the conversation with model.generate, from input_ids on"
        )
    rows = find_rows(ids, mask, cache.facts.image_token_id)
    if len(rows) != cache.batch_size:
        raise ValueError(f"this cache holds {cache.batch_size} rows, the inputs have {len(rows)}: pass all of them, in their order")
    seen = torch.cat([some.to(ids.device) for some in cache.ids], dim=1)
    pads = [row.pad for row in (cache.rows if cache.turn is None else [past.row for past in cache.turn.pasts])]
    fed = []
    for number, (row, pad_before) in enumerate(zip(rows, pads, strict=True)):
        whole, known = ids[number, row.pad :], seen[number, pad_before:]
        count = min(len(whole), len(known))
        differ = torch.ne(whole[:count], known[:count]).nonzero()
        if len(differ) or len(whole) < len(known):
            at = int(differ[0]) if len(differ) else len(whole)
            raise ValueError(
                f"row {number} of the conversation differs at token {at} from what this cache has seen, {len(known)} tokens: keep prompt "
                "and the answer as they were (a row that ended before others has been fed padding: continue such rows one by one)"
            )
        fed.append(whole[len(known) :])
        if cache.facts.image_token_id is not None and bool(torch.eq(fed[-1], cache.facts.image_token_id).any()):
            raise ValueError(f"row {number} brings a new picture, which a later turn cannot: begin a conversation with all pictures")
    begin_turn(cache, [len(new) for new in fed], [1] * len(fed), max_new_tokens)
    assert cache.turn is not None
    cache.turn.ids = ids


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
    part.part, part.turn, part.turns = True, Turn([past], [cache.turn.new[row]]), cache.turns
    part.seen = cache.rows[row].pad + cache.rows[row].length - cache.turn.new[row]
    part.take_counts(cache, row)
    return part


def end_turn(cache: AdaptiveCache) -> None:
    """Complete the first pass of a later turn, and make the slot tables."""
    turn = cache.turn
    assert turn is not None
    cache.turn, cache.in_pass = None, False
    cache.seen = cache.rows[0].pad + cache.rows[0].length
    if not turn.parts:
        cache.open_tables()
        return
    held = sum(part.allocated_bytes for part in turn.parts)
    cache.peak_bytes = max(cache.peak_bytes, held + max(part.peak_bytes - part.allocated_bytes for part in turn.parts))
    for part in turn.parts:
        if part.turn is not None:
            end_turn(part)
    cache.merge(turn.parts)


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
    keys: torch.Tensor,
    values: torch.Tensor,
    image_scores: torch.Tensor | None,
    gained: torch.Tensor | None,
) -> None:
    """Lay a layer out anew after the new tokens' pass.

    Args:
        layer: of a cache of one row.
        held: what it held before.
        keys: ``[1, G, I + n + Q, D]``, held and new ones after RoPE.
        values: likewise.
        image_scores: ``[1, I]`` by the last query, None if they are not ranked.
        gained: ``[1, 1 or G, n + Q]``, what the window's tokens gained in this pass, None if nothing accumulates.
    """
    (bucket,) = layer.owner.buckets
    window, device = bucket.windows[layer.number], keys.device
    image, stored = held.image_idx.shape[1], held.token_idx.shape[2]
    new = keys.shape[2] - image - stored
    fresh = torch.arange(window.prompt - new, window.prompt, device=device).expand(*held.token_idx.shape[:2], new)
    tokens, sums = torch.cat([held.token_idx, fresh], dim=2), gained
    if gained is not None and held.sums is not None:
        sums = gained + pad(held.sums, (0, new))
    stay = _stay(window, tokens, sums)  # [1, 1 or G, start]
    free = window.capacity - window.start
    columns = torch.cat([torch.arange(image, device=device).expand(1, stay.shape[1], -1), image + pad(stay, (0, free))], dim=2)
    by_head = [_picked(states, columns) for states in (keys, values)]
    flat_keys, flat_values = (states.transpose(1, 2).contiguous().flatten(0, 1) for states in by_head)
    layer.flat = flat_keys, flat_values
    core, index, weights = layer.owner.policy.select(layer.number, bucket.shape), None, None
    if core is not None:
        assert image_scores is not None, "a policy that reads some image tokens ranks them"
        weights = bucket.cover.of(layer.number, held.image_idx, core=True)
        behind = image + torch.arange(window.capacity, device=device).expand(1, -1)
        index = torch.cat([best(lift(image_scores, weights), core), behind], dim=1)
    layer.kvs = [
        LayerKV(
            keys=flat_keys.view(1, -1, *flat_keys.shape[1:]),
            values=flat_values.view(1, -1, *flat_values.shape[1:]),
            image_idx=held.image_idx,
            token_idx=pad(tokens.gather(2, stay), (0, free), value=FREE),
            sums=None if sums is None else pad(sums.gather(2, stay), (0, free)),
            index=index,
            window=window,
            weights=weights,
        )
    ]


def _stay(window: WindowPlan, tokens: torch.Tensor, sums: torch.Tensor | None) -> torch.Tensor:
    """Return the places ``[1, 1 or G, start]``, ascending, of the tokens that stay where the weakest leave one after another."""
    count = tokens.shape[2]
    if window.start == count:
        return torch.arange(count, device=tokens.device).expand(tokens.shape)
    scores = tokens.double() if sums is None else sums  # without scores, the oldest leave
    safe = (tokens >= window.prompt - window.recent) | (tokens < window.sinks)
    return survivors(scores, safe, window.start)


def note_ids(cache: AdaptiveCache, ids: torch.Tensor | None) -> None:
    """Note the tokens ``[B, columns]`` of a pass that ``generate`` runs, for a later turn; None where they are not known."""
    if ids is None or cache.looped:
        cache.ids = None
    elif cache.turn is not None:
        cache.ids = None if cache.turn.ids is None else [cache.turn.ids]
    elif cache.ids is not None:
        cache.ids.append(ids)


def positions(cache: AdaptiveCache, length: int) -> torch.Tensor | None:
    """Return the positions ``[B, length]`` of the tokens that a pass feeds in a later turn; None where the model counts them itself."""
    if cache.turns == 1 or cache.looped or cache.ahead is None:
        return None
    ends = torch.tensor([[row.length + cache.t] for row in cache.rows], device=cache.ahead.device) + cache.ahead
    return (ends + torch.arange(-length, 0, device=ends.device)).clamp(min=0)
