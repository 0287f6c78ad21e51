"""One worker thread: order, stop within a step, nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from fake import Fake
from PIL import Image

import avl
from avl import trace
from avl.engine.request import GenerationRequest
from avl.ui.errors import Busy, sentence
from avl.ui.job import Job
from avl.ui.limits import Limits
from avl.ui.queue import ThreadTransport, batches


def request(tokens: int = 12, **changes: Any) -> GenerationRequest:
    return GenerationRequest((Image.new("RGB", (48, 48)),), "What?", (avl.Full(), avl.AVL(S=45, C=30)), max_new_tokens=tokens, **changes)


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[ThreadTransport] = []

    def start(race: Any, **options: Any) -> ThreadTransport:
        made.append(ThreadTransport(race, **options))
        return made[-1]

    yield start
    for transport in made:
        transport.close()


async def drain(transport: ThreadTransport, job: Job) -> list[trace.Event]:
    return [event async for batch in batches(transport, job, interval=0.01, heartbeat=0.2) for event in batch]


def test_a_run_arrives_whole_and_in_order(make: Any) -> None:
    fake = Fake(pace=0, prefill=0)
    transport = make(fake)

    async def go() -> list[trace.Event]:
        return await drain(transport, transport.submit(request(), "a"))

    events = asyncio.run(go())
    assert isinstance(events[0], trace.Start)
    assert [event.arm for event in events if isinstance(event, trace.End)] == sorted(e.arm for e in events if isinstance(e, trace.End))
    assert [event.t for event in events if isinstance(event, trace.Step) and event.arm == 1] == list(range(1, 12))
    assert fake.log == ["begin", "freed"]


def test_runs_never_overlap_and_keep_their_order(make: Any) -> None:
    fake = Fake(pace=0.001, prefill=0.001)
    transport = make(fake)
    places: list[int] = []

    async def go() -> None:
        jobs = [transport.submit(request(4), str(number)) for number in range(5)]
        await asyncio.sleep(0.005)
        places.extend(transport.position(job) for job in jobs)
        await asyncio.gather(*(drain(transport, job) for job in jobs))

    asyncio.run(go())
    assert fake.most_active == 1
    assert fake.log == ["begin", "freed"] * 5
    assert places == sorted(places)
    assert places[-1] >= 3


def test_stop_ends_within_one_step(make: Any) -> None:
    fake = Fake(pace=0.05, prefill=0.01)
    transport = make(fake)

    async def go() -> tuple[list[trace.Event], float]:
        job = transport.submit(request(60), "a")
        began = 0.0
        events: list[trace.Event] = []
        async for batch in batches(transport, job, interval=0.01):
            events += batch
            if not began and sum(isinstance(event, trace.Step) for event in events) >= 2:
                assert transport.stop("a")
                began = time.monotonic()
        return events, time.monotonic() - began

    events, seconds = asyncio.run(go())
    assert seconds < 0.5
    assert [event.reason for event in events if isinstance(event, trace.End)] == ["stopped", "stopped"]
    assert fake.log == ["begin", "freed"]


def test_a_waiting_run_leaves_the_line_without_running(make: Any) -> None:
    fake = Fake(pace=0.02)
    transport = make(fake)

    async def go() -> None:
        first = transport.submit(request(10), "a")
        second = transport.submit(request(10), "b")
        await asyncio.sleep(0.05)
        assert transport.position(second) == 1
        transport.stop("b")
        assert await drain(transport, second) == []
        transport.stop("a")
        await drain(transport, first)

    asyncio.run(go())
    assert fake.log == ["begin", "freed"]


def test_a_reader_that_goes_away_ends_the_run_and_frees_it(make: Any) -> None:
    fake = Fake(pace=0.01)
    transport = make(fake)

    async def go() -> None:
        job = transport.submit(request(500), "a")
        async for _ in batches(transport, job, interval=0.01):
            if fake.log:
                break
        transport.leave(job)  # what the handler's finally does

    asyncio.run(go())
    limit = time.monotonic() + 2
    while transport.load != (0, 0) and time.monotonic() < limit:
        time.sleep(0.01)
    assert fake.log == ["begin", "freed"]
    assert transport.load == (0, 0)


def test_nothing_of_a_run_stays_with_the_idle_worker(make: Any) -> None:
    transport = make(Fake(pace=0, prefill=0))

    async def go() -> weakref.ref[Any]:
        job = transport.submit(request(3), "a")
        ghost = weakref.ref(job.request.images[0])
        await drain(transport, job)
        return ghost

    ghost = asyncio.run(go())
    time.sleep(0.05)
    gc.collect()
    assert ghost() is None


def test_a_full_line_refuses_in_words(make: Any) -> None:
    transport = make(Fake(pace=0.05), limits=Limits(waiting=2))

    async def go() -> None:
        transport.submit(request(), "a")
        await asyncio.sleep(0.05)
        transport.submit(request(), "b")
        transport.submit(request(), "c")
        with pytest.raises(Busy, match="waiting already"):
            transport.submit(request(), "d")

    asyncio.run(go())


def test_a_failure_is_one_sentence_and_the_worker_lives(make: Any) -> None:
    transport = make(Fake(pace=0, prefill=0, fail_at=3))

    async def go() -> tuple[list[trace.Event], list[trace.Event]]:
        return await drain(transport, transport.submit(request(), "a")), await drain(transport, transport.submit(request(2), "a"))

    failed, fine = asyncio.run(go())
    assert isinstance(failed[-1], trace.Error)
    assert "RuntimeError" in failed[-1].message
    assert "/a/path" not in failed[-1].message
    assert isinstance(fine[-1], trace.End)
    assert transport.alive


def test_a_refusal_of_the_engine_is_a_sentence_of_the_page(make: Any) -> None:
    def race(_: GenerationRequest, __: threading.Event) -> Iterator[trace.Event]:
        raise ValueError("the prompt is longer than the model's context")

    transport = make(race)

    async def go() -> list[trace.Event]:
        return await drain(transport, transport.submit(request(), "a"))

    assert asyncio.run(go()) == [trace.Error("The prompt is longer than the model's context.")]


def test_errors_become_sentences_without_paths() -> None:
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 20 MiB")
    assert "smaller batch" in sentence(out_of_memory)
    assert sentence(ValueError("the picture is gone")) == "The picture is gone."
    assert sentence(ValueError("max_new_tokens must be 1!")) == "max_new_tokens must be 1!"
    assert "secret" not in sentence(KeyError("/secret/path"))


def test_events_are_coalesced_and_silence_has_a_heartbeat(make: Any) -> None:
    transport = make(Fake(pace=0.001, prefill=0.35))

    async def go() -> list[int]:
        job = transport.submit(request(40), "a")
        return [len(batch) async for batch in batches(transport, job, interval=0.05, heartbeat=0.1)]

    sizes = asyncio.run(go())
    assert sizes.count(0) >= 2
    assert max(sizes) >= 10


def test_a_rehearsal_is_first_in_the_thread_that_runs_jobs(make: Any) -> None:
    """Its error is the caller's, and the queue goes on."""
    fake = Fake(pace=0, prefill=0)
    transport, seen = make(fake), []
    transport.rehearse(lambda stop: seen.append((threading.current_thread(), stop.is_set())))
    assert seen == [(transport._thread, False)]

    def fail(_: threading.Event) -> None:
        raise OSError("cannot run here")

    with pytest.raises(OSError, match="cannot run here"):
        transport.rehearse(fail)

    async def go() -> list[trace.Event]:
        return await drain(transport, transport.submit(request(), "a"))

    assert isinstance(asyncio.run(go())[0], trace.Start)
