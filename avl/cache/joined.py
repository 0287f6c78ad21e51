"""Rows of different layouts in one step: one launch per layer stores the new tokens of all rows, and one attends.

Each bucket of rows keeps its slot tables, which decide what is stored and read (avl/cache/slots.py): work for all layers at once. What is
done in every layer, however many buckets there are, reads what this file makes of those tables: per row, the slots to read in the layer's
flat storage, how many of them are valid, and where the new token goes. Nothing is padded but indices, and nothing waits for the device.

Shapes: B rows, n layers of a group, G key-value heads, C slots of a row's window, S slots of all rows in a layer's storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from avl.cache.slots import SlotTable, StaticSlotTable
from avl.kernels import core_attention

if TYPE_CHECKING:
    from avl.cache.layer import AdaptiveLayer

_NO_LIMIT = 1 << 62


def joins(device: torch.device) -> bool:
    """Return whether rows of different layouts run together: on a GPU, where launches take longer than copies of scattered slots."""
    return device.type == "cuda"


class JoinedRows:
    """All rows of a batch in a group of layers whose tables are alike, bucket by bucket.

    Attributes:
        tables: of the group's layers, one per bucket.
        place: ``[n, B, 1 or G]``, where each layer's storage takes the step's token.
    """

    def __init__(self, layers: list[AdaptiveLayer], tables: list[SlotTable]) -> None:
        self.tables = tables
        kvs, device, n = layers[0].kvs, tables[0].token_idx.device, len(layers)
        self._rows = [table.bucket.index(device) for table in tables]
        batch = sum(table.bucket.b for table in tables)
        first, lead, image, size, count = ([0] * batch for _ in range(5))
        start = 0
        for table, kv in zip(tables, kvs, strict=True):
            slots = kv.keys.shape[1]
            for number, row in enumerate(table.bucket.rows):
                first[row], image[row], count[row] = start + number * slots, table.image, table.window.start
                lead[row] = table.image if table.core is None else table.core
                size[row] = _NO_LIMIT if table.window.size is None else table.window.size
            start += table.bucket.b * slots
        self._first, self._image, self._lead, self._size, self._count = torch.tensor([first, image, lead, size, count], device=device)
        self._core = tables[0].core is not None
        capacity = max(table.window.capacity for table in tables)
        self._per_head = tables[0].window.observation is not None and tables[0].window.observation.heads == "kv"
        heads = max(table.token_idx.shape[2] for table in tables)
        self._slot = torch.zeros(n, batch, heads, dtype=torch.int64, device=device)
        self.place = self._slot
        ends = torch.tensor([last - 1 for last in _ends(first, start)], device=device)
        wide = torch.arange(max(image) + capacity, device=device)
        self._everything = torch.minimum(self._first[:, None] + wide, ends[:, None]).int()  # half the bytes to read at every step
        self._chosen = self._everything[:, : max(lead) + capacity].repeat(n, 1, 1) if self._core else None
        self._take_cores()
        read = self._everything.shape[1], max(lead) + capacity
        window = torch.arange(capacity, device=device)
        # columns that hold the scores of the window, at an update step and at a core step; those behind a row's last are not asked for
        self._window = [(c[:, None, None] + window).clamp(max=n - 1) for c, n in zip((self._image, self._lead), read, strict=True)]
        sums = tables[0].sums
        self._gained = None if sums is None else sums.new_zeros(n, batch, sums.shape[2], capacity)
        scores = tables[0].image_scores
        self._seen = None if scores is None else scores.new_zeros(n, batch, max(image))
        self._length = self._count
        self._update = False

    def state(self) -> list[torch.Tensor]:
        """Return every tensor that a step changes and a later one reads, those of the tables aside."""
        return [self._count, *([] if self._chosen is None else [self._chosen])]

    def enter(self, update: bool) -> None:
        """Take over where the tables have put the step's token, and count it."""
        self._update = update or not self._core
        for rows, table in zip(self._rows, self.tables, strict=True):
            if isinstance(table.slot, int):
                self._slot.index_fill_(1, rows, table.slot)
            else:
                self._slot.index_copy_(1, rows, table.slot.expand(-1, -1, self._slot.shape[2]))
        self.place = self._slot + (self._first + self._image)[:, None]
        torch.minimum(self._count, self._size, out=self._count)
        self._count += 1
        self._length = self._count + (self._image if self._update else self._lead)

    def attend(self, number: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """Attend with queries ``[B, H, 1, D]`` to what the ``number``-th layer of the group reads; note the scores that its tables want.

        Args:
            number: of the layer in the group.
            query: after RoPE.
            keys: storage of the layer ``[S, G, D]``.
            values: likewise.
            scale: factor of the logits.
        """
        batch, size = len(query), keys.shape[1:]
        by_head = [flat.transpose(0, 1).expand(batch, size[0], len(flat), size[1]) for flat in (keys, values)]
        index = self._everything
        if not self._update:
            assert self._chosen is not None
            index = self._chosen[number]
        seen = self._seen if self._update else None
        wanted: bool | tuple[int, int] = self._gained is not None
        if seen is not None and not wanted:
            wanted = 0, seen.shape[2]
        out, scores = core_attention(
            query, by_head[0], by_head[1], index, self._length, scale=scale, scores=wanted, group_scores=self._per_head, validate=False
        )
        if scores is not None:
            self._note(number, scores, seen)
        return out

    def _note(self, number: int, scores: torch.Tensor, seen: torch.Tensor | None) -> None:
        """Keep scores ``[B, columns]`` or ``[B, G, columns]`` of image and window, which begins elsewhere in every row."""
        if seen is not None:
            seen[number].copy_(scores[..., : seen.shape[2]])
        if self._gained is not None:
            window = self._window[0 if self._update else 1]
            scores = scores if scores.dim() == 3 else scores[:, None]
            torch.gather(scores, 2, window.expand(-1, scores.shape[1], -1), out=self._gained[number])

    def leave(self) -> None:
        """Hand the step's scores to the tables, before they evict."""
        for rows, table in zip(self._rows, self.tables, strict=True):
            if self._gained is not None and table.sums is not None:
                table.sums += self._gained.index_select(1, rows)[..., : table.sums.shape[-1]]
            if self._seen is not None and table.image_scores is not None and self._update:
                table.image_scores.copy_(self._seen.index_select(1, rows)[..., : table.image])

    def left(self) -> None:
        """Take over the cores that the tables have chosen after an update step."""
        if self._core and self._update:
            self._take_cores()

    def _take_cores(self) -> None:
        for rows, table in zip(self._rows, self.tables, strict=True):
            if self._chosen is not None and table.index is not None:
                chosen = (table.index + self._first.index_select(0, rows)[:, None]).int()
                self._chosen[..., : chosen.shape[-1]].index_copy_(1, rows, chosen)


def _ends(first: list[int], stop: int) -> list[int]:
    """Return where the slots of each row end that begin at ``first``."""
    following = dict(zip(sorted(first), [*sorted(first)[1:], stop], strict=True))
    return [following[one] for one in first]


def make_tables(layers: list[AdaptiveLayer], static: bool) -> list[JoinedRows]:
    """Make the slot tables of all buckets, of layers that are alike in every bucket, and join them."""
    alike: dict[object, list[AdaptiveLayer]] = {}
    for layer in layers:
        kinds = tuple((kv.keys.device, kv.image, kv.core, kv.window) for kv in layer.kvs)
        alike.setdefault(kinds, []).append(layer)
    joined = []
    for group in alike.values():
        tables = []
        for place, kv in enumerate(group[0].kvs):
            kind = StaticSlotTable if static else SlotTable
            tables.append(kind(group[0].owner.buckets[place], [layer.kvs[place] for layer in group], kv.core))
        joined.append(JoinedRows(group, tables))
        for number, layer in enumerate(group):
            layer.joined = joined[-1], number
    return joined
