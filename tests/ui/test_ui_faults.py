"""Faults put in on purpose, of the engine, the device, its thread, readers and the disk: each is held, said, and over."""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake import Fake
from PIL import Image
from programs import Program, data_uri
from random_models import shared_model, shared_processor

import avl
from avl import trace
from avl.cache.cache import AdaptiveCache
from avl.engine import decoder, scheduler
from avl.engine.failures import OUT_OF_MEMORY, device_lost, out_of_memory
from avl.engine.request import GenerationRequest
from avl.ui import shutdown
from avl.ui.errors import Busy, sentence
from avl.ui.job import Job
from avl.ui.limits import Limits
from avl.ui.queue import ThreadTransport, batches

ARMS = [{"policy": "Full"}, {"policy": "AVL"}]
MEMORY = (
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    ),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)
LOST = (
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
)
INSIDE = (RuntimeError("at /a/secret/path"), KeyError("/a/secret/path"), AssertionError(), ZeroDivisionError(), OSError(5, "x"))
ENDS = (SystemExit(), KeyboardInterrupt(), GeneratorExit())


def request(tokens: int = 12, **changes: Any) -> GenerationRequest:
    changes.setdefault("policies", (avl.Full(), avl.AVL(S=45, C=30)))
    return GenerationRequest((Image.new("RGB", (48, 48)),), "What?", max_new_tokens=tokens, **changes)


def failing(error: BaseException, place: str) -> Callable[..., Iterator[trace.Event]]:
    """An engine that fails once: before its first event, in the middle, or while it is closed; then it is well."""
    fake = Fake(pace=0, prefill=0)
    times = []

    def race(asked: GenerationRequest, stop: threading.Event) -> Iterator[trace.Event]:
        times.append(1)
        if len(times) > 1:
            yield from fake(asked, stop)
            return
        if place == "first":
            raise error
        for number, event in enumerate(fake(asked, stop)):
            if place == "middle" and number == 5:
                raise error
            yield event
        raise error

    return race


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[ThreadTransport] = []

    def start(race: Any, **limits: Any) -> ThreadTransport:
        made.append(ThreadTransport(race, Limits(**limits)))
        return made[-1]

    yield start
    for transport in made:
        transport.close()


async def drain(transport: ThreadTransport, job: Job, **options: Any) -> list[trace.Event]:
    return [event async for batch in batches(transport, job, interval=0.01, heartbeat=0.05, **options) for event in batch]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("error", [*MEMORY, *INSIDE, *ENDS], ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_a_failure_is_said_and_the_next_run_is_whole(make: Any, error: BaseException, place: str) -> None:
    transport = make(failing(error, place))

    async def go() -> tuple[list[trace.Event], list[trace.Event], Job]:
        one, two = transport.submit(request(), "a"), transport.submit(request(), "b")
        return await drain(transport, one), await drain(transport, two), one

    failed, whole, job = asyncio.run(asyncio.wait_for(go(), 20))
    assert isinstance(failed[-1], trace.Error)
    assert failed[-1].message.endswith((".", "try again."))
    assert "/a/secret" not in failed[-1].message
    assert ("memory" in failed[-1].message) == (error in MEMORY)
    assert job.outcome == "failed"
    assert [event.reason for event in whole if isinstance(event, trace.End)] == ["length", "length"]
    assert transport.alive
    assert transport.trouble is None
    assert transport.load == (0, 0)


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[12:40])
def test_a_lost_device_takes_no_more_runs(make: Any, error: RuntimeError) -> None:
    transport = make(failing(error, "middle"))

    async def go() -> tuple[list[trace.Event], list[trace.Event]]:
        one, two = transport.submit(request(), "a"), transport.submit(request(), "b")
        told = await drain(transport, one), await drain(transport, two)
        with pytest.raises(Busy, match="restarted"):
            transport.submit(request(), "c")
        return told

    for events in asyncio.run(go()):
        assert "restarted" in events[-1].message
    assert transport.trouble[0] == "failed"


def test_memory_and_lost_devices_are_told_apart() -> None:
    assert all(map(out_of_memory, MEMORY))
    assert not any(map(out_of_memory, [*LOST, *INSIDE, ValueError("out of memory")]))
    assert all(map(device_lost, LOST))
    assert not any(map(device_lost, [*MEMORY, *INSIDE]))
    assert len({sentence(error) for error in MEMORY}) == 1


PLACES = {
    "prompt": (decoder.Decoder, "prefill"),
    "step": (decoder.Decoder, "step"),
    "attention": (torch.nn.functional, "scaled_dot_product_attention"),
    "end of a step": (AdaptiveCache, "end_step"),
    "cache": (AdaptiveCache, "__init__"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [MEMORY[0], MEMORY[1], INSIDE[0]], ids=["memory", "allocator", "inside"])
def test_the_engine_fails_in_words_at_every_place(make: Any, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception) -> None:
    model, processor = shared_model("llava"), shared_processor("llava")
    transport = make(functools.partial(scheduler.run, model, processor))
    owner, name = PLACES[place]
    real = getattr(owner, name)
    calls = []

    def once(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(*args, **options)

    asked = GenerationRequest((Image.new("RGB", (48, 48)),), "what is this ?", (avl.Full(), avl.AVL(S=45, C=30)), max_new_tokens=6)

    async def go() -> list[trace.Event]:
        return await drain(transport, transport.submit(asked, "a"))

    try:
        whole = asyncio.run(go())
        monkeypatch.setattr(owner, name, once)
        failed = asyncio.run(go())
        if len(calls) >= 2:
            assert isinstance(failed[-1], trace.Error), failed[-1]
            assert ("memory" in failed[-1].message) == (error in MEMORY)
        else:
            pytest.fail(f"{place} never ran twice")
        monkeypatch.undo()
        again = asyncio.run(go())
    finally:
        avl.detach(model)
    tokens = [{event.arm: event.tokens for event in events if isinstance(event, trace.End)} for events in (whole, again)]
    assert tokens[0] == tokens[1]


def test_a_prompt_is_stopped_between_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of six rows, one a piece: stopped after two, the others never run, in both arms."""
    model, processor = shared_model("llava"), shared_processor("llava")
    monkeypatch.setattr(decoder, "PROMPT_TOKENS", 1)
    stop = threading.Event()
    pieces = []
    real = decoder.Decoder._run_prompt

    def counted(self: Any, *args: Any) -> Any:
        pieces.append(1)
        if len(pieces) == 2:
            stop.set()
        return real(self, *args)

    monkeypatch.setattr(decoder.Decoder, "_run_prompt", counted)
    asked = GenerationRequest((Image.new("RGB", (48, 48)),), "what is this ?", (avl.Full(), avl.AVL(S=45)), max_new_tokens=4, batch=6)
    try:
        events = list(scheduler.run(model, processor, asked, stop))
    finally:
        avl.detach(model)
    assert len(pieces) == 2
    assert [event.reason for event in events if isinstance(event, trace.End)] == ["stopped", "stopped"]


def test_cpu_prompts_run_in_pieces_that_end_soon() -> None:
    assert decoder.rows_at_once(600, "cpu") == decoder.CPU_PROMPT_TOKENS // 600
    assert decoder.rows_at_once(600) > decoder.rows_at_once(600, "cpu")


def test_a_run_that_asks_whether_to_stop_is_not_stuck(make: Any) -> None:
    """A replay has nothing to tell for minutes."""
    seen = []

    def race(asked: GenerationRequest, stop: threading.Event) -> Iterator[trace.Event]:
        for _ in range(40):
            assert not stop.is_set()
            time.sleep(0.01)
            seen.append(transport.trouble)
        stop.wait(0.01)
        yield trace.Warning("replayed")

    transport = make(race, stuck_seconds=0.2)

    async def go() -> list[trace.Event]:
        return await drain(transport, transport.submit(request(), "a"))

    assert len(asyncio.run(go())) == 1
    assert seen == [None] * 40


def test_a_stuck_device_is_seen_and_takes_no_more_runs(make: Any) -> None:
    go_on = threading.Event()

    def race(asked: GenerationRequest, stop: threading.Event) -> Iterator[trace.Event]:
        yield from list(Fake(pace=0, prefill=0)(asked, stop))[:3]
        go_on.wait(20)

    transport = make(race, stuck_seconds=0.2)

    async def go() -> None:
        job = transport.submit(request(), "a")
        await asyncio.sleep(0.1)
        assert transport.trouble is None
        await asyncio.sleep(0.3)
        assert transport.trouble[0] == "stuck"
        with pytest.raises(Busy, match="has not answered"):
            transport.submit(request(), "b")
        go_on.set()
        await drain(transport, job)
        assert transport.trouble is None

    asyncio.run(go())


def test_a_run_that_takes_too_long_is_ended_in_words(make: Any) -> None:
    transport = make(Fake(pace=0.02, prefill=0), run_seconds=0.3)

    async def go() -> list[trace.Event]:
        return await drain(transport, transport.submit(request(500), "a"))

    events = asyncio.run(go())
    assert "lower the batch" in events[-1].message
    assert [event.reason for event in events if isinstance(event, trace.End)] == ["stopped", "stopped"]


def test_a_run_that_nobody_reads_is_ended(make: Any) -> None:
    transport = make(Fake(pace=0.02, prefill=0), unread_seconds=1)

    async def go() -> list[trace.Event]:
        began = time.monotonic()
        return await drain(transport, transport.submit(request(500), "a"), unread=lambda: 5 * (time.monotonic() - began))

    assert "Nobody read" in asyncio.run(go())[-1].message


def test_a_visitor_has_a_share_of_the_line(make: Any) -> None:
    transport = make(Fake(pace=0.05), waiting_per_visitor=2)

    async def go() -> None:
        transport.submit(request(), "1", "one")
        await asyncio.sleep(0.05)
        transport.submit(request(), "2", "one")
        transport.submit(request(), "3", "one")
        with pytest.raises(Busy, match="2 of your runs"):
            transport.submit(request(), "4", "one")
        transport.submit(request(), "5", "two")
        transport.submit(request(), "6", None)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"batch": 256, "max_new_tokens": 256}, True),
        ({"batch": 256, "max_new_tokens": 256, "repeats": 2}, False),
        ({"batch": 256, "max_new_tokens": 256, "scores": True}, False),
        ({"repeats": 100, "max_new_tokens": 256}, True),
        ({"batch": 256, "max_new_tokens": 256, "policies": [avl.Full()] * 3}, False),
        ({"batch": 64, "max_new_tokens": 256, "policies": [avl.Full()] * 8}, True),
        ({"batch": 64, "max_new_tokens": 256, "policies": [avl.Full()] * 8, "agreement": True}, False),
        ({"batch": 127, "max_new_tokens": 256, "policies": [avl.H2O()] * 4, "agreement": True}, False),
        ({"batch": 126, "max_new_tokens": 256, "policies": [avl.H2O()] * 4, "agreement": True}, True),
    ],
)
def test_work_is_refused_with_what_to_lower(changes: dict[str, Any], fits: bool) -> None:
    asked = request(**{"tokens": changes.pop("max_new_tokens", 12), **changes})
    if fits:
        Limits().check_work(asked)
        return
    with pytest.raises(ValueError, match=r"lower the batch .*, the repeats .* or the new tokens .*, or compare fewer policies \(\d\)"):
        Limits().check_work(asked)


def test_draining_tells_those_who_wait_and_the_one_that_runs(make: Any) -> None:
    transport = make(Fake(pace=0.02, prefill=0))

    async def go() -> list[list[trace.Event]]:
        jobs = [transport.submit(request(400), str(number)) for number in range(3)]
        readers = [asyncio.create_task(drain(transport, job)) for job in jobs]
        await asyncio.sleep(0.2)
        transport.drain("The server is shutting down.")
        told = await asyncio.gather(*readers)
        with pytest.raises(Busy, match="shutting down"):
            transport.submit(request(), "late")
        return told

    for events in asyncio.run(asyncio.wait_for(go(), 10)):
        assert events[-1] == trace.Error("The server is shutting down.")
    assert transport.close()


def test_the_first_reason_for_closing_stays_while_it_closes(make: Any) -> None:
    """Who asks between draining and the end hears the same sentence as those who were cut off."""
    transport = make(Fake(pace=0, prefill=0))
    transport.drain(shutdown.REASON)
    assert transport.close()

    async def ask() -> None:
        transport.submit(request(), "late")

    with pytest.raises(Busy) as late:
        asyncio.run(ask())
    assert str(late.value) == shutdown.REASON
    assert transport.trouble == ("stopping", shutdown.REASON)


def test_the_thread_cannot_be_replaced_and_that_is_said(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Event()

    def race(*_: Any) -> Iterator[trace.Event]:
        both.wait(5)
        raise SystemExit

    transport = make(race)
    monkeypatch.setattr(transport, "_start_worker", lambda: None)

    async def go() -> tuple[list[trace.Event], list[trace.Event]]:
        one, two = transport.submit(request(), "a"), transport.submit(request(), "b")
        both.set()
        return await drain(transport, one), await drain(transport, two)

    for events in asyncio.run(asyncio.wait_for(go(), 10)):
        assert isinstance(events[-1], trace.Error)
    assert transport.trouble[0] == "failed"


def test_an_observer_that_fails_does_not_end_the_worker(make: Any) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            def fail(*_: Any) -> None:
                raise RuntimeError(name)

            return fail

    transport = make(Fake(pace=0, prefill=0))
    transport._observers = (Broken(),)

    async def go() -> list[trace.Event]:
        return await drain(transport, transport.submit(request(), "a"))

    for _ in range(2):
        assert isinstance(asyncio.run(asyncio.wait_for(go(), 10))[-1], trace.End)
    assert transport.load == (0, 0)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "quota"), MemoryError()], ids=repr)
def test_a_full_disk_is_said(here: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    _, program = here(Fake(pace=0, prefill=0))

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("avl.ui.api.picture_path", full)
    told = program.call([{"url": data_uri()}, "What?", ARMS, 2]).error
    assert "disk is full" in told or "memory" in told
    monkeypatch.undo()
    assert program.call([{"url": data_uri()}, "What?", ARMS, 2]).error is None


def test_the_first_done_has_the_answers(here: Any) -> None:
    _, program = here(Fake(pace=0.002, prefill=0))
    for _ in range(5):
        events = program.call([{"url": data_uri()}, "What?", ARMS, 5]).events
        states = [data[0]["state"] for kind, data in events]
        first = next(data[0] for kind, data in events if data[0]["state"] == "done")
        assert len(first["answers"]) == 2
        assert first["trace"]["events"]
        assert "done" not in states[: states.index("done")]


def test_clients_that_vanish_and_read_slowly_harm_nobody(here: Any) -> None:
    import socket

    _, program = here(Fake(pace=0.005, prefill=0), limits=Limits(waiting=100))
    for number in range(20):
        status, text = program.post([{"url": data_uri()}, "What?", ARMS, 100])
        assert status == 200
        event = json.loads(text)["event_id"]
        raw = socket.create_connection((program.host, program.port))
        raw.sendall(f"GET /gradio_api/call/compare/{event} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        if number % 2:
            raw.recv(10)
        raw.close()
    program.wait_idle(20)
    other = Program(f"http://127.0.0.1:{program.port}/")
    assert other.call([{"url": data_uri()}, "What?", ARMS, 5]).error is None


def test_a_stuck_and_a_lost_device_are_unhealthy(here: Any) -> None:
    _, program = here(failing(LOST[0], "middle"))
    assert program.health() == (200, {"state": "ready", "model": "fake model", "running": 0, "waiting": 0})
    assert "restarted" in program.call([{"url": data_uri()}, "What?", ARMS, 5]).error
    status, state = program.health()
    assert (status, state["state"]) == (503, "failed")
    assert "restarted" in program.call([{"url": data_uri()}, "What?", ARMS, 5]).error


def test_running_out_of_memory_is_one_sentence_of_the_engine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = shared_model("llava"), shared_processor("llava")

    def full(*_: Any, **__: Any) -> None:
        raise MEMORY[1]

    monkeypatch.setattr(decoder.Decoder, "prefill", full)
    asked = GenerationRequest((Image.new("RGB", (48, 48)),), "what is this ?", (avl.Full(),), max_new_tokens=4)
    try:
        assert list(scheduler.run(model, processor, asked))[-1] == trace.Error(OUT_OF_MEMORY)
    finally:
        avl.detach(model)
