"""The events of a sweep: one picture and question under full attention, then under one policy at each point of a range of parameters.

``SweepStart`` names every point. ``SweepProgress`` tells how far the running one is; before the start, with no tokens, it tells of the
warm-up. ``SweepPoint`` tells what one gave; a later one of the same ``point`` replaces it and holds one run more. ``SweepEnd`` says which
points keep full attention's answer; only an ``Error`` may end a sweep without one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from avl.trace.cells import cell
from avl.trace.events import Error, Event

SWEEP_SCHEMA = 1
"""Version of the JSON of :meth:`Sweep.to_dict`."""


@dataclass(frozen=True)
class SweepAxis:
    """One swept parameter: its name, a label, its unit, and its values as asked; None is off."""

    name: str
    label: str
    unit: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class SweepPlanned:
    """A point to come: values of the swept parameters, the policy's label, and what else was lowered to leave them room, in words."""

    values: dict[str, float | None]
    label: str
    lowered: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepSkipped:
    """A combination that is not run, and why."""

    values: dict[str, float | None]
    reason: str


@dataclass(frozen=True)
class SweepStart(Event):
    """The first event but for the warm-up's progress. ``policy``: the parameters that all points share. ``points``: in their order.

    ``title``: the policy's. ``repeats``: runs of each point. ``notes``: how it is measured, sentences. Other fields as in :class:`Start`.
    """

    kind: ClassVar[str] = "sweep_start"
    policy: dict[str, Any]
    title: str
    axes: tuple[SweepAxis, ...]
    points: tuple[SweepPlanned, ...]
    skipped: tuple[SweepSkipped, ...]
    question: str
    model: dict[str, Any]
    machine: dict[str, Any]
    date: str
    n_image: int
    n_text: int
    layers: int
    token_bytes: int
    batch: int
    limit: int
    repeats: int
    temperature: float
    top_p: float
    seed: int | None
    notes: tuple[str, ...] = ()
    schema: int = SWEEP_SCHEMA


@dataclass(frozen=True)
class SweepProgress(Event):
    """Tokens of the running point so far; ``point`` is None for full attention."""

    kind: ClassVar[str] = "sweep_progress"
    point: int | None
    tokens: int


@dataclass(frozen=True)
class SweepPoint(Event):
    """What one point gave.

    Attributes:
        point: index in ``SweepStart.points``, None for full attention, which comes first.
        values: of the swept parameters; empty for full attention.
        label: of the policy.
        policy: name and parameters.
        text: the whole answer.
        tokens: its ids without the end of sequence.
        reason: why it ended, as in :class:`End`.
        same: whether it is full attention's answer, token for token, and ended for the same reason.
        identical: tokens before the first one that differs from full attention's.
        stored_bytes: of keys and values of all rows, mean over the decode steps.
        read_bytes: likewise, per step.
        stored_share: of what full attention stores over as many steps.
        read_share: likewise of what it reads.
        peak_bytes: most keys and values ever held.
        ttft_ms: time to the first token, median of the runs.
        median_ms: of a decode step, median of the runs; None without one.
        runs: (ttft_ms, median_ms) of each run so far.
        notes: what to know about this point, sentences.
    """

    kind: ClassVar[str] = "sweep_point"
    point: int | None
    values: dict[str, float | None]
    label: str
    policy: dict[str, Any]
    text: str
    tokens: tuple[int, ...]
    reason: str
    same: bool
    identical: int
    stored_bytes: float
    read_bytes: float
    stored_share: float
    read_share: float
    peak_bytes: int
    ttft_ms: float
    median_ms: float | None
    runs: tuple[tuple[float, float | None], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepEnd(Event):
    """The last event of a sweep.

    Attributes:
        reason: "done", "stopped" or "failed".
        measured: points measured of ``planned``, full attention apart.
        planned: points of the sweep.
        kept: points that keep full attention's answer, in order.
        cheapest: of these the one that stores least, of several the one that reads least; None without one.
        safe: with one parameter, the cheapest point that keeps the answer together with every costlier one; None without one.
        text: the verdict in one or two sentences.
    """

    kind: ClassVar[str] = "sweep_end"
    reason: str
    measured: int
    planned: int
    kept: tuple[int, ...]
    cheapest: int | None
    safe: int | None
    text: str


@dataclass
class Sweep:
    """A sweep so far, taken in event by event.

    Attributes:
        events: all but the progress.
    """

    events: list[Event] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Take one event in."""
        if not isinstance(event, SweepProgress):
            self.events.append(event)

    @property
    def start(self) -> SweepStart:
        """The first event. Raises ValueError where there is none."""
        found = next((event for event in self.events if isinstance(event, SweepStart)), None)
        if found is None:
            raise ValueError("this sweep has not begun")
        return found

    @property
    def rows(self) -> list[SweepPoint]:
        """The newest row of each point, full attention first."""
        rows = {event.point: event for event in self.events if isinstance(event, SweepPoint)}
        return sorted(rows.values(), key=lambda row: -1 if row.point is None else row.point)

    @property
    def end(self) -> SweepEnd | None:
        """The verdict, None before the end."""
        return next((event for event in self.events if isinstance(event, SweepEnd)), None)

    @property
    def errors(self) -> list[str]:
        """What went wrong, sentences."""
        return [event.message for event in self.events if isinstance(event, Error)]

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"schema", "start", "rows", "end", "errors"}`` as plain data."""
        end = self.end
        parts = {"start": self.start.to_dict(), "rows": [row.to_dict() for row in self.rows], "end": end.to_dict() if end else None}
        return {"schema": SWEEP_SCHEMA, **parts, "errors": self.errors}

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def to_csv(self) -> str:
        """Return a line for full attention and for each point; what is skipped follows, with its reason as the last column."""
        out = io.StringIO()
        writer = csv.writer(out)
        names = [axis.name for axis in self.start.axes]
        writer.writerow([*names, *_COLUMNS])
        for row in self.rows:
            times = [len(row.runs), row.ttft_ms, "" if row.median_ms is None else row.median_ms]
            counts = [row.stored_bytes, row.read_bytes, row.stored_share, row.read_share, row.peak_bytes]
            said = [int(row.same), row.identical, len(row.tokens), row.reason, *counts, *times, cell(row.text), " ".join(row.notes)]
            writer.writerow([*_of(names, row.values), row.label, *said])
        for skipped in self.start.skipped:
            writer.writerow([*_of(names, skipped.values), "skipped", *[""] * (len(_COLUMNS) - 2), skipped.reason])
        return out.getvalue()


_COLUMNS = (
    *("policy", "same", "identical", "tokens", "reason", "stored_bytes", "read_bytes", "stored_share", "read_share", "peak_bytes"),
    *("runs", "first_token_ms", "ms_per_token", "text", "notes"),
)


def _of(names: Iterable[str], values: dict[str, float | None]) -> list[Any]:
    return [values[name] if values.get(name) is not None else "off" if name in values else "" for name in names]
