"""Work on the model's own device, which need not be the current one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

import torch

from avl.kernels.launch import on_device

T = TypeVar("T")


def made_on(device: torch.device, events: Generator[T, None, None]) -> Iterator[T]:
    """Yield ``events``, with ``device`` current while each is made and the caller's device current in between.

    Streams, events and graphs are made on the current device unless they are told another; the caller's thread keeps its own.
    """
    try:
        while True:
            with on_device(device):
                try:
                    event = next(events)
                except StopIteration:
                    return
            yield event
    finally:
        with on_device(device):
            events.close()
