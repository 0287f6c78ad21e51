"""Invariants as properties, over random parameters, prompts and answers, seen through the public interface alone.

Examples are derived from the test's name (``derandomize``), so a run repeats.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from observed import generate, words
from oracle import lattice, share
from random_models import LAYERS, VOCAB, build_model, encode, request, shared_processor

import avl

LIMIT = 8
QUICK = settings(max_examples=20, deadline=None, derandomize=True, database=None)

percent = st.one_of(st.integers(1, 100), st.floats(0.5, 100.0).map(lambda x: round(x, 1)))
maybe_percent = st.one_of(st.none(), percent)
SIZES = ((40, 30), (28, 28), (60, 20), (20, 60))


@st.composite
def policies(draw: st.DrawFn) -> avl.AVL:
    S = draw(percent)
    C = draw(st.one_of(st.none(), percent.filter(lambda c: c <= S))) if S > 1 else None
    spread = draw(st.one_of(st.none(), percent.filter(lambda part: part <= S))) if S > 1 else None
    update = draw(st.sampled_from(["every", "after"]))
    return avl.AVL(S=S, C=C, K=draw(st.integers(1, 4)), P=draw(maybe_percent), T=draw(maybe_percent), update=update, spread=spread)


@st.composite
def prompts(draw: st.DrawFn):
    """One or two rows of different pictures and lengths."""
    return tuple(
        request(
            draw(st.integers(0, 10_000)),
            sizes=tuple(draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=2))),
            before=draw(st.integers(0, 6)),
            after=draw(st.integers(1, 12)),
        )
        for _ in range(draw(st.integers(1, 2)))
    )


@pytest.fixture(scope="module", params=["llava-llama", "next-mistral"])
def tiny(request: pytest.FixtureRequest):
    model = build_model(request.param)
    avl.attach(model)
    return model, shared_processor(request.param)


def run(tiny, policy, rows, seed):
    model, processor = tiny
    inputs = encode(processor, rows)
    is_image, real = inputs["input_ids"] == model.config.image_token_id, inputs["attention_mask"]
    n_image = is_image.sum(1).tolist()
    n_text = (real.sum(1) - is_image.sum(1)).tolist()
    return generate(model, inputs, policy, LIMIT, feed=words(seed, len(rows), LIMIT)).states, n_image, n_text


@QUICK
@given(policy=policies(), spread=percent, rows=prompts(), seed=st.integers(0, 1000))
def test_what_spread_holds_is_stored_and_its_half_is_read(tiny, policy, spread, rows, seed):
    """At every step, as far as P left it in the prompt and there is room; the counts are those without spread."""
    spread = min(spread, policy.S)
    states, n_image, n_text = run(tiny, replace(policy, spread=spread), rows, seed)
    without, _, _ = run(tiny, replace(policy, spread=None), rows, seed)
    for state, other in zip(states, without, strict=True):
        assert (state.stored, state.read) == (other.stored, other.read)
        for row, layers in enumerate(state.sets):
            shape = avl.policies.PromptShape(n_image[row], n_text[row], LIMIT, len(layers))
            for layer, sets in enumerate(layers):
                whole, half = (lattice(shape.n_image, part, layer) for part in (spread, spread / 2))
                held = set(whole) & set(sets.stored)
                assert len(held) == len(sets.stored) or held == set(whole) or policy.present(layer, shape) < shape.n_image
                if policy.C is not None:
                    assert set(half) & set(sets.stored) <= set(sets.core) or len(set(half) & set(sets.core)) == len(sets.core)


@QUICK
@given(policy=policies(), rows=prompts(), seed=st.integers(0, 1000))
def test_core_is_in_secondary_is_in_the_image(tiny, policy, rows, seed):
    states, n_image, _ = run(tiny, policy, rows, seed)
    for state in states:
        for row, layers in enumerate(state.sets):
            for sets in layers:
                assert set(sets.core) <= set(sets.stored) <= set(range(n_image[row]))
                assert sets.stored == sorted(set(sets.stored))
                assert sets.core == sorted(set(sets.core))


@QUICK
@given(policy=policies(), rows=prompts(), seed=st.integers(0, 1000))
def test_secondary_is_fixed_and_core_moves_only_at_update_steps(tiny, policy, rows, seed):
    states, _, _ = run(tiny, policy, rows, seed)
    period = policy.K if policy.update == "every" else policy.K + 1
    for t in range(1, LIMIT):
        for row in range(len(rows)):
            for layer in range(LAYERS):
                now, before = states[t].sets[row][layer], states[t - 1].sets[row][layer]
                assert now.stored == before.stored
                if t % period:
                    assert now.core == before.core


@QUICK
@given(policy=policies(), rows=prompts(), seed=st.integers(0, 1000))
def test_sizes_are_shares_of_n(tiny, policy, rows, seed):
    states, n_image, _ = run(tiny, policy, rows, seed)
    for row, n in enumerate(n_image):
        for layer, sets in enumerate(states[-1].sets[row]):
            held = n if layer < 2 or policy.P is None else share(policy.P, n)
            stored = min(held, share(policy.S, n))
            assert len(sets.stored) == stored
            assert len(sets.core) == (stored if policy.C is None else min(stored, share(policy.C, n)))


@QUICK
@given(policy=policies(), rows=prompts(), seed=st.integers(0, 1000))
def test_pruned_tokens_are_nowhere_above_layer_2(tiny, policy, rows, seed):
    """What P drops is one set for all layers from 2 on: together they store no more than P % of N."""
    assume(policy.P is not None)
    states, n_image, _ = run(tiny, policy, rows, seed)
    for row, n in enumerate(n_image):
        above = set().union(*(sets.stored for sets in states[-1].sets[row][2:]))
        assert len(above) <= share(policy.P, n)


@QUICK
@given(policy=policies(), rows=prompts(), seed=st.integers(0, 1000))
def test_newest_token_and_recent_half_are_never_evicted(tiny, policy, rows, seed):
    states, n_image, n_text = run(tiny, policy, rows, seed)
    for t, state in enumerate(states):
        for row in range(len(rows)):
            length = n_image[row] + n_text[row]
            for layer in range(LAYERS):
                now = state.sets[row][layer].text
                window = math.inf if policy.T is None else share(policy.T, n_text[row] + LIMIT)
                assert len(now) == min(n_text[row] + t, window)
                assert now[-1] == length + t - 1
                assert now == sorted(set(now))
                if t == 0:
                    continue
                before = states[t - 1].sets[row][layer].text
                arrived = [*before, length + t - 1]
                assert set(now) <= set(arrived), "what was evicted never comes back"
                assert len(arrived) - len(now) <= 1
                if policy.T is not None:
                    recent = math.ceil(window / 2)
                    assert arrived[-recent:] == now[-recent:]


@QUICK
@given(policy=st.builds(avl.H2O, keep=percent, recent=percent), rows=prompts(), seed=st.integers(0, 1000))
def test_h2o_keeps_its_budget_and_its_recent_part(tiny, policy, rows, seed):
    states, n_image, n_text = run(tiny, policy, rows, seed)
    for t, state in enumerate(states):
        budgets = [share(policy.keep, n + text) for n, text in zip(n_image, n_text, strict=True)]
        expected = [min(budget, n + text + t) for budget, n, text in zip(budgets, n_image, n_text, strict=True)]
        assert state.stored == [sum(expected)] * LAYERS
        for row, budget in enumerate(budgets):
            length = n_image[row] + n_text[row] + t
            recent = range(max(0, length - share(policy.recent, budget)), length)
            newest = {position for position in recent if position >= n_image[row] + n_text[row]}
            for sets in state.sets[row]:
                assert newest <= set(sets.text)


@QUICK
@given(keep=percent, sinks=st.integers(0, 8), rows=prompts(), seed=st.integers(0, 1000))
def test_streaming_keeps_sinks_and_the_most_recent(tiny, keep, sinks, rows, seed):
    states, n_image, n_text = run(tiny, avl.StreamingLLM(keep=keep, sinks=sinks), rows, seed)
    for row in range(len(rows)):
        length = n_image[row] + n_text[row]
        budget = share(keep, length)
        assume(budget > sinks)
        for t, state in enumerate(states):
            total = length + t
            kept = set(range(total))
            if total > budget:
                kept = {*range(sinks), *range(total - (budget - sinks), total)}
            for sets in state.sets[row]:
                assert set(sets.text) <= kept
                assert len(sets.text) + len(sets.stored) == len(kept)


@QUICK
@given(layer=st.integers(1, LAYERS - 1), keep=percent, rows=prompts(), seed=st.integers(0, 1000))
def test_fastv_drops_image_tokens_once(tiny, layer, keep, rows, seed):
    states, n_image, n_text = run(tiny, avl.FastV(layer=layer, keep=keep), rows, seed)
    for row, n in enumerate(n_image):
        for state in states:
            counts = [len(sets.stored) for sets in state.sets[row]]
            assert counts == [n] * layer + [share(keep, n)] * (LAYERS - layer)
            assert len({tuple(sets.stored) for sets in state.sets[row][layer:]}) == 1
        assert [len(sets.text) for sets in states[-1].sets[row]] == [n_text[row] + LIMIT - 1] * LAYERS


@QUICK
@given(fraction=st.floats(0.3, 0.95), rows=prompts().map(lambda rows: rows[:1]))
@pytest.mark.parametrize(
    "policy", [avl.AVL(S=45, C=30, K=3, P=90), avl.H2O(), avl.FastV(), avl.StreamingLLM()], ids=lambda policy: type(policy).__name__
)
def test_at_stored_hits_the_share(tiny, policy, fraction, rows):
    """Within the rounding of one entry per layer, or a sentence why the share cannot be had."""
    model, processor = tiny
    inputs = encode(processor, rows)
    n_image = int((inputs["input_ids"] == model.config.image_token_id).sum())
    n_text = inputs["input_ids"].shape[1] - n_image
    whole = {"AVL": n_text, "FastV": n_text + n_image * 2 / LAYERS}.get(type(policy).__name__, 0)  # what stays whatever the share
    if fraction * (n_image + n_text) <= whole:
        with pytest.raises(ValueError, match=r"cannot store"):
            policy.at_stored(fraction, n_image, n_text, LAYERS)
        return
    chosen = policy.at_stored(fraction, n_image, n_text, LAYERS)
    stored = sum(generate(model, inputs, chosen, 1, sets=False).states[0].stored)
    full = LAYERS * (n_image + n_text)
    assert abs(stored - fraction * full) <= LAYERS


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(["S", "C", "P", "T"]),
    value=st.one_of(st.floats(max_value=0.0), st.floats(min_value=100.0, exclude_min=True), st.just(math.nan), st.integers(max_value=0)),
)
def test_percentages_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name) as refused:
        avl.AVL(**{"S": 45, name: value})
    assert repr(value) in str(refused.value)
    assert "100" in str(refused.value) or "at most" in str(refused.value)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(x=st.one_of(st.integers(1, 100), st.decimals("0.1", "100", places=1).map(float)), n=st.integers(1, 3000))
def test_the_librarys_shares_are_exact(x, n):
    """ceil(x * N / 100) of the number as written: 57 % of 100 is 57, though 57 * 0.01 * 100 is not in floating point."""
    from avl.policies.base import share as ours

    assert ours(x, n) == share(x, n)
    assert share(x, n) - 1 < round(x * 10) * n / 1000 <= share(x, n) + 1e-9


def test_words_are_ordinary():
    assert all(5 <= token < VOCAB for row in words(0, 3, 50) for token in row)
