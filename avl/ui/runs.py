"""Runs that visitors have made: kept for an hour for downloads, for pages that are loaded again and for the list of runs; bounded."""

from __future__ import annotations

import dataclasses
import secrets
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from PIL import Image

from avl import trace
from avl.models.images import data_uri
from avl.ui.limits import Limits

THUMBNAIL_BYTES = 6000
OVER = ("done", "stopped", "failed")
"""States of a run from which nothing follows; before them it is queued, running or stopping."""


class KeptRun:
    """One run, from the moment that it joins the queue.

    Attributes:
        key: unguessable; whoever has it may see the run and stop it.
        visitor: whose share of the memory it takes, None for nobody's.
        trace: its events so far.
        thumbnail: of its first picture, a data URI of at most :data:`THUMBNAIL_BYTES`.
        state: queued, running or stopping; at the end one of :data:`OVER`.
        position: runs ahead of it in the queue.
        left: whether it was ended because no page read it any more.
        bytes: memory that it takes, about.
        ended: when, seconds of the monotonic clock; None while it waits or runs.
        asked: what it has to be known by to be asked on (avl/ui/turns.py), None where that is not possible.
    """

    def __init__(self, recorded: trace.Trace, visitor: str | None = None, thumbnail: str = "") -> None:
        self.key = secrets.token_urlsafe(16)
        self.visitor, self.trace, self.thumbnail = visitor, recorded, thumbnail
        self.state, self.position, self.left = "queued", 0, False
        self.bytes = size(recorded.events) + size(recorded.images) + size(recorded.meta) + len(thumbnail)
        self.ended: float | None = None
        self.asked: Any = None
        self.summary: dict[str, Any] | None = None  # of a run that is over, made once

    @property
    def over(self) -> bool:
        return self.ended is not None

    @property
    def began(self) -> bool:
        """Whether it has a start: one that fails before has nothing to show."""
        return bool(self.trace.events) and isinstance(self.trace.events[0], trace.Start)

    def take(self, events: Iterable[trace.Event]) -> None:
        """Append events."""
        for event in events:
            self.trace.append(event)
            self.bytes += size(event)

    def end(self, outcome: str) -> None:
        """Note that nothing follows."""
        self.state, self.position, self.ended = outcome, 0, time.monotonic()


def size(value: Any) -> int:
    """Return the memory of a value and of all in it, in bytes; what several share is counted for each."""
    if isinstance(value, str | bytes):
        return sys.getsizeof(value)
    if dataclasses.is_dataclass(value):
        return sys.getsizeof(value) + size(list(vars(value).values()))
    if isinstance(value, dict):
        return sys.getsizeof(value) + size(list(value)) + size(list(value.values()))
    if isinstance(value, list | tuple):
        return sys.getsizeof(value) + sum(map(size, value))
    return sys.getsizeof(value)


def thumbnail(image: Image.Image) -> str:
    """Return a small picture as a data URI of at most :data:`THUMBNAIL_BYTES`, however much is in it."""
    for side, quality in ((112, 70), (96, 50), (64, 40), (48, 20)):
        uri = data_uri(image, side, quality)
        if len(uri) <= THUMBNAIL_BYTES:
            return uri
    return ""


class Runs:
    """The runs by key. They leave an hour after their end, and before it where a visitor, or all of them, have too many.

    Where all take too much memory, the oldest run of the visitor who takes the most leaves first: nobody's runs can be driven out by
    another's. A run that is not over stays; the queue bounds how many of these there are.

    Args:
        limits: how many of a visitor, how many bytes of all, how long.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._runs: dict[str, KeptRun] = {}  # the oldest first
        self._always: dict[str, trace.Trace] = {}
        self._lock = threading.Lock()

    def keep(self, key: str, recorded: trace.Trace) -> None:
        """Add a trace that never leaves, such as the one that the page opens with."""
        self._always[key] = recorded

    def add(self, run: KeptRun) -> None:
        """Take a run in."""
        with self._lock:
            self._runs[run.key] = run
        self.tidy()

    def tidy(self) -> None:
        """Give up what is too old, or too much. Call it now and then: runs grow."""
        limits, now = self._limits, time.monotonic()
        with self._lock:
            for key in [key for key, run in self._runs.items() if run.ended is not None and now - run.ended > limits.kept_seconds]:
                del self._runs[key]
            by_visitor: dict[str | None, list[KeptRun]] = {}
            for run in self._runs.values():
                by_visitor.setdefault(run.visitor, []).append(run)
            for own in by_visitor.values():
                for run in [one for one in own if one.over][: max(0, len(own) - limits.runs_per_visitor)]:
                    own.remove(run)
                    del self._runs[run.key]
            takes = {visitor: sum(run.bytes for run in own) for visitor, own in by_visitor.items()}
            while len(self._runs) > 1 and sum(takes.values()) > limits.run_bytes:
                gives = [visitor for visitor, own in by_visitor.items() if any(run.over for run in own)]
                if not gives:
                    break
                most = max(gives, key=lambda visitor: takes[visitor])
                run = next(one for one in by_visitor[most] if one.over)
                by_visitor[most].remove(run)
                takes[most] -= run.bytes
                del self._runs[run.key]

    def find(self, key: object) -> KeptRun | None:
        """Return a visitor's run, None where there is none of this key, or no more."""
        with self._lock:
            run = self._runs.get(key) if isinstance(key, str) else None
        expired = run is not None and run.ended is not None and time.monotonic() - run.ended > self._limits.kept_seconds
        return None if expired else run

    def get(self, key: object) -> trace.Trace | None:
        """Return the trace of a run, or one that never leaves; None as :meth:`find`."""
        run = self.find(key)
        return run.trace if run is not None else self._always.get(key) if isinstance(key, str) else None

    @property
    def bytes(self) -> int:
        """Memory that visitors' runs take."""
        with self._lock:
            return sum(run.bytes for run in self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)
