"""Times of work on a device: CUDA events on a GPU, a monotonic clock elsewhere."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch


class Span:
    """Times one piece of work that nobody waits for: from the moment the span is made, behind what is queued before it. Milliseconds.

    CUDA events on one GPU, a monotonic clock elsewhere. Work that is spread over several GPUs is waited for: events of two devices cannot
    be compared.
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
        """The work has been queued."""
        self._marks.append(self._mark())

    def ms(self) -> float:
        """From beginning to end on the device; waits for the end alone."""
        first, last = self._marks
        if len(self._gpus) != 1:
            return (last - first) * 1000
        last.synchronize()
        return first.elapsed_time(last)


class Clock:
    """Times one piece of work that is waited for, as a :class:`Span` does."""

    def __init__(self, *devices: torch.device) -> None:
        self._devices = devices

    def start(self) -> None:
        """Begin; earlier work on the device is waited for, so that it is not counted."""
        for device in self._devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        self._span = Span(*self._devices)

    def stop(self) -> float:
        """Milliseconds since :meth:`start`, when the work is really done."""
        self._span.end()
        return self._span.ms()


class Marks:
    """Times between marks in milliseconds. On a GPU the marks are events in the stream: nothing waits until all steps are queued."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def add(self) -> None:
        """Mark this moment of the device's work."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Milliseconds from each mark to the next."""
        if self._cuda:
            torch.cuda.synchronize()
            return [first.elapsed_time(second) for first, second in itertools.pairwise(self._marks)]
        return [1e3 * (second - first) for first, second in itertools.pairwise(self._marks)]
