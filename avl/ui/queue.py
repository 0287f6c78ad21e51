"""Between the page and the device: one thread owns the model, visitors queue for it and receive events.

Gradio steps a synchronous generator on changing pool threads and frees its slot when a visitor cancels, while the work goes on. So
the work never runs in a handler: :class:`ThreadTransport` has one worker thread that runs one job after the other, and an
asynchronous handler only drains the events. On ZeroGPU a worker thread is impossible (each call is a forked process), so there
:class:`ZeroGPUTransport` wraps the same function as a synchronous generator.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from avl import trace
from avl.engine.request import GenerationRequest

log = logging.getLogger(__name__)


Race = Callable[[GenerationRequest, threading.Event], Iterator[trace.Event]]
"""Run a request, polling the event at every step: the only thing the page knows of the engine."""


class Busy(RuntimeError):
    """The queue is full. The message is one sentence for the visitor."""


def sentence(error: BaseException) -> str:
    """Return one clear sentence for the page. Only errors made for a person pass through as they are; the rest goes to the log."""
    if isinstance(error, ValueError | Busy):
        text = str(error)
        # the library's sentences begin small; names of parameters stay as they are
        text = text[:1].upper() + text[1:] if text.split(" ")[0].isalpha() else text
        return text if text.endswith((".", "!", "?")) else text + "."
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return "The device ran out of memory: choose a smaller batch, fewer new tokens or a smaller picture."
    return f"The run failed inside ({type(error).__name__}); the server's log has the details."


@dataclass(eq=False)
class Job:
    """One run of one visitor: written by the worker thread, read by the handler's event loop."""

    request: GenerationRequest
    owner: str
    loop: asyncio.AbstractEventLoop
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    stop: threading.Event = field(default_factory=threading.Event)
    state: str = "queued"
    _events: deque[trace.Event] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: trace.Event) -> None:
        """Worker side: hand over one event."""
        self._events.append(event)
        self._signal()

    def move(self, state: str) -> None:
        """Worker side: enter ``state``: queued, running, done."""
        self.state = state
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


class ThreadTransport:
    """A first-come-first-served queue in front of one worker thread."""

    def __init__(self, race: Race, *, capacity: int = 20) -> None:
        self._race = race
        self._capacity = capacity
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="avl-device", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """Jobs running, jobs waiting."""
        with self._change:
            return int(self._running is not None), len(self._waiting)

    def submit(self, request: GenerationRequest, owner: str) -> Job:
        """Join the queue. Call it on the event loop that will read the job."""
        job = Job(request, owner, asyncio.get_running_loop())
        with self._change:
            if not self.alive:
                raise Busy("The device thread has ended: restart the server.")
            if len(self._waiting) >= self._capacity:
                raise Busy(f"{self._capacity} visitors are waiting already: try again in a minute.")
            self._waiting.append(job)
            self._change.notify()
        return job

    def position(self, job: Job) -> int:
        """How many runs come before this one; 0 when it is this one's turn."""
        with self._change:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + int(self._running is not None)

    def stop(self, owner: str) -> bool:
        """Stop all jobs of a visitor within one step; true if there was one."""
        with self._change:
            jobs = [job for job in (*self._waiting, self._running) if job is not None and job.owner == owner]
        for job in jobs:
            self.leave(job)
        return bool(jobs)

    def leave(self, job: Job) -> None:
        """End one job: out of the queue at once, or out of the device within one step. Never blocks: handlers call it on the event loop."""
        job.stop.set()
        with self._change:
            if job in self._waiting:
                self._waiting.remove(job)
                job.move("done")

    def close(self, timeout: float = 10.0) -> None:
        """End the worker (tests and orderly shutdown)."""
        with self._change:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._change.notify()
        for job in jobs:
            self.leave(job)
        self._thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
            try:
                self._run(job)
            finally:
                with self._change:
                    self._running = None
                job.move("done")
                del job  # the request holds pictures; the idle thread must not

    def _run(self, job: Job) -> None:
        if job.stop.is_set():
            return
        job.move("running")
        events: Iterator[trace.Event] | None = None
        try:
            events = self._race(job.request, job.stop)
            for event in events:
                job.put(event)
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("a run failed")
            job.put(trace.Error(sentence(error)))
        finally:
            # closing here, in the thread that owns the device, frees the caches of a run that ended early
            close = getattr(events, "close", None)
            if close is not None:
                close()


async def batches(
    transport: ThreadTransport, job: Job, *, interval: float = 0.08, heartbeat: float = 1.0
) -> AsyncIterator[list[trace.Event]]:
    """Events of a job, coalesced to one batch per ``interval`` seconds; an empty batch every ``heartbeat`` seconds of silence.

    The empty batches carry the position in the queue to the page, and they are where Gradio notices that a tab was closed.
    """
    last = 0.0
    while True:
        done = job.state == "done"  # read before the events, or the last ones could be missed
        events = job.take()
        if events or done or time.monotonic() - last >= heartbeat:
            last = time.monotonic()
            yield events
        if done:
            return
        await job.wait(heartbeat)
        rest = interval - (time.monotonic() - last)
        if rest > 0:
            await asyncio.sleep(rest)


class ZeroGPUTransport:
    """The same function on Hugging Face's ZeroGPU: a synchronous generator in a forked process that holds the GPU.

    Nothing of the parent can reach the child while it runs, so the stop event stays unset there; closing the generator ends the child at
    its next yield, and so every event is yielded on its own.
    """

    def __init__(self, race: Race, gpu: Callable[..., Any], *, seconds_per_token: float = 0.25) -> None:
        def duration(request: GenerationRequest) -> int:
            # quota is charged by this estimate: two policies, prefill and start-up included
            times = request.repeats + request.scores
            return int(min(120, 20 + 2 * times * request.max_new_tokens * seconds_per_token * request.batch**0.5))

        def stream(request: GenerationRequest) -> Iterator[trace.Event | None]:
            yield None  # closing is only noticed after a yield, so there is one before prefill
            yield from race(request, threading.Event())

        self.stream = gpu(duration=duration)(stream)
