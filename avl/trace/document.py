"""A whole run as a versioned JSON document, used for recordings, downloads and test fixtures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from avl.trace.check import WORDS, brief, check_events, check_values, fit, unique
from avl.trace.events import (
    READS,
    SCHEMA,
    Agreement,
    End,
    Error,
    Event,
    Prefill,
    Reading,
    Repeat,
    Scores,
    Sets,
    Start,
    Step,
    TextSets,
    Warning,
)

KINDS: dict[str, type[Event]] = {
    cls.kind: cls for cls in (Start, Prefill, Step, Sets, TextSets, Scores, Reading, Warning, Error, End, Repeat, Agreement)
}


def event_from_dict(data: dict[str, Any]) -> Event:
    """Make an event from the output of ``Event.to_dict``.

    Raises:
        ValueError: ``data`` is not a valid event; says why.
    """
    if not isinstance(data, dict):
        raise ValueError(f"an event is {brief(data)}, not an object")
    data = dict(data)
    kind = data.pop("kind", None)
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"unknown event kind {brief(kind)}; a trace has {', '.join(KINDS)}")
    if cls is Start:
        _check_schema(data.get("schema"))
        data["schema"] = SCHEMA  # what is read is written anew in the present version
    try:
        event: Event = fit(cls, data)
    except ValueError as error:
        raise ValueError(f"bad {kind} event: {error}") from None
    return event


def _check_schema(found: Any) -> None:
    if type(found) is not int or found not in READS:
        known = " and ".join(map(str, READS))
        raise ValueError(f"this trace has schema {brief(found)}, this version reads schema {known}: record it again")


def events_json(events: Sequence[Event], most: int | None = None) -> str:
    """Return events as the text of a JSON list.

    Args:
        events: in order.
        most: bytes of the text, in which not all of them need to fit, but one at least; None for all of them.
    """
    texts: list[str] = []
    size = 0
    for event in events:
        text = _dumps(event.to_dict())
        size += len(text)
        if most is not None and texts and size > most:
            break
        texts.append(text)
    return f"[{','.join(texts)}]"


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


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
        """Return the trace as plain data: ``{"schema": 2, "meta": {...}, "images": [...], "events": [...]}``."""
        return {"schema": SCHEMA, "meta": self.meta, "images": self.images, "events": [e.to_dict() for e in self.events]}

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return _dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Trace:
        """Parse the output of :meth:`to_json`, as text or as UTF-8.

        Raises:
            ValueError: the text is not a trace of a schema that is read, or its events are not those of one run; in one sentence.
        """
        if not isinstance(text, str | bytes | bytearray):
            raise ValueError(f"a trace is JSON text, not a {type(text).__name__}: read the file first")
        try:
            document = json.loads(text, object_pairs_hook=unique)
            check_values(document)
        except UnicodeDecodeError:
            raise ValueError("this file is not a trace: it is not UTF-8 text") from None
        except RecursionError:
            raise ValueError("this file is not a trace: its values are nested too deep") from None
        except ValueError as error:  # of the parser too, which has a limit on digits
            raise ValueError(f"this file is not a trace: {error}") from None
        if not isinstance(document, dict):
            raise ValueError(f"this file is not a trace: it holds {brief(document)}, not an object")
        _check_schema(document.get("schema"))
        unknown = [key for key in document if key not in ("schema", "meta", "images", "events")]
        if unknown:
            raise ValueError(f"this trace has an unknown part {brief(unknown[0])}: it has schema, meta, images and events")
        parts = {"meta": document.get("meta", {}), "images": document.get("images", []), "events": document.get("events", [])}
        for name, part in parts.items():
            kind = dict if name == "meta" else list
            if not isinstance(part, kind):
                raise ValueError(f"{name} of this trace is {brief(part)}, not {WORDS[kind]}")
        for number, image in enumerate(parts["images"]):
            if not isinstance(image, str) or not image.startswith("data:image/"):
                raise ValueError(f"image {number} of this trace is {brief(image)}, not a data URI of a picture")
        events = [event_from_dict(event) for event in parts["events"]]
        check_events(events)
        return cls(events=events, images=parts["images"], meta=parts["meta"])
