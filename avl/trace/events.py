"""The events of a run. Small, picklable, without tensors.

Time line of one arm: ``Prefill`` (the prompt; gives token 0), then ``Step`` t = 1, 2, … (step t feeds generated token t - 1 and gives
token t), ``Sets`` whenever what the arm stores or reads of the image changes, ``End``. ``Start`` comes first and describes all arms. After
the last ``End`` come ``Repeat`` (the same run again, for the spread of its times) and ``Scores`` (attention of each pass), if asked for.
Arms are numbered in the order they were asked for; one generation alone is arm 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

SCHEMA = 1
"""Version of the JSON schema. A reader opens traces of its own version and says clearly when it cannot."""


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
    """One of the compared policies: its parameters, the label to show, and the attention implementation that runs its decode steps.

    ``title``: the method's name alone, "" in old recordings. ``pruned_from``: first layer whose prompt lacks image tokens, None where every
    layer sees all of them. ``predicted``: (stored after, read by) decode step 1, 2, … ``limit`` - 1, in tokens of row 0 in all layers, by
    the cost model before the run; empty in old recordings.
    """

    label: str
    policy: dict[str, Any]
    implementation: str
    title: str = ""
    pruned_from: int | None = None
    predicted: tuple[tuple[int, int], ...] = ()


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
