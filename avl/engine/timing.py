"""Timing of work on a device: CUDA events on a GPU, a monotonic clock elsewhere."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch


class Span:
    """Duration of queued work on the device, from its creation to :meth:`end`, measured without waiting for it.

    Uses CUDA events on one GPU, a monotonic clock elsewhere. Work on several GPUs is waited for, because events of two devices cannot be
    compared.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._gpus = [device for device in devices if device.type == "cuda"]
        self._marks = [self._mark()]

    def _mark(self) -> Any:
        if len(self._gpus) == 1:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._gpus[0]))
            return event
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
        return time.perf_counter()

    def end(self) -> None:
        """Mark the end: all of the work has been queued."""
        self._marks.append(self._mark())

    def ms(self) -> float:
        """Return the milliseconds from beginning to end on the device; waits only for the end."""
        first, last = self._marks
        if len(self._gpus) != 1:
            return (last - first) * 1000
        last.synchronize()
        return first.elapsed_time(last)


class Clock:
    """Stopwatch for work on devices that waits until the work is done."""

    def __init__(self, *devices: torch.device) -> None:
        self._devices = devices

    def start(self) -> None:
        """Start, after waiting for earlier work, so that it does not count."""
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        self._span = Span(*self._devices)

    def stop(self) -> float:
        """Wait until the work is done and return the milliseconds since :meth:`start`."""
        self._span.end()
        return self._span.ms()


class Marks:
    """Milliseconds between marks. On a GPU the marks are events in the stream, so marking waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def add(self) -> None:
        """Mark this point in the device's work."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Return the milliseconds from each mark to the next."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
            return [first.elapsed_time(second) for first, second in itertools.pairwise(self._marks)]
        return [1e3 * (second - first) for first, second in itertools.pairwise(self._marks)]
