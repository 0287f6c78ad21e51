"""The events of a run and the Trace they add up to.

One versioned JSON document is the live stream, the recording, the download and the test fixture. Events are small, picklable and
hold no tensors. This module imports nothing of the project, so every room can speak it.

Time line of one arm: ``Prefill`` (the prompt; gives token 0), then ``Step`` t = 1, 2, … (step t feeds generated token t - 1 and gives
token t), ``Sets`` whenever what the arm stores or reads of the image changes, ``End``. ``Start`` comes first and describes all arms. After
the last ``End`` come ``Repeat`` (the same run again, for the spread of its times) and ``Scores`` (attention of each pass), if asked for.
Arms are numbered in the order they were asked for; one generation alone is arm 0.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

SCHEMA = 1
"""Version of the JSON schema. A reader opens traces of its own version and says clearly when it cannot."""


def pack_bits(members: Iterable[int], n: int) -> str:
    """Encode a subset of ``range(n)`` as base64 of ``numpy.packbits`` (bit i of the set is the (i % 8)-th highest of byte i // 8)."""
    bits = np.zeros(n, dtype=bool)
    bits[np.fromiter(members, dtype=np.int64)] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode("ascii")


def unpack_bits(text: str, n: int) -> np.ndarray:
    """Decode :func:`pack_bits`: base64 text -> bool array ``[n]``."""
    raw = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if raw.size != (n + 7) // 8:
        raise ValueError(f"a set of {n} tokens needs {(n + 7) // 8} bytes, this one has {raw.size}")
    return np.unpackbits(raw, count=n).astype(bool)


def pack_scores(scores: np.ndarray) -> str:
    """Encode scores ``[n]`` as base64 of little-endian float16."""
    return base64.b64encode(np.asarray(scores, dtype="<f2").tobytes()).decode("ascii")


def unpack_scores(text: str) -> np.ndarray:
    """Decode :func:`pack_scores`: base64 text -> float32 array ``[n]``."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2").astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """A rectangular block of image tokens and the part of the picture it covers.

    Token ``first + r * (cols + newline) + c`` is patch (row r, column c); with ``newline`` each row ends with one newline feature.
    ``box`` is (left, top, right, bottom) in pixels of picture ``image`` as uploaded; it may reach beyond the picture (padding).
    """

    image: int
    first: int
    rows: int
    cols: int
    newline: bool
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Arm:
    """One of the compared policies: its parameters, the label to show, and the attention implementation that runs its decode steps."""

    label: str
    policy: dict[str, Any]
    implementation: str


@dataclass(frozen=True)
class Event:
    """Base of all events. ``kind`` names the class in JSON."""

    kind: ClassVar[str] = "event"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Start(Event):
    """Before any work: what will run, on what, over which tokens.

    ``mode``: "single", "race" (the arm with less accumulated compute time steps next) or "isolated" (one arm after the other).
    ``model``: name, revision, class, dtype, device, layers, heads, kv_heads, head_dim. ``machine``: hardware and versions.
    ``token_bytes``: KV bytes of one token in all layers. ``spans``: (name, start, stop) over the prompt, names "system", "image",
    "instruction". ``n_image``/``n_text``: prompt tokens of row 0. ``images``: (width, height) of each picture. ``limit``: max new tokens.
    """

    kind: ClassVar[str] = "start"
    arms: tuple[Arm, ...]
    mode: str
    question: str
    prompt: str
    model: dict[str, Any]
    machine: dict[str, Any]
    date: str
    n_image: int
    n_text: int
    spans: tuple[tuple[str, int, int], ...]
    images: tuple[tuple[int, int], ...]
    grids: tuple[Grid, ...]
    layers: int
    token_bytes: int
    batch: int
    limit: int
    temperature: float
    top_p: float
    seed: int | None
    schema: int = SCHEMA


@dataclass(frozen=True)
class Prefill(Event):
    """The prompt was processed and gave token 0. ``ms``: time to first token. ``stored``: KV entries held now, per layer, all rows.

    ``peak_bytes``: the most KV bytes held at any time during prefill (at most one layer holds its full KV under an evicting policy).
    """

    kind: ClassVar[str] = "prefill"
    arm: int
    ms: float
    token: int
    text: str
    stored: tuple[int, ...]
    stored_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Step(Event):
    """Decode step t gave token t. ``ms``: this step alone; ``clock_ms``: compute time of this arm so far, prefill included.

    ``text`` is the piece this token adds to the answer (may be empty while a multi-byte character is incomplete).
    ``stored``/``read``: entries of all layers and rows held after, read by, this step. ``update``: an update step.
    """

    kind: ClassVar[str] = "step"
    arm: int
    t: int
    token: int
    text: str
    ms: float
    clock_ms: float
    stored: int
    read: int
    stored_bytes: int
    read_bytes: int
    update: bool


@dataclass(frozen=True)
class Sets(Event):
    """Image tokens of row 0 that are stored and read per layer from step ``t + 1`` on; :func:`pack_bits` over ``n_image``.

    ``stored`` (A-VL: secondary) is None when unchanged since the arm's previous Sets event. ``core`` is None when every stored token is
    read. ``pruned``: tokens that left the hidden states in prefill (A-VL's P, FastV), given once; later layers do not store them.
    """

    kind: ClassVar[str] = "sets"
    arm: int
    t: int
    stored: tuple[str, ...] | None
    core: tuple[str, ...] | None
    pruned: str | None = None


@dataclass(frozen=True)
class Scores(Event):
    """Attention of one query over the stored image tokens of row 0, per layer; :func:`pack_scores` over ``n_image`` (0: not stored).

    t = 0: the last prompt token's. ``shares``: per layer, attention on (system, image, instruction, generated); they add up to 1.
    """

    kind: ClassVar[str] = "scores"
    arm: int
    t: int
    image: tuple[str, ...]
    shares: tuple[tuple[float, float, float, float], ...] | None = None


@dataclass(frozen=True)
class Reading(Event):
    """Telemetry, None where it does not apply: device memory above the level before the run (pynvml), torch allocator, process RSS; bytes.

    ``note`` says in words why a reading is absent or shared between arms.
    """

    kind: ClassVar[str] = "reading"
    arm: int | None
    clock_ms: float
    device_bytes: int | None
    allocated_bytes: int | None
    rss_bytes: int | None
    power_watts: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Warning(Event):
    """Something the reader of the result should know; the run goes on."""

    kind: ClassVar[str] = "warning"
    message: str
    arm: int | None = None


@dataclass(frozen=True)
class Error(Event):
    """The run ended early. ``message`` is one sentence for a person: what, why, what to do."""

    kind: ClassVar[str] = "error"
    message: str
    arm: int | None = None


@dataclass(frozen=True)
class End(Event):
    """An arm is finished. ``reason``: "eos", "length", "stopped". ``text``: the whole answer; ``tokens``: ids without the EOS.

    ``stored_bytes``/``read_bytes``: means over the decode steps (without one: held after prefill, and 0). ``peak_bytes``: most ever held.
    """

    kind: ClassVar[str] = "end"
    arm: int
    reason: str
    text: str
    tokens: tuple[int, ...]
    ttft_ms: float
    median_ms: float | None
    clock_ms: float
    stored_bytes: float
    read_bytes: float
    peak_bytes: int


@dataclass(frozen=True)
class Repeat(Event):
    """An arm ran once more, after all arms had ended. ``number``: 1 for the second time, and so on. Times and tokens as in :class:`End`."""

    kind: ClassVar[str] = "repeat"
    arm: int
    number: int
    ttft_ms: float
    median_ms: float | None
    clock_ms: float
    reason: str
    tokens: tuple[int, ...]


_KINDS: dict[str, type[Event]] = {
    cls.kind: cls for cls in (Start, Prefill, Step, Sets, Scores, Reading, Warning, Error, End, Repeat)
}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def event_from_dict(data: dict[str, Any]) -> Event:
    """The inverse of ``Event.to_dict``. Raises ValueError naming what is wrong with ``data``."""
    data = dict(data)
    kind = data.pop("kind", None)
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"unknown event kind {kind!r}; a trace has {', '.join(_KINDS)}")
    if cls is Start:
        if data.get("schema") != SCHEMA:
            raise ValueError(f"this trace has schema {data.get('schema')!r}, this version reads schema {SCHEMA}: record it again")
        data["arms"] = tuple(Arm(**arm) for arm in data["arms"])
        data["grids"] = tuple(Grid(**{**grid, "box": tuple(grid["box"])}) for grid in data["grids"])
    try:
        return cls(**{key: _tuples(value) for key, value in data.items()})
    except TypeError as error:
        raise ValueError(f"bad {kind} event: {error}") from None


@dataclass
class Trace:
    """Everything one run emitted, in order. ``images``: data URIs of the pictures, if the owner chose to keep them in the file."""

    events: list[Event] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def append(self, event: Event) -> None:
        self.events.append(event)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def of(self, kind: type[Event], arm: int | None = None) -> list[Any]:
        """Events of one class, optionally of one arm."""
        return [e for e in self.events if isinstance(e, kind) and (arm is None or getattr(e, "arm", None) == arm)]

    @property
    def start(self) -> Start:
        if not self.events or not isinstance(self.events[0], Start):
            raise ValueError("a trace begins with a start event; this one does not")
        return self.events[0]

    def to_dict(self) -> dict[str, Any]:
        """The whole trace as plain data: ``{"schema": 1, "meta": {...}, "images": [...], "events": [...]}``."""
        return {"schema": SCHEMA, "meta": self.meta, "images": self.images, "events": [e.to_dict() for e in self.events]}

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Parse :meth:`to_json`. Raises ValueError with one sentence when the text is not a trace of this schema."""
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"this file is not a trace: {error}") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else type(document).__name__
            raise ValueError(f"this trace has schema {found!r}, this version reads schema {SCHEMA}: record it again")
        events = [event_from_dict(event) for event in document.get("events", [])]
        return cls(events=events, images=list(document.get("images", [])), meta=dict(document.get("meta", {})))
