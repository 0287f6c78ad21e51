"""stream() and race(): prompt, steps, events. The one place where a request becomes a generation.

Knows neither Gradio nor threads. Arms of a race never overlap on the device, and every step is timed on its own.
"""

from __future__ import annotations

import datetime
import statistics
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from avl.architectures import describe
from avl.attachment import attach
from avl.attention import decode_implementation
from avl.cache import AdaptiveCache, make_cache
from avl.decode import Decoder, next_tokens
from avl.models import image_grids, model_name, open_image, prepare, repeat
from avl.policies import Policy
from avl.telemetry import Clock, Meter, machine_card
from avl.trace import Arm, End, Error, Event, Prefill, Scores, Sets, Start, Step, Warning, pack_bits, pack_scores

MODES = ("race", "isolated")
_READ_EVERY = 8  # steps between two memory readings of an arm
_SETS_EVERY = 4  # steps between two Sets of a policy whose stored image tokens change at every step


@dataclass(frozen=True)
class _Request:
    """What all arms of a run share."""

    model: Any
    processor: Any
    inputs: dict[str, Any]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    eos: frozenset[int]
    scores: bool


class _Text:
    """Token ids to text, piece by piece; a piece may be empty while a character is incomplete."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.ids: list[int] = []
        self.text = ""

    def add(self, token: int) -> str:
        """The piece that ``token`` adds."""
        self.ids.append(token)
        text = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        if text.endswith("\ufffd") or not text.startswith(self.text):
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece

    def finish(self) -> str:
        """The whole answer."""
        return self._tokenizer.decode(self.ids, skip_special_tokens=True).strip()


@dataclass
class _Runner:
    """One arm: its cache, its clock and how far it is."""

    number: int
    policy: Policy
    request: _Request
    meter: Meter
    cache: AdaptiveCache
    times: list[float] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    reason: str | None = None
    ttft_ms: float = 0.0

    def __post_init__(self) -> None:
        self.recorder = self.cache.record() if self.request.scores else None
        self.decoder = Decoder(self.request.model, self.cache)
        self.text = _Text(self.request.processor.tokenizer)
        self.clock = Clock(self.request.model.device)
        self.generator = None
        if self.request.temperature > 0 and self.request.seed is not None:
            self.generator = torch.Generator().manual_seed(self.request.seed)
        self.tokens: torch.Tensor | None = None
        self.finished_rows = torch.zeros(self.cache.batch_size, dtype=torch.bool)
        self.last_sets: list[list[int]] | None = None

    @property
    def clock_ms(self) -> float:
        return self.ttft_ms + sum(self.times)

    @property
    def t(self) -> int:
        return len(self.times)

    def prefill(self) -> Iterator[Event]:
        """The prompt and token 0."""
        self.clock.start()
        tokens = self._choose(self.decoder.prompt(self.request.inputs))
        self.ttft_ms = self.clock.stop()
        piece = self._take(tokens)
        cache = self.cache
        yield Prefill(
            arm=self.number,
            ms=self.ttft_ms,
            token=self._first(tokens),
            text=piece,
            stored=tuple(cache.stored_tokens),
            stored_bytes=cache.stored_bytes,
            peak_bytes=cache.peak_bytes,
        )
        yield from self._sets()
        yield from self._scores()
        yield self.meter.read(self.number, self.clock_ms)
        yield from self._end()

    def step(self) -> Iterator[Event]:
        """Feed the last token, choose the next."""
        assert self.tokens is not None
        self.clock.start()
        tokens = self._choose(self.decoder.step(self.tokens))
        self.times.append(self.clock.stop())
        piece = self._take(tokens)
        cache = self.cache
        stored, read = sum(cache.stored_tokens), sum(cache.read_tokens)
        self.stored.append(cache.stored_bytes)
        self.read.append(cache.read_bytes)
        yield Step(
            arm=self.number,
            t=self.t,
            token=self._first(tokens),
            text=piece,
            ms=self.times[-1],
            clock_ms=self.clock_ms,
            stored=stored,
            read=read,
            stored_bytes=self.stored[-1],
            read_bytes=self.read[-1],
            update=cache.update_step,
        )
        yield from self._sets()
        yield from self._scores()
        if self.t % _READ_EVERY == 0:
            yield self.meter.read(self.number, self.clock_ms)
        yield from self._end()

    def stop(self) -> Iterator[Event]:
        """End before the answer is complete."""
        self.reason = "stopped"
        yield from self._end()

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        request = self.request
        return next_tokens(logits, request.temperature, request.top_p, self.generator)

    @staticmethod
    def _first(tokens: torch.Tensor) -> int:
        return int(tokens[0])

    def _take(self, tokens: torch.Tensor) -> str:
        """Note the new tokens; the piece of text they add to row 0."""
        self.tokens = tokens
        ids = tokens.tolist()
        over = bool(self.finished_rows[0])
        for row, token in enumerate(ids):
            if token in self.request.eos:
                self.finished_rows[row] = True
        piece = "" if over or self.finished_rows[0] else self.text.add(ids[0])
        if bool(self.finished_rows.all()):
            self.reason = "eos"
        elif self.t + 1 >= self.request.max_new_tokens:
            self.reason = "length"
        return piece

    def _sets(self) -> Iterator[Event]:
        """What row 0 stores and reads of its image, when that has changed."""
        cache, policy = self.cache, self.policy
        first = self.t == 0
        if not first and not (cache.update_step if policy.pins_image else self.t % _SETS_EVERY == 0):
            return
        n = cache.rows[0].n_image
        sets = cache.image_sets(0)
        stored = [members for members, _ in sets]
        selects = any(policy.select(layer, n) is not None for layer in range(len(sets)))
        same = stored == self.last_sets
        if same and not selects:
            return
        self.last_sets = stored
        yield Sets(
            arm=self.number,
            t=self.t,
            stored=None if same else tuple(pack_bits(members, n) for members in stored),
            core=tuple(pack_bits(core, n) for _, core in sets) if selects else None,
            pruned=pack_bits(cache.pruned[0], n) if first and 0 in cache.pruned else None,
        )

    def _scores(self) -> Iterator[Event]:
        """The pass's attention, where it is recorded."""
        if self.recorder is None:
            return
        layers = self.recorder.layers()
        image, shares = tuple(pack_scores(layer.image) for layer in layers), tuple(layer.shares for layer in layers)
        yield Scores(arm=self.number, t=self.t, image=image, shares=shares)

    def _end(self) -> Iterator[Event]:
        if self.reason is None:
            return
        yield End(
            arm=self.number,
            reason=self.reason,
            text=self.text.finish(),
            tokens=tuple(self.text.ids),
            ttft_ms=self.ttft_ms,
            median_ms=statistics.median(self.times) if self.times else None,
            clock_ms=self.clock_ms,
            stored_bytes=statistics.fmean(self.stored) if self.stored else float(self.cache.stored_bytes),
            read_bytes=statistics.fmean(self.read) if self.read else 0.0,
            peak_bytes=self.cache.peak_bytes,
        )


def stream(
    model: Any,
    processor: Any,
    image: Any,
    question: str,
    policy: Policy,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    batch: int = 1,
    stop: threading.Event | None = None,
    scores: bool = False,
) -> Iterator[Event]:
    """Answer one question under one policy, event by event (see avl/trace.py). The fast path; attaches the model if it is not.

    Args:
        model, processor: from ``avl.load``. image: a picture or a list of them (PIL, path, bytes, array).
        question: a plain question, or a whole prompt with image placeholders. policy: what to store and read.
        max_new_tokens: most tokens of the answer. temperature: 0 for greedy. top_p: in (0, 1]. seed: of the sampling.
        batch: the same request so many times at once; events speak of row 0. stop: set it, and the run ends before the next step.
        scores: record the attention of every pass (Scores events); steps take longer for it.

    Raises:
        ValueError: bad input, one sentence, before anything runs. TypeError: an unsupported model.
    """
    return _run(
        model, processor, image, question, [policy], max_new_tokens, "single", batch, temperature, top_p, seed, stop, scores
    )


def race(
    model: Any,
    processor: Any,
    images: Any,
    question: str,
    policies: Sequence[Policy],
    *,
    max_new_tokens: int = 64,
    mode: str = "race",
    batch: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: threading.Event | None = None,
    scores: bool = False,
) -> Iterator[Event]:
    """Answer one question under several policies, one arm each, on a fair clock.

    ``mode``: "race": the arm with less accumulated compute time steps next, so that the faster one is ahead exactly as it would be alone;
    "isolated": one arm after the other, each one's cache freed before the next begins, so that memory readings belong to one arm.
    Everything else as :func:`stream`.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: use {' or '.join(MODES)}")
    if not policies:
        raise ValueError("there is nothing to compare: pass at least one policy")
    return _run(
        model, processor, images, question, list(policies), max_new_tokens, mode, batch, temperature, top_p, seed, stop, scores
    )


def _run(
    model: Any,
    processor: Any,
    images: Any,
    question: str,
    policies: list[Policy],
    max_new_tokens: int,
    mode: str,
    batch: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    stop: threading.Event | None,
    scores: bool,
) -> Iterator[Event]:
    """Check everything now, not at the first ``next``; then hand out the generator."""
    facts = describe(model)
    attach(model)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch={batch!r} is out of range: it is a whole number of at least 1")
    if not 0 <= temperature <= 10:
        raise ValueError(f"temperature={temperature!r} is out of range: 0 (greedy) to 10")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p!r} is out of range: above 0 and at most 1")
    pictures = [open_image(image) for image in (images if isinstance(images, list | tuple) else [images])]
    inputs, prompt = prepare(model, processor, pictures, question)
    eos = model.generation_config.eos_token_id
    request = _Request(
        model=model,
        processor=processor,
        inputs=repeat(inputs, batch),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        eos=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
        scores=scores,
    )
    # allocates nothing; raises before the run if anything does not fit
    caches = [make_cache(model, request.inputs, policy, max_new_tokens) for policy in policies]
    row = caches[0].rows[0]
    sizes = [picture.size for picture in pictures]
    kind = model.dtype.itemsize
    start = Start(
        arms=tuple(Arm(policy.label, policy.to_dict(), decode_implementation(model.device)) for policy in policies),
        mode=mode,
        question=question,
        prompt=prompt,
        model={
            "name": model_name(model),
            "class": facts.name,
            "revision": getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "layers": facts.layers,
            "heads": facts.heads,
            "kv_heads": facts.kv_heads,
            "head_dim": facts.head_dim,
        },
        machine=machine_card(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        n_image=row.n_image,
        n_text=row.n_text,
        spans=row.spans,
        images=tuple(sizes),
        grids=image_grids(model, processor, sizes),
        layers=facts.layers,
        token_bytes=2 * facts.layers * facts.kv_heads * facts.head_dim * kind,
        batch=batch,
        limit=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    return _events(request, policies, start, stop or threading.Event())


@torch.inference_mode()
def _events(request: _Request, policies: list[Policy], start: Start, stop: threading.Event) -> Iterator[Event]:
    yield start
    if start.batch > 1:
        yield Warning(f"the request runs {start.batch} times at once; text and sets are those of row 0, bytes those of all rows")
    try:
        if start.mode == "isolated":
            for number, policy in enumerate(policies):
                yield from _race(request, [(number, policy)], stop)
        else:
            yield from _race(request, list(enumerate(policies)), stop)
    except torch.OutOfMemoryError:
        yield Error("the device ran out of memory: lower the batch, S, or max new tokens, or use a smaller image")


def _race(request: _Request, arms: list[tuple[int, Policy]], stop: threading.Event) -> Iterator[Event]:
    meter = Meter(request.model.device)
    runners = [
        _Runner(number, policy, request, meter, make_cache(request.model, request.inputs, policy, request.max_new_tokens))
        for number, policy in arms
    ]
    waiting = list(runners)
    while waiting:
        # the arm that used less time is next: prompts in order first, then it is ahead exactly as it would be alone
        runner = min(waiting, key=lambda runner: (runner.tokens is not None, runner.clock_ms))
        if stop.is_set():
            yield from runner.stop()
        elif runner.tokens is None:
            yield from runner.prefill()
        else:
            yield from runner.step()
        if runner.reason is not None:
            waiting.remove(runner)
