"""Work is queued, marked and timed on the model's device, and the caller's thread keeps its own: with a stand-in for torch.cuda."""

from __future__ import annotations

import contextlib

import pytest
import torch

from avl.engine import devices, timing


@pytest.fixture
def current(monkeypatch):
    """Return the current device's number in a list of one."""
    state = [0]

    @contextlib.contextmanager
    def device(number):
        before, state[0] = state[0], torch.device(number).index
        try:
            yield
        finally:
            state[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: state[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    return state


def numbers(current, log):
    try:
        for number in range(3):
            log.append(current[0])
            yield number
    finally:
        log.append(("closed on", current[0]))


@pytest.mark.parametrize("stop", [3, 1])
def test_events_are_made_on_the_models_device(current, stop):
    """Read whole, or left after one: the device is current while an event is made, and not in between."""
    log, seen = [], []
    events = devices.made_on(torch.device("cuda:1"), numbers(current, log))
    for number in events:
        seen.append((number, current[0]))
        if len(seen) == stop:
            break
    events.close()
    assert seen == [(number, 0) for number in range(stop)]
    assert log == [1] * stop + [("closed on", 1)]
    assert current == [0]


def test_on_a_cpu_nothing_changes(current):
    log = []
    assert list(devices.made_on(torch.device("cpu"), numbers(current, log))) == [0, 1, 2]
    assert log == [0, 0, 0, ("closed on", 0)]


def test_an_error_leaves_the_callers_device(current):
    def fail():
        yield 1
        raise RuntimeError("inside")

    events = devices.made_on(torch.device("cuda:1"), fail())
    next(events)
    with pytest.raises(RuntimeError, match="inside"):
        next(events)
    assert current == [0]


def test_times_are_of_the_models_stream(monkeypatch):
    """Marks, spans and clocks record on a stream of the device they are given; those of an idle device would read nothing."""
    recorded, waited = [], []

    class Event:
        def __init__(self, enable_timing=False):
            pass

        def record(self, stream=None):
            recorded.append(stream)

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return 1.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(str(device)))
    device = torch.device("cuda:1")
    marks = timing.Marks(device)
    marks.add()
    marks.add()
    assert marks.gaps() == [1.0]
    span = timing.Span(device)
    span.end()
    assert span.ms() == 1.0
    clock = timing.Clock(device)
    clock.start()
    assert clock.stop() == 1.0
    assert set(recorded) == {"stream of cuda:1"}
    assert len(recorded) == 6
    assert waited == ["cuda:1", "cuda:1"]
