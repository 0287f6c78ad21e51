"""CPU only: a slot table that keeps the core contiguous, so that a core step reads one slice without copying."""

from __future__ import annotations

import numpy as np
import torch

from avl.cache.ranking import among_best, lift
from avl.cache.slots import LayerKV, RowBucket, SlotTable


class ContiguousSlotTable(SlotTable):
    """A table whose core always fills the last image slots: tokens swap places whenever the core is re-selected.

    For torch's operations on a CPU, which would first copy scattered slots, at every step. Moving a few tokens every K steps is cheaper.
    """

    contiguous = True
    uncopied = "_held"

    def __init__(self, bucket: RowBucket, kvs: list[LayerKV], core: int) -> None:
        super().__init__(bucket, kvs, core)
        self.image_idx = torch.stack([kv.image_idx for kv in kvs])
        for place, kv in enumerate(kvs):
            kv.image_idx = self.image_idx[place]
        self.adopt(kvs)
        assert self.index is not None
        chosen = torch.zeros(self.image_idx.shape, dtype=torch.bool).scatter_(-1, self.index[..., :core], True)
        self._gather_up(chosen.numpy())
        self.index[..., :core] = torch.arange(self.image - core, self.image)

    def adopt(self, kvs: list[LayerKV]) -> None:
        # not the LayerKV objects: they refer to this table, and a reference cycle would keep the memory until the garbage collector runs
        self._held = []  # of every layer and row
        for kv in kvs:
            for row in range(self.bucket.b):
                held = [_by_slot(kv.keys[row]), _by_slot(kv.values[row]), kv.image_idx[row].numpy()]
                if self.weights is not None:
                    held.append(self.weights[kv.place, row].numpy())
                self._held.append(held)

    def choose_core(self) -> None:
        """Re-select the core as :meth:`SlotTable.choose_core` does; slots are unordered here, so ties are broken by token index."""
        assert self.image_scores is not None
        assert self.core is not None
        self._gather_up(among_best(lift(self.image_scores, self.weights), self.core, self.image_idx))

    def _gather_up(self, chosen: np.ndarray) -> None:
        """Swap the tokens of slots ``chosen [n, b, image]`` (bool) with those in the last image slots."""
        assert self.core is not None
        chosen = chosen.reshape(len(self._held), -1)
        first = self.image - self.core
        come, go = chosen[:, :first], ~chosen[:, first:]
        ends = come.sum(axis=-1).cumsum()  # in every layer and row, as many tokens come as go
        come, go = np.nonzero(come)[1], np.nonzero(go)[1] + first
        to, source = np.stack([go, come]), np.stack([come, go])
        start = 0
        for row, end in zip(self._held, ends.tolist(), strict=True):
            for held in row:
                held[to[:, start:end]] = held[source[:, start:end]]
            start = end


def _by_slot(stored: torch.Tensor) -> np.ndarray:
    """Return a numpy view of one row's keys or values with one item per slot: numpy has no bfloat16, and moves whole items fastest."""
    rows = stored.flatten(1).view(torch.uint8).numpy()
    return rows.view(f"V{rows.shape[1]}")[:, 0]
