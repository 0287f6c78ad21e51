"""Recorded attention adds up, covers what was read, changes no token; the analysis that stands on it."""

from __future__ import annotations

import numpy as np
import policy_cases
import pytest
from random_models import build_model, picture, shared_processor

import avl
from avl.evaluation import figures as analysis
from avl.evaluation.figures import ppci, top_share
from avl.trace import End, Scores, Start, Step, Trace, unpack_scores

POLICIES = policy_cases.POLICIES


@pytest.fixture(scope="module")
def small():
    return build_model("next-mistral"), shared_processor("next-mistral")


def trace_of(small, policy, **options) -> Trace:
    return Trace(list(avl.stream(*small, picture(3), "what is here ?", policy, max_new_tokens=8, **options)))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_one_event_a_pass_that_adds_up_and_changes_nothing(small, policy):
    plain, recorded = trace_of(small, policy), trace_of(small, policy, scores=True)
    assert recorded.of(End)[0].tokens == plain.of(End)[0].tokens
    assert plain.of(Scores) == []
    events = recorded.of(Scores)
    assert [event.t for event in events] == list(range(len(recorded.of(Step)) + 1))
    n = recorded.of(Start)[0].n_image
    for event in events:
        image = np.stack([unpack_scores(layer) for layer in event.image])
        shares = np.array(event.shares)
        assert image.shape == (recorded.start.layers, n)
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(image.sum(axis=1), shares[:, 1], atol=2e-3)  # float16 in the trace
    assert np.array(events[0].shares)[:, 3].max() == 0, "nothing was generated before the prompt's pass"
    assert np.array(events[-1].shares)[:, 3].min() > 0


def test_a_core_step_scores_core_alone_and_an_update_step_all_that_is_stored(small):
    trace = trace_of(small, avl.AVL(S=60, C=30, K=2), scores=True)
    n = trace.start.n_image
    read = {event.t: (np.stack([unpack_scores(layer) for layer in event.image]) > 0).sum(axis=1).max() for event in trace.of(Scores)}
    assert read[1] <= -(-30 * n // 100) < read[2] <= -(-60 * n // 100)


def test_figures_from_a_trace(small):
    trace = trace_of(small, avl.Full(), scores=True)
    passes = len(trace.of(Scores))
    layers = trace.start.layers
    assert analysis.image_scores(trace).shape == (passes, layers, trace.start.n_image)
    np.testing.assert_allclose(analysis.modality_shares(trace).sum(axis=1), 1, atol=1e-6)
    concordance = analysis.layer_concordance(trace, 50)
    assert concordance[0] == 1
    assert (concordance <= 1).all()
    steps = analysis.step_concordance(trace, 30)
    assert (steps[0] == 1).all()
    assert steps.shape == (passes, layers)
    spread = analysis.sparsity(trace)
    assert ((spread > 0) & (spread <= 0.8 + 1 / trace.start.n_image)).all(), "80 % of the attention needs at most 80 % of the best tokens"


def test_analysis_says_what_is_missing(small):
    with pytest.raises(ValueError, match="scores=True"):
        analysis.image_scores(trace_of(small, avl.Full()))


def test_divergence_is_at_the_first_token_that_differs(small):
    trace = Trace(list(avl.race(*small, picture(3), "what is here ?", [avl.Full(), avl.AVL(S=10)], max_new_tokens=8)))
    ends = [end.tokens for end in sorted(trace.of(End), key=lambda end: end.arm)]
    found = analysis.divergence(trace)
    assert ends[0][: found.common] == ends[1][: found.common]
    assert not found.same
    assert ends[0][found.common] != ends[1][found.common]
    assert found.first[0] != found.first[1]
    same = Trace(list(avl.race(*small, picture(3), "what is here ?", [avl.Full(), avl.AVL(S=100)], max_new_tokens=8)))
    assert analysis.divergence(same).same


def test_ppci_and_top_share_by_hand():
    a, b = np.array([4.0, 3, 2, 1]), np.array([1.0, 4, 3, 2])
    assert ppci(a, b, 50) == 0.5
    assert ppci(a, a, 25) == 1
    assert top_share(np.array([8.0, 1, 1, 0]), 0.8) == 0.25
    assert top_share(np.ones(10), 0.8) == 0.8
    with pytest.raises(ValueError, match="positive"):
        top_share(np.zeros(3))
