"""The events of a run: small, picklable, without tensors.

An arm is one policy's run within a request. ``Start`` comes first and describes all arms. Each arm then yields ``Prefill`` (the prompt,
which gives token 0), ``Step`` t = 1, 2, … (step t feeds generated token t - 1 and gives token t), ``Sets`` whenever the image tokens that
it stores or reads change, and ``End``. After the last ``End`` follow, on request, ``Repeat`` (the times of another run), ``Scores`` (the
attention of every pass) and ``Agreement`` (with full attention, on its answer). Arms are numbered in the order of the request; a single
generation is arm 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from avl.trace.codec import pack_exact, pack_scores, unpack_scores

SCHEMA = 2
"""Version of the JSON schema that is written."""

READS = (1, 2)
"""Versions that are read; a clear error is raised for others. Version 2 has scores as codes, ``rest`` and ``mean``."""

MOST_NATS = 500.0
"""Stands for any larger divergence or surprise, infinite ones too, so that all of them can be written, averaged and exponentiated."""


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

    In a later turn of a conversation: ``answers``, this arm's earlier answers, in order; ``reread``: whether the whole conversation, its
    pictures included, is its prompt, rather than what follows on its cache; ``new_tokens``: tokens that its first pass feeds. Earlier
    answers differ between arms, so ``n_text``, ``spans`` and ``text`` are its own, in place of those of ``Start``. None and empty in a
    first turn.
    """

    label: str
    policy: dict[str, Any]
    implementation: str
    title: str = ""
    pruned_from: int | None = None
    predicted: tuple[tuple[int, int], ...] = ()
    spread: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    reread: bool = False
    new_tokens: int | None = None
    n_text: int | None = None
    spans: tuple[tuple[str, int, int], ...] = ()
    text: tuple[str, ...] = ()


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
    (width, height) of each image. ``limit``: max new tokens. ``text``: what each text token of the prompt says, in order; a special token
    by its name; empty in old recordings. ``turn``: number of the question in its conversation, from 1; ``questions``: the earlier ones.
    In a later turn the prompt is all that came before this turn's answer, earlier answers ("generated" in ``spans``) included; ``images``,
    ``grids`` and ``n_image`` count the pictures of all turns so far, in order.
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
    text: tuple[str, ...] = ()
    turn: int = 1
    questions: tuple[str, ...] = ()

    def text_tokens(self, arm: int) -> int:
        """Return how many text tokens an arm's prompt has."""
        own = self.arms[arm].n_text
        return self.n_text if own is None else own


@dataclass(frozen=True)
class Prefill(Event):
    """The prompt, or what a later turn adds, was processed and gave token 0. ``ms``: time to first token.

    ``stored``: KV tokens stored per layer, summed over rows.
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
class TextSets(Event):
    """Text tokens of row 0 that layers lost, by the prompt (t = 0) or by step t. Without any such event a layer stores all text.

    Tokens are numbered: the prompt's text tokens in order, 0 to ``n_text`` - 1, then generated token k as ``n_text`` + k, which step
    k + 1 stores. ``kept``, at t = 0: per layer, the prompt's tokens that are stored, as :func:`pack_bits` over ``n_text``; else None.
    ``gone``: per layer, the tokens that left at step t, ascending; empty at t = 0. A layer stores a token while one of its KV heads does.
    """

    kind: ClassVar[str] = "text"
    arm: int
    t: int
    kept: tuple[str, ...] | None
    gone: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Scores(Event):
    """One query's attention on the image tokens of row 0, per layer, packed over ``n_image`` (0 for tokens not read); see ``codec``.

    At t = 0 the query is the last prompt token. ``shares``: per layer, attention on (system, image, instruction, generated,
    between), with sum 1; recordings made before "between" had a name of its own have four. ``rest``: per layer, the sum over the image
    tokens that ``image`` does not list; None where all layers list all of them. ``mean``: every image token's mean over the layers, as
    codes; "" if it was recorded in schema 1.
    """

    kind: ClassVar[str] = "scores"
    arm: int
    t: int
    image: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...] | None = None
    rest: tuple[float, ...] | None = None
    mean: str = ""

    @classmethod
    def pack(
        cls, arm: int, t: int, image: np.ndarray, shares: Iterable[Iterable[float]], *, exact: bool = False, listed: int | None = None
    ) -> Scores:
        """Pack one pass.

        Args:
            arm: whose.
            t: of which token.
            image: scores ``[layers, n_image]``.
            shares: of the modalities, per layer.
            exact: keep float16 instead of codes.
            listed: the most tokens that a layer lists; None for all of them.

        Raises:
            ValueError: a score is negative or no number.
        """
        packed = tuple(pack_exact(layer) if exact else pack_scores(layer, listed) for layer in image)
        rest = None
        if any(text.startswith("t:") for text in packed):
            unlisted = [np.isnan(unpack_scores(text, image.shape[1])) for text in packed]
            rest = tuple(float(f"{layer[without].sum():.4g}") for layer, without in zip(image, unlisted, strict=True))
        rounded = tuple(tuple(round(float(share), 5) for share in layer) for layer in shares)
        return cls(arm, t, packed, rounded, rest, pack_scores(image.mean(axis=0)))


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


@dataclass(frozen=True)
class Agreement(Event):
    """Full attention's answer, fed token by token through an arm; each list has an entry per token of that answer.

    ``reference``: the arm whose answer it is, None where full attention answered for this alone. ``tokens``/``texts``: the answer, with
    the end of the sequence if it ends with one, and the piece of text of each. ``top``/``top_texts``: the arm's likeliest next token
    where it is not full attention's, None where it is. ``kl``: KL(full || arm) of the next token over the vocabulary, ``nll``/``full_nll``:
    minus the log-probability of the answer's token under the arm and under full attention; nats, of the model's own logits at temperature
    1, with four digits, at most :data:`MOST_NATS`.
    """

    kind: ClassVar[str] = "agreement"
    arm: int
    reference: int | None
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    top: tuple[int | None, ...]
    top_texts: tuple[str | None, ...]
    kl: tuple[float, ...]
    nll: tuple[float, ...]
    full_nll: tuple[float, ...]

    @property
    def share(self) -> float:
        """Share of the tokens at which both find the same token the likeliest."""
        return self.top.count(None) / len(self.top)

    @property
    def mean_kl(self) -> float:
        """Mean of ``kl``."""
        return math.fsum(self.kl) / len(self.kl)

    @property
    def perplexity(self) -> float:
        """Of the answer under the arm."""
        return math.exp(math.fsum(self.nll) / len(self.nll))

    @property
    def full_perplexity(self) -> float:
        """Of the answer under full attention."""
        return math.exp(math.fsum(self.full_nll) / len(self.full_nll))
