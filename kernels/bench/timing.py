"""Times of short calls: CUDA graph replays or a monotonic clock, in alternating order, and the bandwidth of the same run."""

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[], Tensor]


class Timer:
    """Times a round of calls, each on its own copy of the data: CUDA graph replays on a GPU, a monotonic clock on a CPU."""

    def __init__(self, calls: list[Call], device: torch.device, target_s: float) -> None:
        self.calls, self.cuda = calls, device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        for call in calls:
            call()
        if self.cuda:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for call in calls:
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for call in calls:
                    call()
        self.rounds = 1
        self.rounds = max(1, math.ceil(target_s / max(self.seconds() * len(calls), 1e-9)))

    def round(self) -> None:
        """Run every call once."""
        if self.graph is not None:
            self.graph.replay()
        else:
            for call in self.calls:
                call()

    def seconds(self) -> float:
        """Return the seconds per call, over `rounds` rounds."""
        self.round()  # so that the clock starts in the state in which a round ends
        if self.cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(self.rounds):
                self.round()
            end.record()
            end.synchronize()
            total = start.elapsed_time(end) / 1e3
        else:
            begin = time.perf_counter()
            for _ in range(self.rounds):
                self.round()
            total = time.perf_counter() - begin
        return total / self.rounds / len(self.calls)


def alternate(timers: dict[str, Timer], repeats: int) -> dict[str, list[float]]:
    """Return the microseconds per call of every timer, `repeats` times, in an order that is reversed every time."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    for _ in range(repeats):
        for name in names:
            times[name].append(timers[name].seconds() * 1e6)
        names.reverse()
    return times


def measure_bandwidth(device: torch.device, repeats: int, target_s: float, size: int | None = None) -> dict[str, float]:
    """Return GB/s of copy (2 bytes moved per byte copied), triad (3) and read (1), on random float32 data.

    Args:
        device: where.
        repeats: of each.
        target_s: about how long one of them takes.
        size: bytes of each array; by default far more than a GPU's L2 cache holds.
    """
    count = size // 4 if size is not None else (1 << 28) if device.type == "cuda" else (1 << 22)
    source, other = torch.randn(count, device=device), torch.randn(count, device=device)
    target = torch.empty_like(source)
    probes: dict[str, tuple[Call, int]] = {
        "copy": (lambda: target.copy_(source), 2),
        "triad": (lambda: torch.add(source, other, alpha=3.0, out=target), 3),
        "read": (lambda: source.sum(), 1),
    }
    times = alternate({name: Timer([call], device, target_s) for name, (call, _) in probes.items()}, repeats)
    size = count * source.element_size()
    return {name: probes[name][1] * size / statistics.median(times[name]) / 1e3 for name in probes}


def one_line(error: Exception) -> str:
    """Return the kind and the first line of an error, at most 100 characters."""
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:100]
