"""The events of a run: small, picklable, without tensors.

An arm is one policy's run within a request. ``Start`` comes first and describes all arms. Each arm then yields ``Prefill`` (the prompt,
which gives token 0), ``Step`` t = 1, 2, … (step t feeds generated token t - 1 and gives token t), ``Sets`` whenever the image tokens that
it stores or reads change, and ``End``. After the last ``End`` follow, on request, ``Repeat`` (the times of another run) and ``Scores`` (the
attention of every pass). Arms are numbered in the order of the request; a single generation is arm 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

SCHEMA = 1
"""Version of the JSON schema. Readers accept only their own version and raise a clear error for others."""


@dataclass(frozen=True)
class Grid:
    """A rectangular block of image tokens, and the part of an image that it covers.

    Token ``first + r * (cols + newline) + c`` is the patch in row r, column c; with ``newline``, each row ends with one newline feature.
    ``box`` is (left, top, right, bottom) in pixels of image number ``image`` as uploaded; padding may extend it beyond the image.
    """

    image: int
    first: int
    rows: int
    cols: int
    newline: bool
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Arm:
    """One of the compared policies: the label to show, its parameters, and the attention implementation of its decode steps.

    ``title``: the method's name alone, "" in old recordings. ``pruned_from``: first layer whose prompt lacks image tokens, None where every
    layer sees all of them. ``predicted``: (stored after, read by) decode step 1, 2, … ``limit`` - 1, in tokens of row 0 in all layers, by
    the cost model before the run; empty in old recordings. ``spread``: per layer, the image tokens that are held whatever they score, as
    :func:`pack_bits` over ``n_image``; empty where scores alone choose.
    """

    label: str
    policy: dict[str, Any]
    implementation: str
    title: str = ""
    pruned_from: int | None = None
    predicted: tuple[tuple[int, int], ...] = ()
    spread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """Base class of all events. ``kind`` names the class in JSON."""

    kind: ClassVar[str] = "event"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Start(Event):
    """The first event: the policies, the model, the machine and the prompt.

    ``mode``: "single", "race" (the arm with less accumulated compute time steps next) or "isolated" (one arm after the other).
    ``model``: name, revision, class, dtype, device, layers, heads, kv_heads, head_dim. ``machine``: hardware and versions.
    ``token_bytes``: KV bytes of one token in all layers. ``spans``: (name, start, stop) over the prompt, names "system", "image",
    "instruction", and "between" for text with image tokens on both sides. ``n_image``/``n_text``: prompt tokens of row 0. ``images``:
    (width, height) of each image. ``limit``: max new tokens.
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
    """The prompt was processed and gave token 0. ``ms``: time to first token. ``stored``: KV tokens stored per layer, summed over rows.

    ``peak_bytes``: most KV bytes held at any time during prefill (under an evicting policy, at most one layer holds its full KV).
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
    """Decode step t gave token t. ``ms``: duration of this step; ``clock_ms``: compute time of this arm so far, prefill included.

    ``text``: the piece that this token adds to the answer (empty while a multi-byte character is incomplete). ``stored``/``read``: KV
    tokens of all layers and rows stored after this step, and read by it. ``update``: whether it is an update step.
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
    """Image tokens of row 0 that each layer stores and reads from step ``t + 1`` on, as :func:`pack_bits` over ``n_image``.

    ``stored`` (A-VL: secondary) is None if unchanged since the arm's previous Sets event. ``core`` is None if every stored token is read.
    ``pruned``: tokens removed from the hidden states in prefill (A-VL's P, FastV), given once; later layers do not store them.
    """

    kind: ClassVar[str] = "sets"
    arm: int
    t: int
    stored: tuple[str, ...] | None
    core: tuple[str, ...] | None
    pruned: str | None = None


@dataclass(frozen=True)
class Scores(Event):
    """One query's attention on the image tokens of row 0, per layer, as :func:`pack_scores` over ``n_image`` (0 for tokens not read).

    At t = 0 the query is the last prompt token. ``shares``: per layer, attention on (system, image, instruction, generated,
    between), with sum 1; recordings made before "between" had a name of its own have four.
    """

    kind: ClassVar[str] = "scores"
    arm: int
    t: int
    image: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class Reading(Event):
    """Memory and power, None where unavailable: device memory above its level before the run (pynvml), torch's allocator, process RSS.

    ``note`` says why a reading is missing or shared between arms.
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
    """Something to know about the result; the run continues."""

    kind: ClassVar[str] = "warning"
    message: str
    arm: int | None = None


@dataclass(frozen=True)
class Error(Event):
    """The run ended early. ``message`` is one sentence for the user: what happened, why, and what to do."""

    kind: ClassVar[str] = "error"
    message: str
    arm: int | None = None


@dataclass(frozen=True)
class End(Event):
    """An arm finished. ``text``: the whole answer; ``tokens``: its ids without EOS.

    ``reason``: "eos", "length", "stopped", or the generation config's "stop_string" or "time".
    ``stored_bytes``/``read_bytes``: means over the decode steps (without any: after prefill, and 0). ``peak_bytes``: most ever held.
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
    """An arm ran again, after all arms had ended. ``number``: 1 for the second run, and so on. Times and tokens as in :class:`End`."""

    kind: ClassVar[str] = "repeat"
    arm: int
    number: int
    ttft_ms: float
    median_ms: float | None
    clock_ms: float
    reason: str
    tokens: tuple[int, ...]
