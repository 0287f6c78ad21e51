"""``race`` with repeats and with recorded attention: what comes after the answers, in which order, and that nothing of it stays."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from random_models import build_model, picture, shared_processor

import avl
from avl.engine import lanes
from avl.engine.request import MODES
from avl.trace import End, Event, Reading, Repeat, Scores, Step, Trace

POLICIES = [avl.Full(), avl.AVL(S=45, C=30, K=2, P=70, T=60)]


@pytest.fixture(scope="module")
def small():
    return build_model("llava-llama"), shared_processor("llava-llama")


def race(small, stop: threading.Event | None = None, **options):
    return avl.race(*small, picture(2), "what is here ?", POLICIES, max_new_tokens=7, stop=stop, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_repeat_is_the_same_run_in_turned_order(small, mode, temperature):
    trace = Trace(list(race(small, mode=mode, repeats=4, temperature=temperature, seed=3)))
    ends = {end.arm: end for end in trace.of(End)}
    told = trace.of(Repeat)
    assert [(event.number, event.arm) for event in told] == [(1, 1), (1, 0), (2, 0), (2, 1), (3, 1), (3, 0)]
    for event in told:
        assert event.tokens == ends[event.arm].tokens
        assert event.reason == ends[event.arm].reason
        assert event.median_ms > 0
        assert event.clock_ms > event.ttft_ms > 0
    last_end = max(place for place, event in enumerate(trace) if isinstance(event, End))
    assert all(place > last_end for place, event in enumerate(trace) if isinstance(event, Repeat))
    assert len(trace.of(Step)) == sum(len(end.tokens) - 1 for end in ends.values()), "only the first time is told step by step"


def test_scores_come_last_and_cost_no_step(small):
    kinds: list[type[Event]] = []
    for event in race(small, repeats=2, scores=True):
        if not isinstance(event, Reading) and (not kinds or kinds[-1] is not type(event)):
            kinds.append(type(event))
    assert kinds[-2:] == [Repeat, Scores]
    assert kinds.count(Scores) == 1


def test_a_stop_ends_the_repeats_and_the_recording(small):
    for wanted in (Repeat, Scores):
        stop, seen = threading.Event(), []
        for event in race(small, stop, repeats=5, scores=True):
            seen.append(event)
            if isinstance(event, wanted):
                stop.set()
        after = seen[next(place for place, event in enumerate(seen) if isinstance(event, wanted)) + 1 :]
        # the other arm of the repeat that was being told had ended before the stop
        assert [type(event) for event in after] in ([], [Repeat])


@pytest.mark.parametrize("repeats", [0, -1, 101, 1.5, True, "3"])
def test_a_wrong_number_of_repeats_is_refused_before_anything_runs(small, repeats):
    with pytest.raises(ValueError, match="repeats="):
        race(small, repeats=repeats)


@pytest.mark.parametrize("leave_at", [End, Repeat, Scores, None])
def test_no_cache_outlives_the_run(small, leave_at, monkeypatch):
    """Whether it ends or is closed in the middle, and in isolated mode one cache is gone before the next is filled."""
    alive: weakref.WeakSet = weakref.WeakSet()

    def watched(*args, **kwargs):
        cache = avl.make_cache(*args, **kwargs)
        alive.add(cache)
        return cache

    monkeypatch.setattr(lanes, "make_cache", watched)
    events = race(small, mode="isolated", repeats=3, scores=True)
    for event in events:
        assert sum(cache.stored_bytes > 0 for cache in alive) <= 1
        if leave_at is not None and isinstance(event, leave_at):
            break
    events.close()
    del events, event
    gc.collect()
    assert len(alive) == 0
