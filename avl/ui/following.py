"""Runs go on by themselves: a task of each hands its events to whoever reads it, and ends it where nobody does.

A page that is loaded again leaves its run alone for some seconds and joins it again; one that was closed does not come back.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, Callable

from avl import trace
from avl.engine.request import GenerationRequest
from avl.ui.errors import Busy, sentence
from avl.ui.job import Job
from avl.ui.queue import ThreadTransport, batches
from avl.ui.runs import KeptRun, Runs

log = logging.getLogger(__name__)

MOST_READERS = 4
"""Pages that read one run; a tab that is duplicated has the keys of the first one."""


class _Live:
    """A run that waits or goes on.

    Attributes:
        run: what is kept of it.
        job: its place in the queue and on the device.
        readers: reader -> session.
        sessions: all that have read it; the Stop button of each ends it.
        alone: since when nobody reads it, seconds of the monotonic clock; None while somebody does.
        changed: set when there is more to read, and replaced then.
    """

    def __init__(self, run: KeptRun, job: Job) -> None:
        self.run, self.job = run, job
        self.readers: dict[object, str] = {}
        self.sessions = {job.owner}
        self.alone: float | None = time.monotonic()
        self.changed = asyncio.Event()

    def leave(self, reader: object) -> None:
        if self.readers.pop(reader, None) is not None and not self.readers:
            self.alone = time.monotonic()

    def tell(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Following:
    """Starts runs, and lets pages read them.

    Args:
        transport: the queue.
        runs: where they are kept.
        unread: tells for how many seconds a session's oldest message has waited to be read.
    """

    def __init__(self, transport: ThreadTransport, runs: Runs, unread: Callable[[str | None], float] = lambda session: 0.0) -> None:
        self._transport, self._runs = transport, runs
        self.unread = unread
        self._live: dict[str, _Live] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, run: KeptRun, request: GenerationRequest, session: str) -> None:
        """Queue a run, on the event loop of its readers.

        Raises:
            Busy: as ``ThreadTransport.submit``; nothing is kept then.
        """
        job = self._transport.submit(request, session, run.visitor)
        run.position = self._transport.position(job)
        self._live[run.key] = live = _Live(run, job)
        self._runs.add(run)
        # in a context of its own: the handler's would keep its call's arguments alive
        task = asyncio.create_task(self._follow(live), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, live: _Live) -> None:
        job, run, transport = live.job, live.run, self._transport
        try:
            async for events in batches(transport, job, unread=lambda: self._unread(live)):
                run.take(events)
                run.state = "stopping" if job.stop.is_set() and job.state != "done" else "running" if job.state == "done" else job.state
                run.position = transport.position(job)
                away = 0.0 if live.alone is None else time.monotonic() - live.alone
                if away > transport.limits.away_seconds and job.state != "done" and not job.stop.is_set():
                    run.left = True
                    transport.leave(job)
                live.tell()
        except Exception as error:
            log.exception("a run's reader failed")
            run.take([trace.Error(sentence(error))])
        finally:
            transport.leave(job)
            run.take(job.take())  # where this task was cut off
            run.end(job.outcome or "stopped")
            del self._live[run.key]
            live.tell()
            self._runs.tidy()

    def _unread(self, live: _Live) -> float:
        """Seconds for which no page has read what it was sent; pages that left count elsewhere."""
        return min(map(self.unread, live.readers.values()), default=0.0)

    async def read(self, run: KeptRun, session: str) -> AsyncGenerator[None]:
        """Yield whenever there may be more of a run to read: at once, about every second, and last at its end.

        Raises:
            Busy: too many pages read it.
        """
        live = self._live.get(run.key)
        reader = object()
        if live is not None:
            if len(live.readers) >= MOST_READERS:
                raise Busy(f"This run is open in {MOST_READERS} pages already: close one of them.")
            live.readers[reader] = session
            live.sessions.add(session)
            live.alone = None
        try:
            while live is not None and not run.over:
                changed = live.changed
                yield
                await changed.wait()
            yield
        finally:
            # may run on the event loop when a tab closes: it only notes the time, the run's own task ends it
            if live is not None:
                live.leave(reader)

    def is_read(self, key: str) -> bool:
        """Return whether a page reads a run that waits or goes on."""
        live = self._live.get(key)
        return live is not None and bool(live.readers)

    def left(self, session: str) -> None:
        """Note that a page has gone; it may be back in a moment."""
        for live in list(self._live.values()):
            for reader in [reader for reader, of in list(live.readers.items()) if of == session]:
                live.leave(reader)

    def stop(self, session: str) -> None:
        """End the runs that a page reads, or has read."""
        for live in list(self._live.values()):
            if session in live.sessions:
                self._transport.leave(live.job)

    def stop_run(self, key: object) -> bool:
        """End a run by its key; false where it is over, or there is none."""
        live = self._live.get(key) if isinstance(key, str) else None
        if live is not None:
            self._transport.leave(live.job)
        return live is not None
