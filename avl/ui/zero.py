"""Hugging Face's ZeroGPU: every run in a forked process that holds a GPU for the seconds that were asked for.

The page's worker thread stays as it is: what it runs here is a :class:`ZeroGPU`, which reads the events of such a process. So the queue,
Stop, the programs' endpoints, the list of runs and pages that are loaded again work as on a GPU of one's own.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import os
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from typing import Any

import psutil

from avl import trace
from avl.engine.failures import device_lost
from avl.engine.request import GenerationRequest
from avl.ui.durations import SPARE_SECONDS, Durations, Need
from avl.ui.errors import kind, sentence
from avl.ui.queue import Race

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # between two looks at Stop while nothing comes
PATIENCE_SECONDS = 15.0  # for a process that was told to stop, and says nothing
DIED = "ZeroGPU ended this run's process in the middle of it: run it again."
USED_UP = "This run used up the {seconds} s of GPU that it had asked for. The next one asks for more: run it again."
LEFT = "The page was closed or loaded again while ZeroGPU looked for a free GPU: run it again."


@dataclass(frozen=True)
class Worker:
    """What a process tells of itself before a run.

    Attributes:
        start_seconds: since its fork, the model's way to the GPU included; 0 where it has run before.
        warm_seconds: what its warm-up took; None before that.
    """

    start_seconds: float = 0.0
    warm_seconds: float | None = None


class ZeroGPU:
    """Runs requests on ZeroGPU: a ``Race`` for the page's worker thread, which runs it in the context of the visitor's call.

    Nothing here touches CUDA in the process that serves. Each new process warms the model up and checks the kernels for itself.

    Args:
        race: runs a request where the GPU is.
        gpu: ``spaces.GPU``.
        warm_up: what a new process does first; takes an event that tells it to end.
    """

    def __init__(self, race: Race, gpu: Callable[..., Any], warm_up: Callable[[threading.Event], None] | None = None) -> None:
        self._durations = Durations()
        self._numbers = itertools.count(1)
        # the last run that was told to end; shared with all forks, without a lock that a killed one could take along
        self._stopped = RawValue("q", 0)
        self._run = gpu(duration=lambda number, request, seconds: seconds)(_work(race, warm_up, self._stopped))

    def __call__(self, request: GenerationRequest, stop: threading.Event) -> Iterator[trace.Event]:
        """Run a request and yield its events; ends early where ``stop`` is set.

        Raises:
            ValueError: it needs more seconds than may be asked for; one sentence.
        """
        return self._events(request, stop, self._durations.need(request))

    def _events(self, request: GenerationRequest, stop: threading.Event, need: Need) -> Iterator[trace.Event]:
        number, told = next(self._numbers), list[trace.Event]()
        watch, used_up = _Watch(need.asked), False
        reader = _Reader(self._run(number, request, need.asked))
        try:
            for item in reader:
                if isinstance(item, Worker):
                    watch.hear(item)
                elif isinstance(item, Exception):
                    if not any(isinstance(event, trace.Error) for event in told):  # else the process has said why
                        yield trace.Error(_words(item))
                elif item is not None:
                    told.append(item)
                    yield item
                    if isinstance(item, trace.Start):
                        yield trace.Warning(watch.words(need))
                if watch.told_to_stop is None and (stop.wait(0) or watch.late):
                    used_up, watch.told_to_stop = not stop.wait(0), time.monotonic()
                    self._stopped.value = number
                    if watch.began is None:
                        break  # there is no process that could hear it
                if watch.impatient:
                    yield from ends(told)
                    break
            if used_up:
                self._durations.fell_short(need)
                yield trace.Error(USED_UP.format(seconds=need.asked))
        finally:
            reader.leave()
            self._stopped.value = number
            self._note(request, told, watch)

    def _note(self, request: GenerationRequest, told: Sequence[trace.Event], watch: _Watch) -> None:
        if watch.began is None:
            return
        if watch.ready is not None and watch.worker.start_seconds:
            self._durations.started(watch.ready - watch.began)
        if watch.ready is not None:
            self._durations.ran(request, told, time.monotonic() - watch.ready)


def _work(race: Race, warm_up: Callable[[threading.Event], None] | None, stopped: Any) -> Callable[..., Iterator[Worker | trace.Event]]:
    """Return what runs in the forked processes."""
    served = list[int]()  # this process, once it is warm; the list that a fork inherits is empty

    def work(number: int, request: GenerationRequest, seconds: int) -> Iterator[Worker | trace.Event]:
        stop, fresh = _Heard(stopped, number), os.getpid() not in served
        worker = Worker(_age() if fresh else 0.0)
        yield worker  # whoever waits hears that there is a GPU; and that nobody waits any more is noticed after a yield only
        began = time.monotonic()
        try:
            if fresh and warm_up is not None:
                try:
                    warm_up(stop)
                except OSError as error:  # made for a person
                    yield trace.Error(str(error))
                    return
            if not stop.is_set():
                served.append(os.getpid())
            yield Worker(worker.start_seconds, time.monotonic() - began)
            yield from race(request, stop)
        except Exception as error:  # on the way to the visitor all but its class would be lost
            if kind(error) != "input":
                log.exception("the run failed")
            yield trace.Error(sentence(error))
            if device_lost(error):
                raise  # such a process must not run anything again

    return work


def _age() -> float:
    """Return for how many seconds this process has been there."""
    return time.time() - psutil.Process().create_time()


class _Heard(threading.Event):
    """Stop, as a forked process hears it."""

    def __init__(self, stopped: Any, number: int) -> None:
        super().__init__()
        self._stopped, self._number = stopped, number

    def is_set(self) -> bool:
        """Return whether this run, or a later one, was told to end."""
        return bool(self._stopped.value >= self._number)


class _Reader:
    """Reads a generator in a thread of its own, because it may be silent for a minute, and Stop must not wait.

    Iterating yields its items, its exception as the last one, and None every :data:`POLL_SECONDS` of silence.
    """

    def __init__(self, items: Any) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._left = threading.Event()
        # ZeroGPU's library finds the visitor, whose quota it is, in the context
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._read, items), name="avl-zero", daemon=True).start()

    def _read(self, items: Any) -> None:
        try:
            for item in items:
                if self._left.is_set():
                    items.close()
                    break
                self._queue.put(item)
        except Exception as error:
            self._queue.put(error)
        finally:
            self._queue.put(self)  # the end

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                item = None
            if item is self:
                return
            yield item

    def leave(self) -> None:
        """Read no more: the generator is closed at its next item."""
        self._left.set()


class _Watch:
    """The clock of one run.

    Attributes:
        began: when its GPU was there, None before.
        ready: when its process was warm, None before.
        told_to_stop: when, None before.
        worker: what the process told of itself last.
    """

    def __init__(self, asked: int) -> None:
        self._asked = asked
        self.began: float | None = None
        self.ready: float | None = None
        self.told_to_stop: float | None = None
        self.worker = Worker()

    def hear(self, worker: Worker) -> None:
        now, self.worker = time.monotonic(), worker
        if self.began is None:
            self.began = now - worker.start_seconds
        if worker.warm_seconds is not None:
            self.ready = now

    @property
    def late(self) -> bool:
        """Whether what was asked for is nearly over."""
        return self.began is not None and time.monotonic() - self.began > self._asked - SPARE_SECONDS

    @property
    def impatient(self) -> bool:
        """Whether the process has not ended though it was told to."""
        return self.told_to_stop is not None and time.monotonic() - self.told_to_stop > PATIENCE_SECONDS

    def words(self, need: Need) -> str:
        """Return what the visitor is told beside the answer."""
        how = "by the times of earlier runs" if need.measured else "a first guess, nothing has run since this server started"
        told = f"ZeroGPU was asked for {self._asked} s of GPU ({how})"
        if self.worker.start_seconds:
            start, warm = self.worker.start_seconds, self.worker.warm_seconds or 0.0
            told += f"; the process is new: {start:.1f} s to start and {warm:.1f} s to warm up, which are in no time shown"
        return told


def _words(error: Exception) -> str:
    """One sentence for what ZeroGPU's library raised: its words about quota are for people, the rest names classes only."""
    title, words = getattr(error, "title", ""), str(getattr(error, "message", error)).strip()
    if words == "GPU task aborted":
        return DIED
    if words.startswith("Connection closed by visitor"):
        return LEFT
    if title == "ZeroGPU worker error":
        return f"ZeroGPU could not start a process for this run ({words}): run it again."
    if title.startswith("ZeroGPU"):
        return f"{title}: {words.rstrip('.')}."
    log.error("ZeroGPU failed", exc_info=error)
    return sentence(error)


def ends(told: Sequence[trace.Event]) -> list[trace.End]:
    """Return the ends of the arms that have none, made from what they told, as a run that is stopped tells them.

    Args:
        told: the events of a run so far.
    """
    over = {event.arm for event in told if isinstance(event, trace.End)}
    made = []
    for first in told:
        if not isinstance(first, trace.Prefill) or first.arm in over:
            continue
        steps = [event for event in told if isinstance(event, trace.Step) and event.arm == first.arm]
        made.append(
            trace.End(
                arm=first.arm,
                reason="stopped",
                text=first.text + "".join(step.text for step in steps),
                tokens=(first.token, *(step.token for step in steps)),
                ttft_ms=first.ms,
                median_ms=statistics.median(step.ms for step in steps) if steps else None,
                clock_ms=steps[-1].clock_ms if steps else first.ms,
                stored_bytes=statistics.fmean(step.stored_bytes for step in steps) if steps else float(first.stored_bytes),
                read_bytes=statistics.fmean(step.read_bytes for step in steps) if steps else 0.0,
                peak_bytes=max(first.peak_bytes, *(step.stored_bytes for step in steps)) if steps else first.peak_bytes,
            )
        )
    return made
