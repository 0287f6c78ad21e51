"""One run of one visitor on its way through the queue, and the events that its handler reads."""

from __future__ import annotations

import asyncio
import contextvars
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from avl import trace
from avl.engine.request import GenerationRequest


@dataclass(eq=False)
class Job:
    """Written by the worker thread, read by the handler's event loop.

    Attributes:
        request: what to run.
        owner: whose Stop button ends it.
        visitor: whose share of the queue it takes, None for nobody's.
        stop: set when the run is to end before its next step.
        why: why the server itself ended it, one sentence; the visitor hears it after the run's own last event.
        outcome: done, stopped, failed; None while it waits or runs.
        context: of the call that it came with, None where it runs in the worker's own.
        progress: when the worker last handed something over or asked whether to stop, seconds of the monotonic clock.
    """

    request: GenerationRequest
    owner: str
    loop: asyncio.AbstractEventLoop
    visitor: str | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    stop: threading.Event = field(default_factory=threading.Event)
    state: str = "queued"
    why: str | None = None
    outcome: str | None = None
    began: float | None = None
    context: contextvars.Context | None = None
    progress: float = field(default_factory=time.monotonic)
    _events: deque[trace.Event] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The job in the log."""
        return self.id[:8]

    def put(self, event: trace.Event) -> None:
        """Worker side: hand over one event."""
        self.progress = time.monotonic()
        self._events.append(event)
        self._signal()

    def start(self) -> None:
        """Worker side: the run begins."""
        self.began = self.progress = time.monotonic()
        self.state = "running"
        self._signal()

    def end(self, outcome: str) -> None:
        """Worker side: nothing follows. The visitor hears first why the server ended it, if it did."""
        if self.why is not None:
            self._events.append(trace.Error(self.why))
            outcome = "failed"
        self.outcome, self.state = outcome, "done"
        self._signal()

    def _signal(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:  # the server is closing: nobody listens any more
            self.stop.set()

    def take(self) -> list[trace.Event]:
        """Return everything that has arrived (handler side)."""
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events

    async def wait(self, seconds: float) -> None:
        """Wait until something happens, at most ``seconds`` (handler side)."""
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return
        self._wake.clear()

    @property
    def picture_bytes(self) -> int:
        """Memory that the request's pictures take."""
        return sum(image.width * image.height * 3 for image in self.request.images)


class Polled(threading.Event):
    """The stop of a job as its run hears it: a run that asks is alive, also where it has nothing to tell for minutes, as in a replay."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def is_set(self) -> bool:
        """Return whether the run is to end, and note that it asked."""
        self._job.progress = time.monotonic()
        return self._job.stop.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run is to end."""
        return self._job.stop.wait(timeout)


class Observer:
    """Hears what happens to jobs: counters and logs. Methods run in whichever thread it happens, and must be quick."""

    def queued(self, job: Job) -> None:
        """Hear of a job that waits now."""

    def refused(self, error: BaseException) -> None:
        """Hear of a request that did not become a job."""

    def started(self, job: Job) -> None:
        """Hear of a run that begins."""

    def event(self, job: Job, event: trace.Event) -> None:
        """Hear of an event of a run."""

    def failed(self, job: Job, error: BaseException) -> None:
        """Hear of the exception that ended a run."""

    def ended(self, job: Job) -> None:
        """Hear of a job's end; ``job.outcome`` says which."""
