"""Run one request under one policy; time each step and yield events."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from avl.cache.cache import AdaptiveCache
from avl.cache.evictions import Freed, TextTokens
from avl.cache.inspect import ImageSetsLater
from avl.cache.readback import Readback
from avl.engine.cuda_graphs import GraphDecoder, make_decoder
from avl.engine.decoder import Decoder, Stopped
from avl.engine.lanes import Lane
from avl.engine.not_finite import NotFiniteError, explain
from avl.engine.request import GenerationRequest
from avl.engine.sampling import NOT_FINITE
from avl.engine.text import TextStream
from avl.engine.timing import Clock, Span
from avl.telemetry import Meter
from avl.trace import End, Event, Prefill, Reading, Repeat, Scores, Sets, Step, TextSets, Warning, pack_bits

MS_DIGITS = 4  # of times in milliseconds: no clock here is finer, and a trace holds thousands of them
_READ_EVERY = 8  # steps between two memory readings
_SETS_EVERY = 4  # steps between two Sets of a policy whose stored image tokens change at every step


def steps_ahead(request: GenerationRequest, devices: set[torch.device]) -> int:
    """Return how many steps are queued beyond the one that is reported next.

    With one step ahead, a GPU never waits while the host reads a token, checks for the end of the sequence or yields events. A sampled
    token is chosen on the host, so no step can be queued behind it; and work on several devices is timed by waiting for it.
    """
    return 1 if request.temperature == 0 and [device.type for device in devices] == ["cuda"] else 0


@dataclass
class _Queued:
    """A step that is queued but not yet reported: counts known on the host, and results that the device still computes."""

    span: Span
    tokens: torch.Tensor
    ids: Readback
    update: bool
    stored: int
    read: int
    stored_bytes: int
    read_bytes: int
    sets: ImageSetsLater | None
    freed: Freed | None


class Runner:
    """One run: a request under one policy, with its cache, its clock and its progress.

    Attributes:
        number: of its arm.
        policy: what to store and read.
        job: the model and inputs.
        later: what it continues, None for a prompt of its own.
        times: milliseconds of every reported step; one more may be queued.
        fed: the tokens ``[B]`` that every pass so far has chosen.
        reason: why the run ended, None while it continues.
        ttft_ms: time to first token.
        tokens: the newest tokens ``[B]``, None before prefill.
    """

    def __init__(self, lane: Lane, meter: Meter) -> None:
        self.number, self.policy, self.job = lane.number, lane.policy, lane.job
        self.later, job = lane.later, lane.job
        self.times: list[float] = []
        self.fed: list[torch.Tensor] = []
        self.reason: str | None = None
        self.ttft_ms = 0.0
        self.tokens: torch.Tensor | None = None
        self._meter = meter
        self._keeps = lane.keeps
        self._cache: AdaptiveCache | None = job.make_cache(lane.policy) if lane.later is None else lane.later.cache
        self._decoder: Decoder | None = make_decoder(job.model, self._cache)
        self._text = TextStream(job.processor.tokenizer)
        self._devices = {parameter.device for parameter in job.model.parameters()}
        self._clock = Clock(*self._devices)
        self._chooser = job.make_chooser()
        # stop strings look at what came before; the prompt is part of it, as in model.generate
        self._sequences = job.inputs["input_ids"].cpu() if job.settings.stop_strings is not None else None
        self._queued: deque[_Queued] = deque()
        # a step beyond the end of an answer would be in the next turn's cache
        self._ahead = 0 if lane.keeps is not None else steps_ahead(job.request, self._devices)
        self._stored: list[int] = []
        self._read: list[int] = []
        self._finished_rows = torch.zeros(self.cache.batch_size, dtype=torch.bool)
        self._last_sets: list[list[int]] | None = None
        self._text_tokens: TextTokens | None = None

    @property
    def cache(self) -> AdaptiveCache:
        """The run's cache, until :meth:`close`."""
        assert self._cache is not None, "this run is closed"
        return self._cache

    @property
    def decoder(self) -> Decoder:
        """The run's decoder, until :meth:`close`."""
        assert self._decoder is not None, "this run is closed"
        return self._decoder

    @property
    def clock_ms(self) -> float:
        return round(self.ttft_ms + sum(self.times), MS_DIGITS)

    @property
    def t(self) -> int:
        return len(self.times)

    @property
    def answer(self) -> list[int]:
        """The answer of row 0, with the end of the sequence where it ends with one."""
        told = list(self._text.ids)
        end = [int(tokens[0]) for tokens in self.fed[len(told) : len(told) + 1]]
        return told + [token for token in end if token in self.job.settings.eos]

    def prefill(self, stop: threading.Event | None = None) -> Iterator[Event]:
        """Run the first pass, choose token 0, and yield their events; end the run where ``stop`` is set between two pieces of a prompt."""
        self._clock.start()
        try:
            if self.later is None:
                logits = self.decoder.prefill(self.job.inputs, stop)
            else:
                logits = self.decoder.extend([self.later.new], stop, [self.later.pictures])
        except Stopped:
            yield from self.stop()
            return
        self.tokens, told = self._chooser.choose(logits)
        self.ttft_ms = round(self._clock.stop(), MS_DIGITS)
        tokens, ids = self.tokens, told.tolist()
        piece = self._take(tokens, ids)
        cache = self.cache
        yield Prefill(
            arm=self.number,
            ms=self.ttft_ms,
            token=ids[0],
            text=piece,
            stored=tuple(cache.stored_tokens),
            stored_bytes=cache.stored_bytes,
            peak_bytes=cache.peak_bytes,
        )
        yield from self._report_sets(self._sets())
        self._text_tokens = TextTokens(cache)
        kept = self._text_tokens.prompt
        if kept is not None:
            n = cache.rows[0].n_text
            yield TextSets(self.number, 0, tuple(pack_bits(tokens, n) for tokens in kept))
        yield Reading(self.number, self.clock_ms, **self._meter.read())
        yield from self._prepare()
        yield from self._end()

    def _prepare(self) -> Iterator[Event]:
        """Warn about what slows steps down, and capture them as CUDA graphs if possible; once per answer, outside of all timings."""
        if self.decoder.unfused is not None and self.reason is None:
            yield Warning(f"decode steps run the model's own modules, which takes longer: {self.decoder.unfused}", self.number)
        if not isinstance(self.decoder, GraphDecoder) or self.reason is not None:
            return
        self.decoder.prepare()
        if self.decoder.problem is None:
            what = "warmed up, checked and captured" if self.decoder.warmed else "captured"
            took = self.decoder.prepare_ms
            yield Warning(f"decode steps were {what} as CUDA graphs, which took {took:.0f} ms and is in no step's time", self.number)
        else:
            yield Warning(f"CUDA graphs cannot be used here, so every step pays its launches: {self.decoder.problem}", self.number)

    def step(self) -> Iterator[Event]:
        """Queue the next step, and report the oldest queued one unless fewer steps are queued than may run ahead."""
        if self.t + len(self._queued) + 1 < self.job.request.max_new_tokens:
            self._queue()
            if len(self._queued) <= self._ahead:
                return
        yield from self._report(self._queued.popleft())

    def _queue(self) -> None:
        """Feed the last token and choose the next; does not wait for a GPU."""
        assert self.tokens is not None
        span = Span(*self._devices)
        self.tokens, told = self._chooser.choose(self.decoder.step(self.tokens))
        span.end()
        cache = self.cache
        stored, read = sum(cache.stored_tokens), sum(cache.read_tokens)
        assert self._text_tokens is not None
        self._queued.append(
            _Queued(
                span=span,
                tokens=self.tokens,
                ids=Readback(told),
                update=cache.update_step,
                stored=stored,
                read=read,
                stored_bytes=cache.stored_bytes,
                read_bytes=cache.read_bytes,
                sets=self._sets(),
                freed=self._text_tokens.freed(cache.t),
            )
        )

    def _report(self, step: _Queued) -> Iterator[Event]:
        """Wait for a step and yield its events."""
        self.times.append(round(step.span.ms(), MS_DIGITS))
        ids = step.ids.get().tolist()
        piece = self._take(step.tokens, ids)
        self._stored.append(step.stored_bytes)
        self._read.append(step.read_bytes)
        yield Step(
            arm=self.number,
            t=self.t,
            token=ids[0],
            text=piece,
            ms=self.times[-1],
            clock_ms=self.clock_ms,
            stored=step.stored,
            read=step.read,
            stored_bytes=step.stored_bytes,
            read_bytes=step.read_bytes,
            update=step.update,
        )
        yield from self._report_sets(step.sets)
        yield from self._report_text(step.freed)
        if self.t % _READ_EVERY == 0:
            yield Reading(self.number, self.clock_ms, **self._meter.read())
        yield from self._end()

    def stop(self) -> Iterator[Event]:
        """End the run before its answer is complete."""
        self.reason = "stopped"
        self._queued.clear()
        yield from self._end()

    def _take(self, tokens: torch.Tensor, ids: list[int]) -> str:
        """Note the new tokens ``[B]``, whose ``ids`` are on the host; return the piece of text they add to row 0.

        Raises:
            NotFiniteError: a row that goes on has no usable logits.
        """
        settings, finished = self.job.settings, self._finished_rows
        for row, token in enumerate(ids):
            if token == NOT_FINITE and not finished[row]:
                raise NotFiniteError(explain(self.cache, row, len(self.fed), settings.stated), self.number)
        self.fed.append(tokens)
        over = bool(finished[0])
        piece = "" if over or ids[0] in settings.eos else self._text.add(ids[0])
        for row, token in enumerate(ids):
            if token in settings.eos:
                finished[row] = True
        if bool(finished.all()):
            self.reason = "eos"
        elif self._completes_stop_string(ids):
            self.reason = "stop_string"
        elif self.t + 1 >= self.job.request.max_new_tokens:
            self.reason = "length"
        elif settings.max_time is not None and self.clock_ms > 1000 * settings.max_time:
            self.reason = "time"
        if not over and (finished[0] or self.reason is not None):
            piece += self._text.finish()
        return piece

    def _completes_stop_string(self, ids: list[int]) -> bool:
        """Mark rows that end with a stop string as finished; return whether all rows now are."""
        stop_strings = self.job.settings.stop_strings
        if self._sequences is None or stop_strings is None:
            return False
        self._sequences = torch.cat([self._sequences, torch.tensor(ids)[:, None]], dim=-1)
        self._finished_rows |= stop_strings(self._sequences, None)  # type: ignore[arg-type]
        return bool(self._finished_rows.all())

    def _sets(self) -> ImageSetsLater | None:
        """Return the image tokens that row 0 stores and reads after the last queued step, None if they cannot have changed."""
        cache, t = self.cache, self.cache.t
        if t == 0 or (cache.update_step if self.policy.pins_image else t % _SETS_EVERY == 0):
            return ImageSetsLater(cache, 0)
        return None

    def _report_sets(self, later: ImageSetsLater | None) -> Iterator[Event]:
        """Yield the sets unless they are the ones reported before."""
        if later is None:
            return
        cache, policy = self.cache, self.policy
        first = self.t == 0
        n = cache.rows[0].n_image
        sets = later.get()
        stored = [members for members, _ in sets]
        selects = any(policy.select(layer, cache.buckets[0].shape) is not None for layer in range(len(sets)))
        same = stored == self._last_sets
        if same and not selects:
            return
        self._last_sets = stored
        yield Sets(
            arm=self.number,
            t=self.t,
            stored=None if same else tuple(pack_bits(members, n) for members in stored),
            core=tuple(pack_bits(core, n) for _, core in sets) if selects else None,
            pruned=pack_bits(cache.pruned[0], n) if first and 0 in cache.pruned else None,
        )

    def _report_text(self, freed: Freed | None) -> Iterator[Event]:
        """Yield the text tokens that the step took away, if any."""
        assert self._text_tokens is not None
        gone = self._text_tokens.follow(self.t, freed)
        if gone is not None:
            yield TextSets(self.number, self.t, None, tuple(map(tuple, gone)))

    def _end(self) -> Iterator[Event]:
        if self.reason is None:
            return
        yield End(
            arm=self.number,
            reason=self.reason,
            text=self._text.text,
            tokens=tuple(self._text.ids),
            ttft_ms=self.ttft_ms,
            median_ms=statistics.median(self.times) if self.times else None,
            clock_ms=self.clock_ms,
            stored_bytes=statistics.fmean(self._stored) if self._stored else float(self.cache.stored_bytes),
            read_bytes=statistics.fmean(self._read) if self._read else 0.0,
            peak_bytes=self.cache.peak_bytes,
        )

    def close(self) -> None:
        """Hand the cache on where another turn will continue it, else free its memory; tokens and times stay."""
        if self._keeps is not None and self._cache is not None:
            self._keeps(self)
        self._cache = self._decoder = self._text_tokens = None

    def again(self, number: int) -> Repeat:
        """Return the times and tokens of this run as those of repeat ``number``."""
        middle = statistics.median(self.times) if self.times else None
        return Repeat(self.number, number, self.ttft_ms, middle, self.clock_ms, self.reason or "stopped", tuple(self._text.ids))


def attention(runner: Runner, listed: int | None = None, stop: threading.Event | None = None) -> Iterator[Scores]:
    """Replay the tokens of a finished run and yield the attention of every pass.

    Recording computes all scores in every layer; replaying the answer keeps that out of the run's own timings.

    Args:
        runner: whose answer.
        listed: image tokens that each layer lists per pass after the prompt's, as :func:`avl.trace.listed_tokens`.
        stop: ends it when set.
    """
    job, later = runner.job, runner.later
    try:
        if later is None:
            cache = job.make_cache(runner.policy)
            cache.record()
        else:
            cache = later.again(stop)
            cache.extend([len(later.new)], job.request.max_new_tokens, [later.said], [later.image])
    except Stopped:
        return
    recorder, decoder = cache.recorder, Decoder(job.model, cache)
    assert recorder is not None
    for t in range(len(runner.fed)):
        if t:
            decoder.step(runner.fed[t - 1])
        else:
            try:
                if later is None:
                    decoder.prefill(job.inputs, stop)
                else:
                    decoder.extend([later.new], stop, [later.pictures])
            except Stopped:
                return
        layers = recorder.layers()
        image, shares = np.stack([layer.image for layer in layers]), [layer.shares for layer in layers]
        exact = job.request.scores_bytes is None
        yield Scores.pack(runner.number, t, image, shares, exact=exact, listed=listed if t else None)
