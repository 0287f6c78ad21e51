"""Between the page and the device: one thread owns the model, visitors queue for it and receive events.

Gradio steps a synchronous generator on changing pool threads and frees its slot when a visitor cancels, while the work goes on. So
the work never runs in a handler: :class:`ThreadTransport` has one worker thread that runs one job after the other, and an
asynchronous handler only drains the events. On ZeroGPU what the thread runs reads the events of a forked process (avl/ui/zero.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any

from avl import trace
from avl.engine.failures import device_lost
from avl.engine.request import GenerationRequest
from avl.ui.errors import LOST, Busy, sentence
from avl.ui.job import Job, Observer, Polled
from avl.ui.limits import Limits

log = logging.getLogger(__name__)

Race = Callable[[GenerationRequest, threading.Event], Iterator[trace.Event]]
"""Run a request, polling the event at every step: the only thing the page knows of the engine."""

DIED = "The server's device thread ended in the middle of this run: try again."
UNREAD = "Nobody read this run's events, so it was ended."


class ThreadTransport:
    """A first-come-first-served queue in front of one worker thread, which is replaced where it dies.

    Args:
        race: runs a request.
        limits: how many wait, of one visitor and in all, with how large pictures; how long a run may take, or say nothing.
        observers: hear what happens.
        in_context: whether a job runs in the context of the call that submitted it, where Gradio and others keep whose call it is.
    """

    def __init__(self, race: Race, limits: Limits | None = None, observers: Sequence[Observer] = (), *, in_context: bool = False) -> None:
        self._race, self._in_context = race, in_context
        self.limits = limits or Limits()
        self._observers = tuple(observers)
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._change = threading.Condition()
        self._closed: str | None = None
        self._lost: str | None = None
        self._rehearsal: tuple[Callable[[threading.Event], None], threading.Event, Future[None]] | None = None
        self._start_worker()

    def _start_worker(self) -> None:
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

    @property
    def trouble(self) -> tuple[str, str] | None:
        """What keeps runs from being taken, as (state, sentence): stopping, failed or stuck; None while all is well."""
        if self._closed is not None:
            return "stopping", self._closed
        if self._lost is not None:
            return "failed", self._lost
        job, seconds = self._running, self.limits.stuck_seconds
        if job is not None and job.state == "running" and time.monotonic() - job.progress > seconds:
            return "stuck", f"The device has not answered for {seconds:g} s: try again later."
        return None

    def rehearse(self, work: Callable[[threading.Event], None]) -> None:
        """Do something in the device's thread before the first job, and wait: libraries keep handles and plans for each thread.

        Args:
            work: takes an event that tells it to end, because the caller no longer waits.
        """
        stop, done = threading.Event(), Future[None]()
        with self._change:
            self._rehearsal = work, stop, done
            self._change.notify()
        try:
            done.result()
        except BaseException:
            stop.set()
            wait([done], timeout=10)
            raise

    def submit(self, request: GenerationRequest, owner: str, visitor: str | None = None) -> Job:
        """Join the queue. Call it on the event loop that will read the job.

        Args:
            request: what to run.
            owner: whose :meth:`stop` ends it.
            visitor: whose share of the queue it takes, None for nobody's.

        Raises:
            Busy: there is no room, or the server takes no more runs; one sentence.
        """
        job = Job(request, owner, asyncio.get_running_loop(), visitor)
        if self._in_context:
            job.context = contextvars.copy_context()
        with self._change:
            self._check_room(job)
            self._waiting.append(job)
            self._change.notify()
        self._tell("queued", job)
        return job

    def _check_room(self, job: Job) -> None:
        limits = self.limits
        trouble = self.trouble
        if trouble is not None:
            raise Busy(trouble[1])
        if len(self._waiting) >= limits.waiting:
            raise Busy(f"{limits.waiting} visitors are waiting already: try again in a minute.")
        of_visitor = sum(one.visitor == job.visitor for one in self._waiting)
        if job.visitor is not None and of_visitor >= limits.waiting_per_visitor:
            raise Busy(f"{of_visitor} of your runs are waiting already: wait for one of them to end.")
        if self._waiting and sum(one.picture_bytes for one in (*self._waiting, job)) > limits.picture_bytes:
            raise Busy("The pictures of those who wait fill the server's memory: try again in a minute, or send a smaller picture.")

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

    def leave(self, job: Job, why: str | None = None) -> None:
        """End one job: out of the queue at once, or out of the device within one step. Never blocks: handlers call it on the event loop.

        Args:
            job: which.
            why: what the visitor is told where the server ends it, one sentence.
        """
        if job.state != "done" and why is not None:
            job.why = job.why or why
        job.stop.set()
        with self._change:
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
        if waited:
            self._end(job, "stopped")

    def check(self, job: Job) -> None:
        """End a job that runs for longer than allowed."""
        seconds = self.limits.run_seconds
        if job.state == "running" and job.began is not None and time.monotonic() - job.began > seconds and not job.stop.is_set():
            self.leave(job, f"This run took longer than {seconds:g} s, the most here: lower the batch, the repeats or the new tokens.")

    def drain(self, why: str) -> None:
        """Take no more runs and end those there are; returns at once. The first reason stays."""
        with self._change:
            self._closed = self._closed or why  # whoever asks from now on hears the reason that the others heard
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._change.notify()
        for job in jobs:
            self.leave(job, why)

    def close(self, timeout: float = 10.0) -> bool:
        """Drain and wait for the worker to end; false where it has not after ``timeout`` seconds."""
        self.drain("The server is shutting down.")
        self._thread.join(timeout)
        return not self.alive

    def _tell(self, what: str, *of: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, what)(*of)
            except Exception:  # whoever only listens must not end a run
                log.exception("an observer failed")

    def refused(self, error: BaseException) -> None:
        """Tell the observers of a request that did not become a job."""
        self._tell("refused", error)

    def _end(self, job: Job, outcome: str) -> None:
        job.end(outcome)
        self._tell("ended", job)

    def _work(self) -> None:
        try:
            while True:
                with self._change:
                    while not self._waiting and self._closed is None and self._rehearsal is None:
                        self._change.wait()
                    if self._closed is not None:
                        return
                    rehearsal, self._rehearsal = self._rehearsal, None
                    if rehearsal is None:
                        job = self._running = self._waiting.popleft()
                if rehearsal is not None:
                    _rehearse(*rehearsal)
                    continue
                if job.context is None:
                    self._run(job)
                else:
                    job.context.run(self._run, job)
                del job  # the request holds pictures; the idle thread must not
        except BaseException as error:  # such as SystemExit, which a thread ends with in silence
            self._tell("failed", job, error)
            del job
            with contextlib.suppress(RuntimeError):  # no thread can be started: said below
                self._start_worker()
            if self._thread is threading.current_thread():
                self._lose("The server's device thread has ended: the server has to be restarted.")

    def _run(self, job: Job) -> None:
        outcome, failed = "failed", False
        events: Iterator[trace.Event] | None = None
        try:
            if not job.stop.is_set():
                job.start()
                self._tell("started", job)
                events = self._race(job.request, Polled(job))
                for event in events:
                    failed = failed or isinstance(event, trace.Error)
                    job.put(event)
                    self._tell("event", job, event)
            outcome = "stopped" if job.stop.is_set() else "failed" if failed else "done"
        except Exception as error:
            self._fail(job, error)
        except BaseException:
            job.why = DIED
            raise
        finally:
            try:
                # closing here, in the thread that owns the device, frees the caches of a run that ended early
                close = getattr(events, "close", None)
                if close is not None:
                    close()
            finally:
                with self._change:
                    self._running = None
                self._end(job, outcome)

    def _fail(self, job: Job, error: Exception) -> None:
        job.put(trace.Error(sentence(error)))
        self._tell("failed", job, error)
        if device_lost(error):
            self._lose(LOST)

    def _lose(self, why: str) -> None:
        """Take no more runs, and end those that wait."""
        with self._change:
            self._lost = why
            waiting = list(self._waiting)
        for other in waiting:
            self.leave(other, why)


def _rehearse(work: Callable[[threading.Event], None], stop: threading.Event, done: Future[None]) -> None:
    try:
        work(stop)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


async def batches(
    transport: ThreadTransport, job: Job, *, interval: float = 0.08, heartbeat: float = 1.0, unread: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[list[trace.Event]]:
    """Events of a job, coalesced to one batch per ``interval`` seconds; an empty batch every ``heartbeat`` seconds of silence.

    The empty batches carry the position in the queue to the page, and they are where Gradio notices that a tab was closed. They are also
    where the server ends runs that nobody reads, or that take too long.

    Args:
        transport: the job's queue.
        job: whose events.
        interval: least seconds between two batches.
        heartbeat: most seconds of silence.
        unread: tells for how many seconds the oldest batch has waited for the visitor to read it.
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
        transport.check(job)
        if unread() > transport.limits.unread_seconds:
            transport.leave(job, UNREAD)
        await job.wait(heartbeat)
        rest = interval - (time.monotonic() - last)
        if rest > 0:
            await asyncio.sleep(rest)
