"""Logits that are no numbers end a run with an Error event that says where they began; temperatures of any size do not make any."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import policy_cases
import pytest
import torch
from random_models import build_model, picture, shared_model, shared_processor

import avl
from avl.engine.request import GenerationRequest
from avl.engine.sampling import Temperature
from avl.engine.scheduler import race, run, stream
from avl.models.families import language_model
from avl.trace import End, Error, Event, Prefill, Step

POLICY = avl.AVL(S=45, C=30, K=3, P=80, T=50)
QUESTION = "what is this ?"


@contextmanager
def spoiled(model: torch.nn.Module, value: float, passes: int, row: int, place: slice) -> Iterator[None]:
    """The logits of one row hold ``value`` at ``place`` in the pass of that number."""
    seen = 0

    def spoil(module, args, logits):
        nonlocal seen
        seen += 1
        if seen == passes + 1:
            logits[row, ..., place] = value
        return logits

    hook = model.lm_head.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture
def small():
    model = shared_model("llava-llama")
    yield avl.attach(model), shared_processor("llava-llama")
    avl.detach(model)


ONE, ALL = slice(7, 8), slice(None)
SPOILS = [(math.nan, ONE), (math.nan, ALL), (math.inf, ONE), (math.inf, ALL), (-math.inf, ALL)]


@pytest.mark.parametrize("entry", ["stream", "race", "run"])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("passes", [0, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("value", "place"), SPOILS, ids=lambda part: "one" if part is ONE else "all" if part is ALL else str(part))
def test_the_run_ends_with_one_error(small, value, place, temperature, passes, row, entry):
    model, processor = small
    options = {"max_new_tokens": 8, "temperature": temperature, "seed": 1, "batch": 2}
    with spoiled(model, value, passes, row, place):
        if entry == "stream":
            events = list(stream(model, processor, picture(1), QUESTION, POLICY, **options))
        elif entry == "race":
            events = list(race(model, processor, picture(1), QUESTION, [POLICY], **options))
        else:
            events = list(run(model, processor, GenerationRequest(picture(1), QUESTION, (POLICY,), **options)))
    told = [event for event in events if isinstance(event, Prefill | Step)]
    assert len(told) == passes, "every token before is told, none after"
    assert isinstance(events[-1], Error)
    assert events[-1].arm == 0
    assert not [event for event in events if isinstance(event, End)]
    assert events[-1].message.startswith(f"token {passes} cannot be chosen: the logits of row {row} are not finite numbers, although")
    assert "output head" in events[-1].message


@pytest.mark.parametrize("ahead", [0, 1])
def test_with_a_step_ahead_the_same_is_told(small, ahead, monkeypatch):
    model, processor = small
    monkeypatch.setattr("avl.engine.runner.steps_ahead", lambda *_: ahead)
    with spoiled(model, math.nan, 3, 0, ONE):
        events = list(stream(model, processor, picture(1), QUESTION, POLICY, 8))
    assert sum(isinstance(event, Prefill | Step) for event in events) == 3
    assert events[-1].message.startswith("token 3 cannot be chosen")


def test_some_logits_of_minus_infinity_are_legal(small):
    model, processor = small
    expected = list(stream(model, processor, picture(1), QUESTION, POLICY, 6))[-1]
    unused = next(token for token in range(5, 100) if token not in expected.tokens)
    for temperature in (0.0, 1e-9):
        with spoiled(model, -math.inf, 0, 0, slice(unused, unused + 1)):
            end = list(stream(model, processor, picture(1), QUESTION, POLICY, 6, temperature=temperature))[-1]
        assert end.tokens == expected.tokens


@pytest.mark.parametrize("policy", [avl.Full(), *policy_cases.POLICIES], ids=lambda policy: policy.label)
@pytest.mark.parametrize("where", [0, 2])
def test_an_overflow_of_float16_names_the_layer(policy, where):
    """Real weights: layer ``where`` gives numbers beyond float16, so the keys and values of the next are the first to tell."""
    model = build_model("llava-llama", dtype=torch.float16)
    language_model(model).layers[where].mlp.down_proj.weight.fill_(6e4)
    events = list(stream(model, shared_processor("llava-llama"), picture(1), QUESTION, policy, 6))
    assert isinstance(events[-1], Error)
    for words in (f"from layer {where + 1} on (of 0 to 3)", f"overflowed in layer {where}", "bf16"):
        assert words in events[-1].message


def test_a_picture_that_is_no_number_is_layer_0(small):
    model = build_model("llava-llama")
    model.model.multi_modal_projector.linear_2.bias.fill_(math.nan)
    events: list[Event] = list(stream(model, small[1], picture(1), QUESTION, avl.Full(), 6))
    assert "from layer 0 on" in events[-1].message
    assert "the picture's features or the embeddings" in events[-1].message
    assert "check the checkpoint's weights" in events[-1].message


@pytest.mark.parametrize("temperature", [5e-324, 2.3e-308, 1e-300, 1e-45, 1e-38, 1e-20, 1e-7], ids=str)
def test_small_temperatures_are_greedy(small, temperature):
    model, processor = small
    greedy = list(stream(model, processor, picture(1), QUESTION, POLICY, 6))[-1]
    found = list(stream(model, processor, picture(1), QUESTION, POLICY, 6, temperature=temperature, seed=3))[-1]
    assert isinstance(found, End)
    assert found.tokens == greedy.tokens


@pytest.mark.parametrize("top_p", [5e-324, 1e-300, 1e-38, 1e-9], ids=str)
def test_a_nucleus_of_nothing_is_greedy(small, top_p):
    model, processor = small
    greedy = list(stream(model, processor, picture(1), QUESTION, POLICY, 6))[-1]
    found = list(stream(model, processor, picture(1), QUESTION, POLICY, 6, temperature=2.0, top_p=top_p, seed=3))[-1]
    assert found.tokens == greedy.tokens


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 1e300, sys.float_info.max / 4])
@pytest.mark.parametrize("temperature", [5e-324, 1e-38, 1.0, 10.0])
def test_scores_of_any_size_give_probabilities(size, temperature):
    scores = torch.tensor([[3.0, -2.0, 2.999, -math.inf]], dtype=torch.float64) * size
    weights = Temperature(temperature)(None, scores).softmax(dim=-1)
    assert weights.isfinite().all()
    assert float(weights.sum()) == pytest.approx(1)
    assert weights.argmax() == 0
