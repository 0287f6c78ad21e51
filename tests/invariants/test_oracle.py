"""Invariant: a dense float64 oracle with masks gives the same sets, counts and logits at every step.

The tokens fed are random words, the same for both, so one early difference cannot hide behind a diverging answer.
"""

from __future__ import annotations

import oracle
import policy_cases
import pytest
import torch
from observed import assert_within, generate, reductions, words
from pairwise import pairwise
from random_models import ARCHITECTURES, RAGGED, build_model, encode, request, shared_processor

import avl

LIMIT = 11

AVL_CASES = {
    "defaults": {"S": 45, "C": 30, "K": 3, "P": 90, "T": 60},
    "after": {"S": 45, "C": 30, "K": 3, "P": 90, "T": 60, "update": "after"},
    "K1": {"S": 60, "C": 20, "K": 1, "P": 90, "T": 60},
    "K1-after": {"S": 60, "C": 20, "K": 1, "P": None, "T": None, "update": "after"},
    "K2-small-core": {"S": 50, "C": 5, "K": 2, "P": None, "T": None},
    "C-off": {"S": 40, "C": None, "P": None, "T": None},
    "C-equals-S": {"S": 45, "C": 45, "K": 2, "P": 80, "T": 70},
    "S100-core": {"S": 100, "C": 25, "K": 3, "P": None, "T": None},
    "P-below-S": {"S": 80, "C": 30, "K": 3, "P": 50, "T": None},
    "P-below-C": {"S": 80, "C": 60, "K": 2, "P": 40, "T": 90},
    "P-only": {"S": 100, "C": None, "P": 30, "T": None},
    "T-only": {"S": 100, "C": None, "P": None, "T": 40},
    "T-evicts-the-prompt": {"S": 45, "C": 30, "K": 3, "P": 90, "T": 25},
    "T-window-of-one": {"S": 45, "C": 30, "K": 3, "P": 90, "T": 2},
    "spread": {"S": 45, "C": 30, "K": 3, "P": 90, "T": 60, "spread": 33},
    "spread-after": {"S": 60, "C": 20, "K": 2, "P": None, "T": None, "update": "after", "spread": 25},
    "spread-is-S": {"S": 40, "C": 25, "K": 1, "P": 80, "T": 50, "spread": 40},
    "spread-over-core": {"S": 70, "C": 10, "K": 2, "P": 90, "T": None, "spread": 60},
    "spread-over-P": {"S": 70, "C": 30, "K": 3, "P": 30, "T": 60, "spread": 50.5},
    "spread-no-core": {"S": 45, "C": None, "P": 90, "T": 60, "spread": 20},
    "spread-of-one": {"S": 30, "C": 10, "K": 2, "P": None, "T": 60, "spread": 0.5},
    "one-image-token": {"S": 1, "C": 1, "K": 3, "P": None, "T": 60},
    "fractions": {"S": 33.3, "C": 12.5, "K": 2, "P": 66.6, "T": 57.1},
}
OTHER_CASES = {
    **{name.lower(): row for name, row in policy_cases.ROWS.items()},
    "h2o-defaults": (avl.H2O, oracle.H2O, {}),
    "h2o-heavy": (avl.H2O, oracle.H2O, {"keep": 30, "recent": 20}),
    "h2o-recent-only": (avl.H2O, oracle.H2O, {"keep": 40, "recent": 100}),
    "fastv-layer1": (avl.FastV, oracle.FastV, {"layer": 1, "keep": 25}),
    "fastv-layer3": (avl.FastV, oracle.FastV, {"layer": 3, "keep": 70}),
    "snapkv-unpooled": (avl.SnapKV, oracle.SnapKV, {"keep": 30, "window": 3, "pool": 1}),
    "snapkv-window-over-budget": (avl.SnapKV, oracle.SnapKV, {"keep": 20, "window": 32}),
    "snapkv-keeps-all": (avl.SnapKV, oracle.SnapKV, {"keep": 100}),
    "pyramidkv-first-layer-whole": (avl.PyramidKV, oracle.PyramidKV, {"keep": 80, "window": 2, "pool": 5}),
    "pyramidkv-flat": (avl.PyramidKV, oracle.PyramidKV, {"keep": 30, "window": 64, "beta": 1}),
    "streaming": (avl.StreamingLLM, oracle.StreamingLLM, {}),
    "streaming-short": (avl.StreamingLLM, oracle.StreamingLLM, {"keep": 30, "sinks": 2}),
    "streaming-no-sinks": (avl.StreamingLLM, oracle.StreamingLLM, {"keep": 45, "sinks": 0}),
}
CASES = {
    **{name: (avl.AVL(**parameters), oracle.AVL(**parameters)) for name, parameters in AVL_CASES.items()},
    **{name: (ours(**parameters), theirs(**parameters)) for name, (ours, theirs, parameters) in OTHER_CASES.items()},
}
BATCHES = {
    "two-images": (request(8, sizes=((44, 30), (28, 50))),),
    "ragged": RAGGED,
    "ends-in-image": (request(11, after=0), request(12, after=0)),
    "one-ends-in-image": (request(11, after=0), request(12, sizes=((30, 44), (28, 28)), after=3), request(13, before=9, after=0)),
}


def check_sets(observed, expected: list[oracle.Run]) -> None:
    """Sets of every row, counts of all rows together, at every step and layer."""
    for t, state in enumerate(observed.states):
        for layer in range(len(state.stored)):
            for row, run in enumerate(expected):
                got, want = state.sets[row][layer], run.sets[t][layer]
                where = f"step {t}, layer {layer}, row {row}"
                assert got.text == want.text, f"text positions, {where}"
                assert got.stored == want.stored, f"stored image tokens, {where}"
                assert got.core == want.core, f"core, {where}"
            assert state.stored[layer] == sum(run.sets[t][layer].n_stored for run in expected), f"stored count, step {t}, layer {layer}"
            if t:
                assert state.read[layer] == sum(run.sets[t][layer].n_read for run in expected), f"read count, step {t}, layer {layer}"


@pairwise(architecture=ARCHITECTURES, case=CASES, batch=BATCHES)
def test_every_step_is_the_oracles(architecture, case, batch, model, processor):
    policy, rule = CASES[case]
    inputs = encode(processor, BATCHES[batch])
    rows = oracle.rows(model, inputs)
    feed = words(seed=5, n_rows=len(rows), length=LIMIT)
    observed = generate(model, inputs, policy, LIMIT, feed=feed)
    expected = [oracle.run(model, row, rule, LIMIT, feed=tokens) for row, tokens in zip(rows, feed, strict=True)]
    check_sets(observed, expected)
    for b, (row, run) in enumerate(zip(rows, expected, strict=True)):
        plain = oracle.run(model, row, rule, LIMIT, feed=feed[b], dtype=torch.float32)
        assert plain.sets == run.sets, "this seed has two scores closer than float32 can tell: choose another"
        ours = torch.stack([logits[b] for logits in observed.logits])
        assert_within(ours, torch.stack(run.logits), torch.stack(plain.logits), torch.float32, reductions(model, row.length + LIMIT))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(
    "parameters",
    [{"S": 90, "C": 30, "K": 3, "P": 60, "T": 60}, {"S": 45, "C": 30, "K": 2, "P": None, "T": 30, "update": "after"}],
    ids=["pruned", "unpruned"],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_logits_given_the_sets(architecture, parameters, dtype):
    """In half precision two scores may change places, so the oracle is given the library's sets and the logits must agree."""
    model = build_model(architecture, dtype=dtype)
    avl.attach(model)
    inputs = encode(shared_processor(architecture), RAGGED).to(dtype)
    rows = oracle.rows(model, inputs)
    feed = words(seed=6, n_rows=len(rows), length=LIMIT)
    observed = generate(model, inputs, avl.AVL(**parameters), LIMIT, feed=feed)
    assert observed.logits[0].dtype in (dtype, torch.float32)
    rule = oracle.AVL(**parameters)
    sticks, plains, ours = [], [], []
    for b, row in enumerate(rows):
        imposed = [state.sets[b] for state in observed.states]
        stick = oracle.run(model, row, rule, LIMIT, feed=feed[b], imposed=imposed)
        plain = oracle.run(model, row, rule, LIMIT, feed=feed[b], dtype=dtype, imposed=imposed)
        assert all(len(sets[0].stored) == oracle.share(rule.S, row.n_image) for sets in imposed)
        sticks.extend(stick.logits)
        plains.extend(plain.logits)
        ours.extend(logits[b] for logits in observed.logits)
    # all steps and rows together: through a whole model the error of a single step is a draw, its mean is not
    runs = (torch.stack(run).flatten() for run in (ours, sticks, plains))
    assert_within(*runs, dtype, reductions(model, rows[-1].length))


def test_the_comparison_can_fail():
    """One image token more or less, or a core chosen one step late, is far outside the tolerance."""
    model = build_model("llava-llama")
    row = oracle.rows(model, encode(shared_processor("llava-llama"), BATCHES["two-images"]))[0]
    feed = words(seed=5, n_rows=1, length=LIMIT)[0]
    right = oracle.run(model, row, oracle.AVL(S=45, C=30, K=3), LIMIT, feed=feed)
    plain = oracle.run(model, row, oracle.AVL(S=45, C=30, K=3), LIMIT, feed=feed, dtype=torch.float32)
    for wrong in (oracle.AVL(S=52, C=30, K=3), oracle.AVL(S=45, C=30, K=2), oracle.AVL(S=45, C=37, K=3)):
        other = oracle.run(model, row, wrong, LIMIT, feed=feed)
        runs = (torch.stack(run.logits) for run in (other, right, plain))
        with pytest.raises(AssertionError, match="mean error"):
            assert_within(*runs, torch.float32, reductions(model, row.length + LIMIT))
