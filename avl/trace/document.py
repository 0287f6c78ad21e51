"""A whole run as a versioned JSON document, used for recordings, downloads and test fixtures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from avl.trace.events import SCHEMA, Arm, End, Error, Event, Grid, Prefill, Reading, Repeat, Scores, Sets, Start, Step, Warning

KINDS: dict[str, type[Event]] = {cls.kind: cls for cls in (Start, Prefill, Step, Sets, Scores, Reading, Warning, Error, End, Repeat)}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def event_from_dict(data: dict[str, Any]) -> Event:
    """Make an event from the output of ``Event.to_dict``.

    Raises:
        ValueError: ``data`` is not a valid event; says why.
    """
    data = dict(data)
    kind = data.pop("kind", None)
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"unknown event kind {kind!r}; a trace has {', '.join(KINDS)}")
    if cls is Start and data.get("schema") != SCHEMA:
        raise ValueError(f"this trace has schema {data.get('schema')!r}, this version reads schema {SCHEMA}: record it again")
    try:
        if cls is Start:
            data["arms"] = tuple(Arm(**{key: _tuples(value) for key, value in arm.items()}) for arm in data["arms"])
            data["grids"] = tuple(Grid(**{key: _tuples(value) for key, value in grid.items()}) for grid in data["grids"])
        return cls(**{key: _tuples(value) for key, value in data.items()})
    except TypeError as error:
        raise ValueError(f"bad {kind} event: {error}") from None


@dataclass
class Trace:
    """All events of a run, in order.

    Attributes:
        events: in the order in which they were yielded.
        images: data URIs of the images, if they are to be kept in the file.
        meta: any other information.
    """

    events: list[Event] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def append(self, event: Event) -> None:
        self.events.append(event)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def of(self, kind: type[Event], arm: int | None = None) -> list[Any]:
        """Return the events of one class, optionally of one arm."""
        return [e for e in self.events if isinstance(e, kind) and (arm is None or getattr(e, "arm", None) == arm)]

    @property
    def start(self) -> Start:
        if not self.events or not isinstance(self.events[0], Start):
            raise ValueError("a trace begins with a start event; this one does not")
        return self.events[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain data: ``{"schema": 1, "meta": {...}, "images": [...], "events": [...]}``."""
        return {"schema": SCHEMA, "meta": self.meta, "images": self.images, "events": [e.to_dict() for e in self.events]}

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Parse the output of :meth:`to_json`.

        Raises:
            ValueError: the text is not a trace of this schema; in one sentence.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"this file is not a trace: {error}") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else type(document).__name__
            raise ValueError(f"this trace has schema {found!r}, this version reads schema {SCHEMA}: record it again")
        events = [event_from_dict(event) for event in document.get("events", [])]
        return cls(events=events, images=list(document.get("images", [])), meta=dict(document.get("meta", {})))
