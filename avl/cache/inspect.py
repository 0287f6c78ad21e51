"""Queries about which tokens a cache stores and reads, for the page, the recorder and tests; decoding does not need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from avl.cache.readback import Readback

if TYPE_CHECKING:
    from avl.cache.cache import AdaptiveCache
    from avl.cache.slots import LayerKV

ImageSets = list[tuple[list[int], list[int]]]
"""Per layer: image tokens stored, and image tokens that a core step reads."""


def find(cache: AdaptiveCache, row: int) -> tuple[int, int]:
    """Return the number of the bucket that holds ``row``, and the row's index in it."""
    for number, bucket in enumerate(cache.buckets):
        if row in bucket.rows:
            return number, bucket.rows.index(row)
    raise ValueError(f"row {row} is out of range: this cache has {cache.batch_size} rows")


class ImageSetsLater:
    """A snapshot of the image tokens of one row that every layer stores and reads; only :meth:`get` waits for the device."""

    def __init__(self, cache: AdaptiveCache, row: int) -> None:
        place, self._place = find(cache, row)
        self._bucket = cache.buckets[place]
        self._kvs = [layer.kvs[place] for layer in cache.layers]
        self._pins_image = cache.policy.pins_image
        tables = [table for table in cache.tables if table.bucket is self._bucket]
        copied: dict[int, Readback] = {}
        for table in tables:
            if not self._pins_image:
                copied[id(table)] = Readback(table.token_idx[:, self._place])
            elif table.index is not None:
                copied[id(table)] = Readback(table.index[:, self._place, : table.core])
        self._copied = copied
        self._stored: list[Readback] = []
        if self._pins_image:
            # the stored image tokens are fixed after the prompt; only a contiguous table reorders them
            if row not in cache.stored_images or any(table.contiguous for table in tables):
                cache.stored_images[row] = [Readback(kv.image_idx[self._place]) for kv in self._kvs]
            self._stored = cache.stored_images[row]

    def get(self) -> ImageSets:
        """Return (stored, read at core steps) per layer, both ascending."""
        if not self._pins_image:
            image = {position: number for number, position in enumerate(self._bucket.row.image)}
            sets = []
            for kv in self._kvs:
                held = set(self._copied[id(kv.table)].get()[kv.place].flatten().tolist())
                stored = sorted(image[position] for position in held if position in image)
                sets.append((stored, stored))
            return sets
        sets = []
        for kv, readback in zip(self._kvs, self._stored, strict=True):
            stored = read = readback.get().tolist()
            if kv.index is not None:
                read = [stored[slot] for slot in self._copied[id(kv.table)].get()[kv.place].tolist()]
            sets.append((sorted(stored), sorted(read)))
        return sets


def text_positions(cache: AdaptiveCache, layer: int, row: int) -> list[int]:
    """Return the positions of the text tokens that ``layer`` stores, ascending, from the row's first real token. Waits for the device."""
    place, number = find(cache, row)
    bucket, kv = cache.buckets[place], cache.layers[layer].kvs[place]
    known = bucket.row.text if cache.policy.pins_image else tuple(range(bucket.row.length))
    positions = known + tuple(range(bucket.row.length, bucket.row.length + cache.t))
    held = {token for token in kv.token_idx[number].flatten().tolist() if 0 <= token < len(positions)}
    return sorted({positions[token] for token in held} - set(bucket.row.image))


def positions_read(cache: AdaptiveCache, kv: LayerKV, update: bool) -> torch.Tensor:
    """Return the positions of row 0's tokens that a step reads, in reading order: ``[n]``, or ``[G, n]`` per key-value head."""
    bucket = cache.buckets[0]
    row, device = bucket.row, kv.token_idx.device
    token_idx = kv.token_idx[0, :, : kv.count]
    prompt = torch.tensor(row.text if cache.policy.pins_image else range(row.length), device=device)
    known = prompt[token_idx.clamp(max=kv.window.prompt - 1)]
    window = torch.where(token_idx < kv.window.prompt, known, token_idx - kv.window.prompt + row.length)
    image_idx = kv.image_idx[0] if update or kv.index is None else kv.image_idx[0, kv.index[0, : kv.core]]
    image = torch.tensor(row.image, dtype=torch.int64, device=device)[image_idx].expand(window.shape[0], -1)
    return torch.cat([image, window], dim=1).squeeze(0)


def positions_held(cache: AdaptiveCache, image_idx: torch.Tensor, token_idx: torch.Tensor, fed: torch.Tensor) -> torch.Tensor:
    """Return the positions ``[1 or G, I + n + Q]`` of what a later turn's pass reads of row 0.

    Args:
        cache: of one row.
        image_idx: ``[I]`` image tokens stored.
        token_idx: ``[1 or G, n]`` tokens of the window.
        fed: ``[Q]`` positions of the new tokens in the hidden states.
    """
    row, device = cache.buckets[0].row, token_idx.device
    known = torch.tensor(row.text if cache.policy.pins_image else range(row.length), device=device)
    image = torch.tensor(row.image, dtype=torch.int64, device=device)[image_idx].expand(len(token_idx), -1)
    return torch.cat([image, known[token_idx], fed.expand(len(token_idx), -1)], dim=1)
