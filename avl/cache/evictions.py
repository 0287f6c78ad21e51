"""Which text tokens each layer stores of one row, followed from step to step; for the page, decoding does not need it.

After the prompt all slots are read once. From then on a step says only which slots it freed: what lay in them is known on the host.

Shapes: n layers of a table, G key-value heads (1 where they share tokens), C slots of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avl.cache.inspect import find
from avl.cache.readback import Readback

if TYPE_CHECKING:
    import torch

    from avl.cache.cache import AdaptiveCache
    from avl.cache.slots import SlotTable

Freed = list[Readback | None]
"""Per table the slots ``[n, 1 or G]`` that a step freed, None where it freed none."""


class TextTokens:
    """The text tokens of one row, numbered: the prompt's text in order, then what was generated (token k is number ``n_text + k``).

    A layer stores a token while any of its key-value heads does.

    Args:
        cache: with its prompt done.
        row: which row.
    """

    def __init__(self, cache: AdaptiveCache, row: int = 0) -> None:
        place, number = find(cache, row)
        bucket = cache.buckets[place]
        n_text, steps = bucket.row.n_text, cache.max_new_tokens
        known = np.arange(n_text)
        if not cache.policy.pins_image:  # the window is everything then
            known = np.full(bucket.row.length, -1)
            known[list(bucket.row.text)] = np.arange(n_text)
        numbers = np.concatenate([known, n_text + np.arange(steps)])
        layers: dict[int, list[tuple[int, int]]] = {}
        for index, layer in enumerate(cache.layers):
            layers.setdefault(id(layer.kvs[place].table), []).append((layer.kvs[place].place, index))
        tables = [table for table in cache.tables if table.bucket is bucket]
        self._n_text, self._n_layers = n_text, len(cache.layers)
        self._followed = [_Followed(table, number, numbers, [index for _, index in sorted(layers[id(table)])]) for table in tables]

    @property
    def prompt(self) -> list[list[int]] | None:
        """Per layer, the text tokens of the prompt that it stores after it, ascending; None where every layer stores all. Waits."""
        held: list[list[int]] = [[] for _ in range(self._n_layers)]
        for table in self._followed:
            for layer, row in zip(table.layers, table.holders, strict=True):
                held[layer] = np.flatnonzero(row[: self._n_text]).tolist()
        return None if all(len(tokens) == self._n_text for tokens in held) else held

    def freed(self, t: int) -> Freed | None:
        """Return what step ``t`` freed, to be called when the step is queued, and does not wait; None if no token can have left."""
        found = [table.freed(t) for table in self._followed]
        return found if any(found) else None

    def follow(self, t: int, freed: Freed | None) -> list[list[int]] | None:
        """Take step ``t`` in, each step once and in order. Return the text tokens that each layer lost, ascending; None if none did."""
        gone: list[list[int]] = [[] for _ in range(self._n_layers)]
        for number, table in enumerate(self._followed):
            found = None if freed is None else freed[number]
            for layer, token in table.follow(t, None if found is None else found.get().numpy()):
                gone[layer].append(token)
        return [sorted(tokens) for tokens in gone] if any(gone) else None


@dataclass
class _Followed:
    """The windows of one table: which token is in which slot, and how many heads hold each token."""

    table: SlotTable
    row: int
    numbers: np.ndarray  # of the window's tokens, -1 for image tokens
    layers: list[int]  # of the model, in the order of the table

    def __post_init__(self) -> None:
        window = self.table.window
        self._slots = Readback(self.table.token_idx[:, self.row])
        self._size, self._start, self._prompt = window.size, window.start, window.prompt
        self._tokens: np.ndarray | None = None
        self._holders: np.ndarray | None = None
        self._next: np.ndarray | int = window.start

    @property
    def holders(self) -> np.ndarray:
        """``[n, text tokens]``, how many heads hold each text token."""
        if self._holders is None:
            # the index in a free slot is larger than any token's
            tokens = np.minimum(self._slots.get().numpy(), len(self.numbers)).astype(np.int32)
            number = np.append(self.numbers, -1)[tokens]
            layer, head, slot = np.nonzero(number >= 0)
            held = np.zeros((len(tokens), self.numbers.max(initial=-1) + 1), np.int32)
            np.add.at(held, (layer, number[layer, head, slot]), 1)
            self._tokens, self._holders = tokens, held
            self._layer, self._head = np.arange(len(tokens))[:, None], np.arange(tokens.shape[1])
        return self._holders

    def _full(self, t: int) -> bool:
        return self._size is not None and self._start + t > self._size

    def freed(self, t: int) -> Readback | None:
        slot: int | torch.Tensor = self.table.slot
        return None if isinstance(slot, int) or not self._full(t) else Readback(slot[:, self.row])

    def follow(self, t: int, freed: np.ndarray | None) -> list[tuple[int, int]]:
        """Return the pairs (layer of the model, text token) that step ``t`` took away."""
        holders = self.holders
        assert self._tokens is not None
        newest = self._prompt + t - 1
        self._tokens[self._layer, self._head, self._next] = newest
        holders[:, self.numbers[newest]] = self._tokens.shape[1]
        if freed is None:
            assert not self._full(t), "a window over its size gives up a token"
            self._next = self._start + t
            return []
        self._next = freed
        number = self.numbers[self._tokens[self._layer, self._head, freed]]
        layer, head = np.nonzero(number >= 0)
        lost = number[layer, head]
        np.subtract.at(holders, (layer, lost), 1)
        pairs = sorted({(int(at), int(token)) for at, token in zip(layer, lost, strict=True) if holders[at, token] == 0})
        return [(self.layers[at], token) for at, token in pairs]
