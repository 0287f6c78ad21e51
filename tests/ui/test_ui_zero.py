"""ZeroGPU: what is asked for, Stop, failures. Its library is made up here and nothing is forked; test_ui_spaces.py has the real one."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pytest
from fake import Fake
from PIL import Image

import avl
from avl import trace
from avl.engine.request import GenerationRequest
from avl.engine.sweep import STANDARD, sweep_request, with_sweeps
from avl.policies.plan import plan
from avl.ui import durations, hosting, zero
from avl.ui.durations import MOST_SECONDS, SPARE_SECONDS, Durations
from avl.ui.queue import ThreadTransport, batches
from avl.ui.zero import ZeroGPU, ends

VISITOR: contextvars.ContextVar[str] = contextvars.ContextVar("visitor", default="nobody")


@pytest.fixture(autouse=True)
def _forked_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "_age", lambda: 0.25)


class Gpu:
    """Stands in for ``spaces.GPU``: the same process, no GPU. Notes what was asked for, and for whom.

    Args:
        before: is called where the library waits for a GPU; may raise.
        after: changes what comes from the process.
    """

    def __init__(
        self, before: Callable[[], None] = lambda: None, after: Callable[[Iterator[Any]], Iterator[Any]] = lambda items: items
    ) -> None:
        self.asked: list[int] = []
        self.visitors: list[str] = []
        self.closed = threading.Event()
        self._before, self._after = before, after

    def __call__(self, duration: Callable[..., int]) -> Callable[..., Any]:
        def decorate(work: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            def wrapped(*arguments: Any) -> Iterator[Any]:
                self.asked.append(duration(*arguments))
                self.visitors.append(VISITOR.get())
                self._before()
                try:
                    yield from self._after(work(*arguments))
                finally:
                    self.closed.set()

            return wrapped

        return decorate


def request(tokens: int = 5, **options: Any) -> GenerationRequest:
    return GenerationRequest(Image.new("RGB", (48, 48)), "What?", [avl.Full(), avl.AVL(S=45)], tokens, **options)


def quick() -> Fake:
    return Fake(pace=0, prefill=0)


def run(race: ZeroGPU, asked: GenerationRequest | None = None, stop: threading.Event | None = None) -> list[trace.Event]:
    return list(race(asked or request(), stop or threading.Event()))


def errors(events: list[trace.Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, trace.Error)]


def test_a_run_is_the_engines_and_says_what_was_asked_for() -> None:
    gpu, warmed = Gpu(), []
    race = ZeroGPU(quick(), gpu, warmed.append)
    first, second = run(race), run(race)
    (told,) = [event.message for event in first if isinstance(event, trace.Warning) and "ZeroGPU" in event.message]
    assert "a first guess" in told
    assert "the process is new" in told
    (told,) = [event.message for event in second if isinstance(event, trace.Warning) and "ZeroGPU" in event.message]
    assert "the times of earlier runs" in told
    assert "new" not in told
    assert len(warmed) == 1, "a process warms up once"
    plain = list(quick()(request(), threading.Event()))
    assert [event.kind for event in first if "ZeroGPU" not in getattr(event, "message", "")] == [event.kind for event in plain]


def test_the_visitor_is_found_where_the_library_looks() -> None:
    """Whose quota it is, is in the context of the call; the worker thread serves all visitors."""
    gpu = Gpu()
    transport = ThreadTransport(ZeroGPU(quick(), gpu), in_context=True)

    async def one(name: str) -> None:
        VISITOR.set(name)
        job = transport.submit(request(), name)
        async for _ in batches(transport, job, interval=0.01):
            pass

    async def both() -> None:
        await asyncio.gather(asyncio.create_task(one("Ada")), asyncio.create_task(one("Grace")))

    try:
        asyncio.run(both())
    finally:
        transport.close()
    assert sorted(gpu.visitors) == ["Ada", "Grace"]


def test_stop_reaches_the_process() -> None:
    stop, gpu = threading.Event(), Gpu()
    events = []
    for event in ZeroGPU(Fake(pace=0.01, prefill=0), gpu)(request(60), stop):
        events.append(event)
        if sum(isinstance(one, trace.Step) for one in events) == 5:
            stop.set()
    over = [event for event in events if isinstance(event, trace.End)]
    assert [event.reason for event in over] == ["stopped", "stopped"]
    assert 5 <= sum(isinstance(one, trace.Step) for one in events) < 30
    assert gpu.closed.wait(5)


def test_stop_while_there_is_no_gpu_is_at_once() -> None:
    there, stop = threading.Event(), threading.Event()
    gpu = Gpu(before=lambda: there.wait(20) and None)
    stop.set()
    began = time.monotonic()
    assert run(ZeroGPU(quick(), gpu), stop=stop) == []
    assert time.monotonic() - began < 5
    there.set()
    assert gpu.closed.wait(5), "the GPU that comes too late is given back"


def test_a_process_that_does_not_hear_stop_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came so far is the answer."""
    monkeypatch.setattr(zero, "PATIENCE_SECONDS", 0.2)
    stop, let_go = threading.Event(), threading.Event()

    def stuck(items: Iterator[Any]) -> Iterator[Any]:
        steps = 0
        for item in items:
            yield item
            steps += isinstance(item, trace.Step)
            if steps == 4:
                stop.set()
                let_go.wait(20)
                return

    gpu = Gpu(after=stuck)
    events = run(ZeroGPU(quick(), gpu), stop=stop)
    let_go.set()
    over = [event for event in events if isinstance(event, trace.End)]
    assert [event.reason for event in over] == ["stopped", "stopped"]
    for end in over:
        steps = [event for event in events if isinstance(event, trace.Step) and event.arm == end.arm]
        assert len(end.tokens) == 1 + len(steps)
        assert end.clock_ms == steps[-1].clock_ms
    assert gpu.closed.wait(5)


def test_made_ends_are_those_of_the_engine() -> None:
    told = list(quick()(request(), threading.Event()))
    true = [event for event in told if isinstance(event, trace.End)]
    made = ends([event for event in told if not isinstance(event, trace.End)])
    for one, other in zip(made, true, strict=True):
        same = dataclasses.asdict(one) | {"reason": other.reason}
        assert {key: pytest.approx(value) if isinstance(value, float) else value for key, value in same.items()} == dataclasses.asdict(
            other
        )
    assert ends(told) == []


def test_a_run_that_uses_up_what_it_asked_for_is_stopped_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durations, "START", 0.0)
    monkeypatch.setattr(durations, "REST", 0.3)
    monkeypatch.setattr(durations, "PROMPT", 0.0)
    monkeypatch.setattr(durations, "STEP", 0.0)
    gpu = Gpu()
    race = ZeroGPU(Fake(pace=0.02, prefill=0), gpu)
    began = time.monotonic()
    events = run(race, request(900))
    assert gpu.asked == [4]
    assert time.monotonic() - began < 4 < 900 * 2 * 0.02
    assert [event.reason for event in events if isinstance(event, trace.End)] == ["stopped", "stopped"]
    assert errors(events) == ["This run used up the 4 s of GPU that it had asked for. The next one asks for more: run it again."]


def spaces_error(title: str, message: str) -> gr.Error:
    return gr.Error(message, title=title, print_exception=False)


QUOTA = "You have exceeded your free ZeroGPU quota (39s requested vs. 12s left). Try again in 3:20:00. "
FAILURES = {
    "quota": (spaces_error("ZeroGPU quota exceeded", QUOTA), f"ZeroGPU quota exceeded: {QUOTA.strip()}"),
    "killed": (spaces_error("ZeroGPU worker error", "GPU task aborted"), zero.DIED),
    "no start": (
        spaces_error("ZeroGPU worker error", "AssertionError"),
        "ZeroGPU could not start a process for this run (AssertionError): run it again.",
    ),
    "left": (RuntimeError("Connection closed by visitor while queueing"), zero.LEFT),
    "other": (RuntimeError("at /a/secret/path"), "The run failed inside (RuntimeError); the server's log has the details."),
}


@pytest.mark.parametrize("what", FAILURES)
def test_what_the_library_raises_is_one_sentence(what: str) -> None:
    error, words = FAILURES[what]

    def fail() -> None:
        raise error

    race = ZeroGPU(quick(), Gpu(before=fail))
    assert errors(run(race)) == [words]
    assert errors(run(race)) == [words], "and nothing is left of it"


@pytest.mark.parametrize("lost", [False, True])
def test_what_the_process_raises_is_told_by_it(lost: bool) -> None:
    """A process whose GPU is lost raises on, so that the library does not use it again."""
    raised = []

    def after(items: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from items
        except Exception as error:
            raised.append(error)
            raise spaces_error("ZeroGPU worker error", type(error).__name__) from None

    def race(_: GenerationRequest, __: threading.Event) -> Iterator[trace.Event]:
        raise RuntimeError("CUDA error: device-side assert triggered" if lost else "at /a/secret/path")
        yield

    (told,) = errors(run(ZeroGPU(race, Gpu(after=after))))
    assert told == (zero.sentence(RuntimeError("CUDA error: device-side assert triggered")) if lost else FAILURES["other"][1])
    assert bool(raised) == lost


def test_a_model_that_cannot_warm_up_says_why() -> None:
    def warm_up(_: threading.Event) -> None:
        raise OSError("the model x loads but cannot run here: no")

    assert errors(run(ZeroGPU(quick(), Gpu(), warm_up))) == ["the model x loads but cannot run here: no"]


# what is asked for


def told(prompt_ms: float, step_ms: float, tokens: int = 96) -> list[trace.Event]:
    clock = prompt_ms + step_ms * (tokens - 1)
    return [trace.End(arm, "length", "x", tuple(range(tokens)), prompt_ms, step_ms, clock, 1.0, 1.0, 1) for arm in (0, 1)]


def test_the_guess_is_safe_for_a_7b_model_and_leaves_a_visitor_some_quota() -> None:
    need = Durations().need(request(96))
    assert not need.measured
    assert 20 + 2 * 96 * 0.03 < need.asked <= 45


def test_what_is_asked_for_follows_what_was_measured() -> None:
    known = Durations()
    known.started(6.0)
    known.ran(request(96), told(80, 30), 0.5 + 2 * (0.08 + 95 * 0.03))
    need = known.need(request(96))
    assert need.measured
    assert need.seconds == pytest.approx(6 + 0.5 + 2 * (0.08 + 96 * 0.03), abs=0.05)
    assert need.asked == -int(-(need.seconds * 1.5 + SPARE_SECONDS) // 1)
    slower = known.need(request(96, batch=16))
    assert slower.seconds > need.seconds
    for _ in range(9):  # a GPU that is faster from now on
        known.ran(request(96), told(40, 10), 2.0)
    assert known.need(request(96)).seconds < need.seconds
    assert known.need(request(96, repeats=3)).seconds > 2 * known.need(request(96)).seconds - 8
    assert known.need(request(96, agreement=True)).seconds > known.need(request(96)).seconds


def test_too_much_is_refused_where_it_is_known_and_tried_where_it_is_a_guess() -> None:
    known = Durations()
    assert known.need(request(96, repeats=50)).asked == MOST_SECONDS
    known.ran(request(96), told(80, 30), 7.0)
    with pytest.raises(ValueError, match=r"would take about \d+ s of ZeroGPU, 77 s is the most here: lower the new tokens"):
        known.need(request(96, repeats=50))


def test_one_slow_hour_shuts_nobody_out() -> None:
    """Who is refused cannot show that it has passed."""
    known = Durations()
    known.ran(request(96), told(80, 30), 7.0)
    known.ran(request(96), told(80, 30), 7.0)
    known.started(400.0)
    known.ran(request(96), told(60_000, 3_000), 900.0)
    need = known.need(request(96))
    assert need.asked == MOST_SECONDS
    known.fell_short(need)
    assert known.need(request(96)).asked == MOST_SECONDS


def test_a_run_that_failed_teaches_nothing() -> None:
    known = Durations()
    known.ran(request(96), [trace.Error("no")], 30.0)
    assert not known.need(request(96)).measured


def test_sweeps_run_there_and_teach_too() -> None:
    gpu = Gpu()
    race = ZeroGPU(with_sweeps(quick()), gpu)
    asked = sweep_request([Image.new("RGB", (48, 48))], "What?", plan(STANDARD, {"S": [20, 40]}), max_new_tokens=5)
    first, second = run(race, asked), run(race, asked)
    assert [events[-1].kind for events in (first, second)] == ["sweep_end"] * 2
    assert gpu.asked[1] < gpu.asked[0]


# where the page runs


@pytest.mark.parametrize(
    ("environment", "device", "said"),
    [
        ({}, "cuda:0", ()),
        ({"SPACE_ID": "a/b"}, "cpu", (hosting.CPU,)),
        ({"SPACE_ID": "a/b"}, "cuda:0", (hosting.GPU,)),
        ({"SPACE_ID": "a/b", "SPACES_ZERO_GPU": "true"}, "cuda:0", (hosting.ZERO,)),
        ({"SPACE_ID": "a/b", "SPACES_ZERO_GPU": "false"}, "cuda:0", (hosting.GPU,)),
    ],
)
def test_a_space_says_what_it_runs_on(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], device: str, said: tuple[str, ...]
) -> None:
    for name in ("SPACE_ID", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosting.notes(device) == said


def test_zero_gpu_without_its_library_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(__import__("sys").modules, "spaces", None)
    with pytest.raises(OSError, match="package spaces cannot be imported"):
        hosting.zero_gpu()
    monkeypatch.delenv("SPACES_ZERO_GPU")
    assert hosting.zero_gpu() is None
