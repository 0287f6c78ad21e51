"""Rows of a cache that run apart and come together again, and the slot tables that are made once all layers hold what they keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from avl.cache import joined
from avl.cache.contiguous import ContiguousSlotTable
from avl.cache.slots import LayerKV, SlotTable, StaticSlotTable
from avl.kernels import resolve_impl

if TYPE_CHECKING:
    from avl.cache.cache import AdaptiveCache


def make_tables(cache: AdaptiveCache) -> tuple[list[SlotTable], list[joined.JoinedRows]]:
    """Return the slot tables of all layers, and what joins them where steps run rows of all buckets together."""
    device = cache.layers[0].kvs[0].keys.device
    if len(cache.buckets) > 1 and not cache.part and cache.recorder is None and joined.joins(device):
        rows = joined.make_tables(cache.layers, cache.static)
        return [table for some in rows for table in some.tables], rows
    tables: list[SlotTable] = []
    for place, bucket in enumerate(cache.buckets):
        alike: dict[Any, list[LayerKV]] = {}
        for layer in cache.layers:
            kv = layer.kvs[place]
            alike.setdefault((kv.keys.device, kv.image, kv.core, kv.window), []).append(kv)
        for (device, _, core, _), kvs in alike.items():
            if cache.static:
                tables.append(StaticSlotTable(bucket, kvs, core))
            elif core is not None and not cache.part and device.type == "cpu" and not in_place(kvs[0]):
                tables.append(ContiguousSlotTable(bucket, kvs, core))
            else:
                tables.append(SlotTable(bucket, kvs, core))
    return tables, []


def in_place(kv: LayerKV) -> bool:
    """Return whether attention reads scattered slots where they lie; torch's operations copy them first."""
    return resolve_impl(kv.keys.device, dtype=kv.keys.dtype, head_size=kv.keys.shape[-1]) != "reference"


def merge(cache: AdaptiveCache, chunks: list[AdaptiveCache]) -> None:
    """Take over the keys and values of all chunks, layer by layer, so that only one layer is ever held twice.

    Args:
        cache: of all rows.
        chunks: of some rows each, in row order, each with its first pass done. They are empty afterwards.
    """
    held, first = 0, 0
    for chunk in chunks:
        cache.peak_bytes = max(cache.peak_bytes, held + chunk.peak_bytes)
        held += chunk.allocated_bytes
        cache.pruned |= {first + row: tokens for row, tokens in chunk.pruned.items()}
        first += chunk.batch_size
    for number, layer in enumerate(cache.layers):
        layer.merge([chunk.layers[number] for chunk in chunks])
        cache.peak_bytes = max(cache.peak_bytes, held + sum(flat.nbytes for flat in layer.flat or ()))
    cache.take_over(chunks)
    cache.open_tables()
