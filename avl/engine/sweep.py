"""sweep(): one policy over a range of its parameters on one picture and question, each point against full attention.

A sweep is one request in mode "isolated": full attention first, then point after point. It knows nothing but events, so whatever runs
requests runs sweeps: the page's queue through :func:`with_sweeps`, the library through :func:`sweep`.
"""

from __future__ import annotations

import dataclasses
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from avl.engine.request import MAX_SEED, GenerationRequest, check_stop
from avl.engine.verdict import conclude, unfinished
from avl.policies import AVL, Full, Policy, PromptShape, check_policy
from avl.policies.cost import mean_cost
from avl.policies.plan import Plan, plan
from avl.trace import End, Error, Event, Prefill, Repeat, Start, Step, Warning
from avl.trace.sweeps import Sweep, SweepAxis, SweepEnd, SweepPlanned, SweepPoint, SweepProgress, SweepSkipped, SweepStart

Run = Callable[[GenerationRequest, threading.Event], Iterator[Event]]
"""Run a request, polling the event at every step."""

STANDARD = AVL(S=45, C=30, K=3)
"""What is swept where no policy is named."""

WARM_UP_TOKENS = 4
PROGRESS_SECONDS = 0.25  # between two SweepProgress events

NOTES = (
    "Full attention runs first, then the points in order, one at a time, each with a cache of its own that is freed before the next.",
    "Before the first of them, full attention and the first point answer once, untimed, to warm up.",
    "The picture is resized and cut into patches once; the vision tower runs at every point, as it is part of the time to the first token.",
    "Bytes follow from sizes alone; times are of this machine at this moment.",
)
SINGLE_RUN = "Each point ran once: differences between times may be noise. Repeats give medians."


@dataclass(frozen=True, kw_only=True)
class SweepRequest(GenerationRequest):
    """A request whose policies are full attention and the points of a plan. :func:`sweep_request` makes one.

    Attributes:
        plan: the points.
    """

    plan: Plan


def sweep_request(images: Any, question: str, chosen: Plan, **options: Any) -> SweepRequest:
    """Make the request of a sweep.

    Args:
        images: as for :class:`GenerationRequest`.
        question: likewise.
        chosen: the points.
        options: max_new_tokens, batch, temperature, top_p, seed, repeats; with a temperature and no seed, one is drawn for all points.

    Raises:
        ValueError: as :class:`GenerationRequest`.
    """
    policies = (Full(), *(point.policy for point in chosen.points))
    if options.get("temperature") and options.get("seed") is None:
        options["seed"] = secrets.randbelow(min(MAX_SEED, 2**31))
    return SweepRequest(images, question, policies, plan=chosen, mode="isolated", **options)


def with_sweeps(run: Run) -> Run:
    """Return ``run`` extended: of a :class:`SweepRequest` it yields the events of avl/trace/sweeps.py."""

    def either(request: GenerationRequest, stop: threading.Event) -> Iterator[Event]:
        return events(run, request, stop) if isinstance(request, SweepRequest) else run(request, stop)

    return either


def events(run: Run, request: SweepRequest, stop: threading.Event) -> Iterator[Event]:
    """Run a sweep and yield its events; an Error of the run passes through. Checks at once what ``run`` checks at once."""
    tokens = min(WARM_UP_TOKENS, request.max_new_tokens)
    warm = GenerationRequest(request.images, request.question, request.policies[:2], tokens, "isolated", request.batch)
    # a request's first run pays for compilation, allocation and captures of its shapes
    return _events(request, run(warm, stop), run(request, stop), stop)


def _events(request: SweepRequest, warm_up: Iterator[Event], told: Iterator[Event], stop: threading.Event) -> Iterator[Event]:
    begun = _Sweeping(request)
    for event in warm_up:
        if isinstance(event, Error):
            yield from begun.take(event)
        elif isinstance(event, Prefill):
            yield SweepProgress(None, 0)  # whoever waits hears that the device works
    if not begun.failed:
        for event in told:
            yield from begun.take(event)
    yield begun.end(stop.is_set())


@dataclass
class _Point:
    """What is known of one arm of the request."""

    tokens: int = 0
    end: End | None = None
    runs: list[tuple[float, float | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Sweeping:
    """Turns the events of a request into those of its sweep."""

    def __init__(self, request: SweepRequest) -> None:
        self._request = request
        self._points = [_Point() for _ in request.policies]
        self._start: Start | None = None
        self.failed = False
        self._told = 0.0

    def take(self, event: Event) -> Iterator[Event]:
        """Take in one event of the request and yield those of the sweep."""
        if isinstance(event, Start):
            self._start = event
            yield self._begin(event)
        elif isinstance(event, Prefill | Step):
            yield from self._count(event)
        elif isinstance(event, End):
            yield from self._ended(event)
        elif isinstance(event, Repeat):
            point = self._points[event.arm]
            point.runs.append((event.ttft_ms, event.median_ms))
            if point.end is not None and event.tokens != point.end.tokens:
                point.notes.append(f"Run {event.number + 1} gave another answer.")
            yield self._row(event.arm)
        elif isinstance(event, Warning) and event.arm is not None:
            self._points[event.arm].notes.append(_sentence(event.message))
        elif isinstance(event, Error):
            self.failed = True
            yield dataclasses.replace(event, arm=None)
        elif isinstance(event, Warning):
            yield event

    def _begin(self, start: Start) -> SweepStart:
        chosen, request = self._request.plan, self._request
        shared = {name: value for name, value in chosen.policy.to_dict().items() if name not in {axis.name for axis in chosen.axes}}
        return SweepStart(
            policy=shared,
            title=chosen.policy.title,
            axes=tuple(SweepAxis(axis.name, axis.label, axis.unit, axis.values) for axis in chosen.axes),
            points=tuple(SweepPlanned(point.values, point.policy.label, point.lowered) for point in chosen.points),
            skipped=tuple(SweepSkipped(skipped.values, skipped.reason) for skipped in chosen.skipped),
            repeats=request.repeats,
            notes=NOTES if request.repeats > 1 else (*NOTES, SINGLE_RUN),
            **{
                name: getattr(start, name)
                for name in (
                    *("question", "model", "machine", "date", "n_image", "n_text", "layers", "token_bytes", "batch", "limit"),
                    *("temperature", "top_p", "seed"),
                )
            },
        )

    def _count(self, event: Prefill | Step) -> Iterator[Event]:
        point = self._points[event.arm]
        point.tokens += 1
        if isinstance(event, Prefill) or time.monotonic() - self._told > PROGRESS_SECONDS:
            self._told = time.monotonic()
            yield SweepProgress(event.arm - 1 if event.arm else None, point.tokens)

    def _ended(self, event: End) -> Iterator[Event]:
        if event.reason == "stopped":  # part of an answer is no measurement, and no run at all has none
            return
        point = self._points[event.arm]
        point.end = event
        point.runs.append((event.ttft_ms, event.median_ms))
        yield self._row(event.arm)

    def _row(self, arm: int) -> SweepPoint:
        point, full, request = self._points[arm], self._points[0].end, self._request
        end, policy = point.end, request.policies[arm]
        assert end is not None
        assert full is not None, "full attention comes first, and without it nothing else runs"
        stored, read = self._full_bytes(point.tokens - 1)
        planned = request.plan.points[arm - 1] if arm else None
        middles = [middle for _, middle in point.runs if middle is not None]
        return SweepPoint(
            point=arm - 1 if arm else None,
            values=planned.values if planned else {},
            label=policy.label,
            policy=policy.to_dict(),
            text=end.text,
            tokens=end.tokens,
            reason=end.reason,
            same=end.tokens == full.tokens and end.reason == full.reason,
            identical=_common(end.tokens, full.tokens),
            stored_bytes=end.stored_bytes,
            read_bytes=end.read_bytes,
            stored_share=end.stored_bytes / stored,
            read_share=end.read_bytes / read if read else 0.0,
            peak_bytes=end.peak_bytes,
            ttft_ms=statistics.median(first for first, _ in point.runs),
            median_ms=statistics.median(middles) if middles else None,
            runs=tuple(point.runs),
            notes=(*(f"{text}." for text in (planned.lowered if planned else ())), *point.notes),
        )

    def _shape(self) -> PromptShape:
        assert self._start is not None
        start = self._start
        return PromptShape(start.n_image, start.n_text, start.limit, start.layers)

    def _full_bytes(self, steps: int) -> tuple[float, float]:
        """Return what full attention stores and reads, mean over so many decode steps; without any, what its prompt leaves, and 0."""
        assert self._start is not None
        entry = self._start.token_bytes / self._start.layers * self._start.batch
        cost = mean_cost(Full(), self._shape(), range(1, steps + 1) if steps else [0])
        return cost.stored * entry, cost.read * entry if steps else 0.0

    def end(self, stopped: bool) -> SweepEnd:
        """Return the verdict."""
        rows = {number: self._row(number + 1) for number in range(len(self._points) - 1) if self._points[number + 1].end is not None}
        reason = "failed" if self.failed else "stopped" if stopped else "done"
        if self._points[0].end is None:
            return unfinished(self._request.plan, reason)
        return conclude(self._request.plan, rows, self._row(0), self._shape(), reason)


def _sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:]}{'' if message.endswith('.') else '.'}"


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many tokens two answers begin with alike."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


class Sweeping:
    """A sweep that runs while it is iterated over: it gives the rows, as they are measured.

    Attributes:
        result: everything so far: ``start``, ``rows``, ``end``, ``to_dict()``, ``to_csv()``.
    """

    def __init__(self, told: Iterator[Event]) -> None:
        self.result = Sweep()
        self._told = told

    def events(self) -> Iterator[Event]:
        """Yield every event instead of the rows alone."""
        for event in self._told:
            self.result.add(event)
            yield event

    def __iter__(self) -> Iterator[SweepPoint]:
        """Yield full attention's row, then each point's; with repeats, once more after every run.

        Raises:
            RuntimeError: the run failed; says why in one sentence. ``result`` keeps what was measured.
        """
        for event in self.events():
            if isinstance(event, Error):
                raise RuntimeError(event.message)
            if isinstance(event, SweepPoint):
                yield event

    @property
    def verdict(self) -> SweepEnd:
        """Which points keep the answer. Raises ValueError before the sweep has ended."""
        if self.result.end is None:
            raise ValueError("this sweep has not ended: iterate over it first")
        return self.result.end


def sweep(
    model: Any,
    processor: Any,
    image: Any,
    question: str,
    over: dict[str, Any],
    policy: Policy = STANDARD,
    max_new_tokens: int = 64,
    *,
    stop: threading.Event | None = None,
    **options: Any,
) -> Sweeping:
    """Answer one question under full attention and under ``policy`` at every point of a range, and say which points keep the answer.

    ``for row in avl.sweep(model, processor, image, question, {"S": range(5, 61, 5)})`` runs it; ``.verdict.text`` concludes.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        image: an image or a list of images (PIL, path, bytes, array).
        question: a plain question, or a whole prompt with image placeholders.
        over: one parameter or two, a grid -> values, None for off; at most 64 points. A value that leaves another parameter no room
            lowers it, and the row's notes say so; a combination that is no valid policy is listed in ``result.start.skipped``.
        policy: its other parameters hold everywhere.
        max_new_tokens: most tokens of each answer.
        stop: when set, the sweep ends before its next step.
        options: batch, repeats, temperature, top_p, seed as in :class:`GenerationRequest`.

    Raises:
        ValueError: bad input, or no point is valid; raised before anything runs, in one sentence.
        TypeError: the model's class is not supported.
    """
    from avl.engine.scheduler import run
    from avl.models.families import describe

    check_policy(policy)
    check_stop(stop)
    unknown = [name for name in options if name not in ("batch", "repeats", "temperature", "top_p", "seed")]
    if unknown:
        raise TypeError(f"sweep() has no argument {unknown[0]!r}: it takes batch, repeats, temperature, top_p and seed")
    layers = describe(model).layers
    chosen = plan(policy, over, lambda one: one.check_model(layers))
    request = sweep_request(image, question, chosen, max_new_tokens=max_new_tokens, **options)
    return Sweeping(events(lambda asked, stopped: run(model, processor, asked, stopped), request, stop or threading.Event()))
