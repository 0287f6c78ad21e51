"""Steps that are queued ahead of what is told change nothing of what is told, but when."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from random_models import build_model, picture, shared_model, shared_processor

import avl
from avl.engine.scheduler import race
from avl.trace import End, Event, Prefill, Reading, Repeat, Start, Step, Warning

POLICIES = [avl.Full(), avl.AVL(S=45, C=30, K=3, P=80, T=50), avl.H2O(keep=50)]


def told(event: Event) -> Event | None:
    """The event without what differs from run to run: times and memory readings."""
    if isinstance(event, Reading | Start):
        return None
    if isinstance(event, Prefill):
        return replace(event, ms=0.0)
    if isinstance(event, Step):
        return replace(event, ms=0.0, clock_ms=0.0)
    if isinstance(event, End):
        return replace(event, ttft_ms=0.0, median_ms=None, clock_ms=0.0)
    if isinstance(event, Repeat):
        return replace(event, ttft_ms=0.0, median_ms=None, clock_ms=0.0)
    return event


def run(monkeypatch: pytest.MonkeyPatch, ahead: int, eos: int | None = None, new: int = 12, **options) -> list[Event]:
    """What is told of each arm, arm by arm: which arm is next depends on times."""
    model, processor = shared_model("llava-llama"), shared_processor("llava-llama")
    monkeypatch.setattr("avl.engine.runner.steps_ahead", lambda *_: ahead)
    monkeypatch.setattr(model.generation_config, "eos_token_id", eos)
    events = list(race(model, processor, picture(1), "what is this ?", POLICIES, max_new_tokens=new, **options))
    kept = [told(event) for event in events if told(event) is not None]
    return sorted(kept, key=lambda event: -1 if (arm := getattr(event, "arm", None)) is None else arm)


@pytest.mark.parametrize("ahead", [1, 2, 20])
@pytest.mark.parametrize("options", [{}, {"mode": "isolated"}, {"batch": 2}, {"repeats": 2}, {"scores": True}], ids=str)
def test_the_same_is_told(ahead, options, monkeypatch):
    assert run(monkeypatch, ahead, **options) == run(monkeypatch, 0, **options)


@pytest.mark.parametrize("new", [1, 2, 3])
def test_short_answers_are_told_the_same(new, monkeypatch):
    told_ahead = run(monkeypatch, 1, new=new)
    assert told_ahead == run(monkeypatch, 0, new=new)
    assert [len(event.tokens) for event in told_ahead if isinstance(event, End)] == [new] * 3


@pytest.mark.parametrize("place", [0, 1, 5, 11])
def test_an_end_of_sequence_is_the_last_token_told(place, monkeypatch):
    """The step that was queued behind it is thrown away: its token, its bytes and its sets are not told."""
    first = next(event for event in run(monkeypatch, 0) if isinstance(event, End))
    eos = first.tokens[place]
    ahead, plain = (run(monkeypatch, number, eos=eos) for number in (1, 0))
    assert ahead == plain
    end = next(event for event in ahead if isinstance(event, End))
    assert len(end.tokens) == first.tokens.index(eos)
    assert end.reason == "eos"


def test_a_stopped_run_tells_what_it_counts(monkeypatch):
    model, processor = shared_model("llava-llama"), shared_processor("llava-llama")
    monkeypatch.setattr("avl.engine.runner.steps_ahead", lambda *_: 1)
    stop, steps = threading.Event(), 0
    events = []
    for event in race(model, processor, picture(1), "what is this ?", POLICIES[:1], max_new_tokens=30, stop=stop):
        events.append(event)
        steps += isinstance(event, Step)
        if steps == 4:
            stop.set()
    end = events[-1]
    assert isinstance(end, End)
    assert end.reason == "stopped"
    assert len(end.tokens) == 5


def test_only_a_gpu_that_needs_no_host_runs_ahead():
    from PIL import Image

    from avl.engine.request import GenerationRequest
    from avl.engine.runner import steps_ahead

    request = GenerationRequest(Image.new("RGB", (8, 8)), "?", (avl.Full(),), 8)
    gpus = [torch.device("cuda", number) for number in range(2)]
    assert steps_ahead(request, {gpus[0]}) == 1
    assert steps_ahead(request, set(gpus)) == 0
    assert steps_ahead(request, {torch.device("cpu")}) == 0
    assert steps_ahead(replace(request, temperature=0.5), {gpus[0]}) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
def test_the_same_is_told_on_a_gpu(policy, monkeypatch):
    """With real queues: what is read late is what it was when it was queued."""
    model, processor = build_model("llava-llama").to("cuda"), shared_processor("llava-llama")

    def run() -> list[Event | None]:
        events = avl.stream(model, processor, picture(1), "what is this ?", policy, max_new_tokens=20)
        return [told(event) for event in events if not isinstance(event, Warning)]

    ahead = run()
    monkeypatch.setattr("avl.engine.runner.steps_ahead", lambda *_: 0)
    assert ahead == run()
