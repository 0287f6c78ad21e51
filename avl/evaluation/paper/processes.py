"""Several processes that fill cells together: ``torchrun`` or ``accelerate launch`` starts them, on one machine or more."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=7)
"""A process waits so long for the others: one may have the longer answers."""


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: its number.
        world: how many there are.
        local: its number on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def join(cls) -> Processes:
        """Return this process, after it has met the others where a launcher started several.

        They exchange answers, not tensors, and so meet on gloo, which needs no GPU.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        return cls(torch.distributed.get_rank(), world, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def main(self) -> bool:
        """Whether it is the one that reports."""
        return self.rank == 0

    def share(self, numbers: range) -> range:
        """Return this process's part of the samples."""
        return numbers[self.rank :: self.world]

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gives, by rank; waits for all."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def fetched(self, fetch: Callable[[], T]) -> T:
        """Return what ``fetch`` gives. One process of each machine calls it first, and the others find what it has downloaded."""
        found = fetch() if self.local == 0 else None
        self.gather(None)
        return fetch() if found is None else found

    def device(self, asked: str, device_map: str | None) -> str:
        """Return the device of this process's model.

        Args:
            asked: as ``avl.load`` takes it; several processes on a machine take a GPU each.
            device_map: as ``avl.load`` takes it.

        Raises:
            ValueError: several processes cannot be served as asked.
        """
        if self.world == 1:
            return asked
        if device_map is not None:
            raise ValueError("--device-map spreads one model over all GPUs, and each of several processes loads its own: start one process")
        if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
            return "cpu"
        if asked not in ("auto", "cuda"):
            raise ValueError(f"--device {asked} would put the models of {self.world} processes on one device: leave it out")
        if self.local >= torch.cuda.device_count():
            raise ValueError(f"there are {torch.cuda.device_count()} GPUs for more processes on this machine: start one for each GPU")
        return f"cuda:{self.local}"

    def leave(self) -> None:
        """Say goodbye to the others."""
        if self.world > 1:
            torch.distributed.destroy_process_group()
