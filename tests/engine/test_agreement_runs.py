"""Agreement beside the run: what it costs, when it stops, what it leaves, on every path that steps take."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from agreement_race import LIMIT, QUESTION, SAME, race
from fake_cuda import install
from random_models import build_model, picture, shared_processor

import avl
from avl.engine import agreement, lanes
from avl.engine.decoder import Decoder
from avl.engine.request import MODES, GenerationRequest
from avl.models.inputs import first, prepare, repeat
from avl.trace import Agreement, End, Error, Scores, Step, Trace


@pytest.fixture(scope="module", params=["llava-llama", "next-mistral"])
def small(request):
    return build_model(request.param), shared_processor(request.param)


@pytest.fixture(scope="module")
def grouped():
    return build_model("next-mistral"), shared_processor("next-mistral")


@pytest.mark.parametrize("mode", MODES)
def test_the_run_itself_does_not_change(small, mode):
    options = {"mode": mode, "batch": 2, "temperature": 1.0, "seed": 5, "scores": True}
    plain, measured = (race(small, [avl.Full(), avl.H2O(keep=30)], agreement=wanted, **options) for wanted in (False, True))
    for kind in (End, Step, Scores):
        for arm in (0, 1):
            one, other = ([getattr(event, "tokens", getattr(event, "token", None)) for event in t.of(kind, arm)] for t in (plain, measured))
            assert one == other
    kinds = [event.kind for event in measured]
    assert kinds[-3:] == ["scores", "agreement", "agreement"]
    assert kinds.count("agreement") == 2


def test_torch_and_compiled_steps_tell_the_same(grouped, monkeypatch):
    """On a CPU steps run compiled; without numba the same steps run in torch."""
    seen = []
    own = agreement.make_decoder
    monkeypatch.setattr(agreement, "make_decoder", lambda model, cache: seen.append(own(model, cache)) or seen[-1])
    policies = [avl.Full(), avl.AVL(S=45, C=30, K=3, P=90, T=60), avl.H2O(keep=40)]
    compiled = race(grouped, policies).of(Agreement)
    assert [decoder.uncompiled for decoder in seen] == [None] * 3
    seen.clear()
    monkeypatch.setattr("avl.engine.decoder.why_not_compiled", lambda *_: "a test")
    torch_path = race(grouped, policies).of(Agreement)
    assert [decoder.uncompiled for decoder in seen] == ["a test"] * 3
    for one, other in zip(compiled, torch_path, strict=True):
        assert one.tokens == other.tokens
        assert one.top == other.top
        np.testing.assert_allclose(one.kl, other.kl, rtol=1e-2, atol=1e-5)
        np.testing.assert_allclose(one.nll, other.nll, rtol=2e-3)


def test_captured_steps_tell_the_same(grouped, monkeypatch):
    """Their logits stand in one place, and the next step of the kind overwrites them."""
    policies = [avl.Full(), avl.AVL(S=45, C=30, K=3, P=90, T=60), avl.H2O(keep=40)]
    eager = race(grouped, policies).of(Agreement)
    cuda = install(monkeypatch)
    captured = race(grouped, policies).of(Agreement)
    assert cuda.captures
    for one, other in zip(eager, captured, strict=True):
        assert (one.tokens, one.top) == (other.tokens, other.top)
        np.testing.assert_allclose(one.kl, other.kl, rtol=1e-2, atol=1e-5)
        np.testing.assert_allclose(one.nll, other.nll, rtol=2e-3)
    cuda.forget()


class _StopAfter(threading.Event):
    """Set once it has been asked ``count`` times."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def is_set(self) -> bool:
        self.count -= 1
        return self.count < 0


def test_a_stop_is_honored_before_the_next_step(small, monkeypatch):
    """In full attention's own answer, its replay and a policy's; no event is told of a part."""
    calls = []

    def counted(self, *arguments, step=Decoder.step):
        calls.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(Decoder, "step", counted)
    for policies in ([avl.Full(), avl.H2O(keep=30)], [avl.H2O(keep=30), SAME]):
        all_events = len(race(small, policies).of(Agreement))
        previous = -1
        for asked in range(8, 90, 27):
            stop = threading.Event()
            after_end = []
            events = avl.race(*small, picture(2), QUESTION, policies, max_new_tokens=LIMIT, agreement=True, stop=stop)
            for event in events:
                if isinstance(event, End) and event.arm == 1:
                    break
            del event
            stop.is_set = _StopAfter(asked).is_set  # type: ignore[method-assign]
            calls.clear()
            after_end = [event for event in events if isinstance(event, Agreement)]
            assert len(calls) <= asked, "a step begins only after the stop was asked"
            assert previous <= len(after_end) <= all_events
            previous = len(after_end)
        assert previous == all_events, "asked often enough, it is never stopped"


@pytest.mark.parametrize("leave_at", [End, Agreement, None])
@pytest.mark.parametrize("policies", [[avl.Full(), avl.AVL(S=30)], [avl.AVL(S=30), avl.H2O()]], ids=["full", "no-full"])
def test_one_cache_at_a_time_and_none_outlives_the_run(grouped, policies, leave_at, monkeypatch):
    alive: weakref.WeakSet = weakref.WeakSet()

    def watched(*args, **kwargs):
        cache = avl.make_cache(*args, **kwargs)
        alive.add(cache)
        return cache

    monkeypatch.setattr(lanes, "make_cache", watched)
    events = avl.race(*grouped, picture(2), QUESTION, policies, max_new_tokens=3, mode="isolated", agreement=True)
    for event in events:
        assert sum(cache.stored_bytes > 0 for cache in alive) <= 1
        if leave_at is not None and isinstance(event, leave_at):
            break
    events.close()
    del events, event
    gc.collect()
    assert len(alive) == 0


def test_logits_that_are_no_numbers_end_it_with_a_sentence(small, monkeypatch):
    """In an arm with its number; in full attention's unreported answer without one."""
    own = agreement.make_decoder

    def broken(model, cache):
        decoder = own(model, cache)
        if isinstance(cache.policy, wanted):
            step = decoder.step
            decoder.step = lambda tokens: step(tokens) * float("nan")
        return decoder

    monkeypatch.setattr(agreement, "make_decoder", broken)
    for policies, wanted, arm, told in (  # noqa: B007 (broken reads it)
        ([avl.Full(), avl.AVL(S=30), avl.H2O()], avl.H2O, 2, 2),
        ([avl.AVL(S=30), avl.H2O()], avl.Full, None, 0),
    ):
        trace = race(small, policies)
        (error,) = trace.of(Error)
        assert "not finite" in error.message
        assert error.arm == arm
        assert len(trace.of(Agreement)) == told
        Trace.from_json(trace.to_json())


def test_a_request_counts_what_it_feeds():
    def passes(*policies, wanted=True):
        return GenerationRequest(picture(1), "q", policies, agreement=wanted).forced_passes

    assert passes(avl.Full(), avl.H2O()) == 2
    assert passes(avl.AVL(S=30), avl.H2O()) == 4, "full attention's answer, and its replay"
    assert passes(avl.AVL(S=30), wanted=False) == 0


def test_one_of_many_copies_is_the_request(grouped):
    inputs = prepare(*grouped, [picture(1, 60, 20), picture(2)], QUESTION)[0]
    again = first(repeat(inputs, 3), 3)
    assert list(again) == list(inputs)
    assert all(torch.equal(again[name], inputs[name]) for name in inputs)
