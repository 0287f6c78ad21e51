"""What a cache holds and reads, in tokens and bytes."""

from __future__ import annotations

from transformers.cache_utils import Cache

from avl.cache.held import Turn
from avl.cache.layer import AdaptiveLayer
from avl.cache.slots import RowBucket


class Counted(Cache):
    """The totals of a cache; :class:`avl.cache.cache.AdaptiveCache` describes the attributes."""

    layers: list[AdaptiveLayer]  # type: ignore[assignment]
    buckets: list[RowBucket]
    turn: Turn | None
    t: int
    _read: list[int]
    _token_bytes: int

    @property
    def stored_tokens(self) -> list[int]:
        """Tokens stored now per layer, summed over rows (one token: the keys and values of all heads)."""
        pairs = (zip(self.buckets, layer.kvs, strict=False) for layer in self.layers)  # no KV before the layer's prompt has run
        return [sum(bucket.b * (kv.image + kv.count) for bucket, kv in alike) for alike in pairs]

    @property
    def read_tokens(self) -> list[int]:
        """Tokens read by the last step's attention per layer, summed over rows; after prefill, those visible to its last query."""
        if self.t == 0:
            return list(self._read)
        return [sum(kv.table.bucket.b * kv.table.read for kv in layer.kvs if kv.table) for layer in self.layers]

    @property
    def stored_bytes(self) -> int:
        """Bytes of keys and values stored now, all layers and rows; excludes free slots (see ``allocated_bytes``)."""
        return sum(self.stored_tokens) * self._token_bytes

    @property
    def read_bytes(self) -> int:
        """Bytes of keys and values read by the last step's attention, all layers and rows."""
        return sum(self.read_tokens) * self._token_bytes

    @property
    def allocated_bytes(self) -> int:
        """Bytes allocated for keys and values: ``stored_bytes`` plus the windows' free slots."""
        stored = sum(flat.untyped_storage().nbytes() for layer in self.layers for flat in layer.flat or ())
        return stored + (0 if self.turn is None else self.turn.nbytes)
