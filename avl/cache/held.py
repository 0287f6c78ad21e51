"""What a row holds between two turns of a conversation, and a turn whose first pass has not run yet.

Shapes: G key-value heads, D head size, I image tokens stored, n tokens of the window, L columns, m of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from avl.cache.layout import Row
from avl.cache.prefill_state import PrefillState
from avl.cache.slots import LayerKV
from avl.policies.base import PastTurn

if TYPE_CHECKING:
    from avl.cache.cache import AdaptiveCache


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
        keys, values = (picked(stored[one].transpose(1, 2), slots) for stored in (kv.keys, kv.values))
        return cls(keys, values, Places(image_idx, token_idx, None if kv.sums is None else kv.sums[one].gather(2, by_token)))

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes


def picked(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return columns ``[1, 1 or G, m]`` of ``states [1, G, L, D]``, a copy."""
    heads, size = states.shape[1], states.shape[3]
    return states.gather(2, columns.expand(-1, heads, -1)[..., None].expand(-1, -1, -1, size))


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

    def grown(self, new: int, said: int, pad: int, image: Sequence[int]) -> Row:
        """Return the row's layout with the last answer's fed tokens and ``new`` ones behind them.

        Args:
            new: number of new tokens.
            said: how many of them, counted from the first, belong to the last answer.
            pad: left padding.
            image: those of them that are image tokens, from 0.
        """
        first = self.row.length
        begin, end = first + self.turn.steps, first + self.turn.steps + said
        answers = (*self.row.answers, *([(first, end)] if end > first else []))
        return Row(pad, begin + new, (*self.row.image, *(begin + place for place in image)), answers)


@dataclass
class Turn:
    """A turn whose first pass has not run yet.

    Attributes:
        pasts: of every row.
        new: tokens that each row is fed.
        image: those of them that are image tokens, from 0, of each row.
        parts: a cache for each row, which :meth:`AdaptiveCache.merge` takes back; empty where the only row stays in its cache.
        ids: ``[B, L]`` of the whole conversation, left-padded, which the new tokens end; None where the caller has not told them.
        where: positions ``[axes, B, columns]`` of the new tokens, where they are not simply counted on; None where they are.
        ahead: ``[B, 1]``, what the pictures add to ``AdaptiveCache.ahead``; 0 where positions are counted on.
    """

    pasts: list[Past]
    new: list[int]
    image: list[tuple[int, ...]]
    parts: list[AdaptiveCache] = field(default_factory=list)
    ids: torch.Tensor | None = None
    where: torch.Tensor | None = None
    ahead: torch.Tensor | int = 0

    @property
    def pictures(self) -> bool:
        """Whether some row brings pictures."""
        return any(self.image)

    def prefill(self, pins_image: bool) -> PrefillState:
        """Return the state of the pass: the new tokens of each row as a prompt."""
        fed = zip(self.new, self.image, strict=True)
        rows = tuple(Row(self.width - new, new, image) for new, image in fed)
        before = [past.row.n_image for past in self.pasts]
        return PrefillState(rows, [(number,) for number in range(len(rows))], pins_image, before)

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
