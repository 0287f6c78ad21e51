"""Invariants: what a row keeps and says does not depend on its batch; two generations interleaved on one model equal the two apart."""

from __future__ import annotations

import itertools

import policy_cases
import pytest
import torch
from observed import generate, timeless, words
from random_models import ARCHITECTURES, RAGGED, encode, picture

import avl

LIMIT = 12
POLICIES = {
    "avl": avl.AVL(S=45, C=30, K=3, P=90, T=60),
    "avl-tight": avl.AVL(S=30, C=10, K=2, P=50, T=30, update="after"),
    "avl-spread": policy_cases.SPREAD,
    **{policy.name: policy for policy in policy_cases.POLICIES},
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sets_do_not_depend_on_the_batch(architecture, policy, model, processor):
    feed = words(4, len(RAGGED), LIMIT)
    together = generate(model, encode(processor, RAGGED), POLICIES[policy], LIMIT, feed=feed)
    reordered = generate(model, encode(processor, RAGGED[::-1]), POLICIES[policy], LIMIT, feed=feed[::-1])
    for row, request in enumerate(RAGGED):
        alone = generate(model, encode(processor, [request]), POLICIES[policy], LIMIT, feed=[feed[row]])
        for t in range(LIMIT):
            assert together.states[t].sets[row] == alone.states[t].sets[0], f"row {row}, step {t}"
            assert reordered.states[t].sets[-1 - row] == alone.states[t].sets[0], f"row {row} of the reordered batch, step {t}"
            torch.testing.assert_close(together.logits[t][row], alone.logits[t][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_do_not_depend_on_the_batch(architecture, policy, model, processor):
    together = generate(model, encode(processor, RAGGED), POLICIES[policy], LIMIT, sets=False).tokens
    assert together == [generate(model, encode(processor, [row]), POLICIES[policy], LIMIT, sets=False).tokens[0] for row in RAGGED]


@pytest.mark.parametrize(
    "pair",
    [("avl", "avl"), ("avl", "Full"), ("avl-tight", "H2O"), ("FastV", "StreamingLLM"), ("H2O", "avl"), ("SnapKV", "PyramidKV")],
    ids="-and-".join,
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_interleaved_streams_equal_the_two_apart(architecture, pair, model, processor):
    questions = ("what is on the sign ?", "w1 w2 w3 red left blue w4 w5 ?")
    pictures = (picture(1), picture(2, 56, 20))

    def start(arm: int):
        return avl.stream(model, processor, pictures[arm], questions[arm], POLICIES[pair[arm]], max_new_tokens=LIMIT)

    apart = [timeless(start(arm)) for arm in (0, 1)]
    interleaved: list[list] = [[], []]
    for events in itertools.zip_longest(start(0), start(1)):
        for arm, event in enumerate(events):
            if event is not None:
                interleaved[arm].append(event)
    assert [timeless(events) for events in interleaved] == apart
    assert apart[0] != apart[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_generate_in_the_middle_of_a_stream_disturbs_neither(architecture, model, processor):
    inputs = encode(processor, RAGGED)
    expected = generate(model, inputs, POLICIES["avl"], LIMIT).tokens
    stock = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)

    def start():
        return avl.stream(model, processor, picture(3), "what is left ?", POLICIES["avl-tight"], max_new_tokens=LIMIT)

    alone = timeless(start())
    events = []
    for number, event in enumerate(start()):
        events.append(event)
        if number == 4:
            assert generate(model, inputs, POLICIES["avl"], LIMIT).tokens == expected
            assert torch.equal(model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False), stock)
    assert timeless(events) == alone


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_run_twice_gives_the_same_bits(architecture, model, processor):
    inputs = encode(processor, RAGGED)
    first, second = (generate(model, inputs, POLICIES["avl"], LIMIT) for _ in range(2))
    assert first.states == second.states
    assert all(torch.equal(a, b) for a, b in zip(first.logits, second.logits, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_abandoned_stream_leaves_the_model_as_it_was(architecture, model, processor):
    inputs = encode(processor, RAGGED)
    expected = generate(model, inputs, POLICIES["avl"], LIMIT).tokens
    events = avl.stream(model, processor, picture(3), "what is left ?", POLICIES["avl"], max_new_tokens=LIMIT)
    list(itertools.islice(events, 4))
    events.close()
    assert generate(model, inputs, POLICIES["avl"], LIMIT).tokens == expected
