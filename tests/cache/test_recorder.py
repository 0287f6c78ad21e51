"""Recorded attention adds up, covers what was read, changes no token; the analysis that stands on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import policy_cases
import pytest
from random_models import build_model, picture, shared_processor
from tiny_families import MODELS

import avl
from avl.cache.recorder import MODALITIES
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


@pytest.mark.parametrize("name", ["pixtral", "llava-llama"])
def test_text_between_image_tokens_has_a_share_of_its_own(name):
    """Row breaks of a Pixtral picture are no instruction; words between two pictures are none either."""
    tiny = MODELS[name]
    model, processor = tiny.model(), tiny.processor()
    images = [picture(1, 40, 30)] if name == "pixtral" else [picture(1, 40, 30), picture(2, 30, 40)]
    prompt = avl.Prompt(f"what is {' and '.join([tiny.placeholder] * len(images))} here ?")
    events = list(avl.stream(model, processor, images, prompt, avl.Full(), max_new_tokens=3, scores=True))
    start = next(event for event in events if isinstance(event, Start))
    inputs = processor(images=images, text=[start.prompt], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    image = [place for place, token in enumerate(ids) if token == model.config.image_token_id]
    held = {name: [place for span, first, stop in start.spans for place in range(first, stop) if span == name] for name, *_ in start.spans}
    assert held["image"] == image
    assert held["system"] == list(range(image[0]))
    assert held["instruction"] == list(range(image[-1] + 1, len(ids)))
    assert held["between"] == sorted(set(range(image[0], image[-1])) - set(image))
    model.set_attn_implementation("eager")
    weights = model(**inputs, output_attentions=True).attentions  # of the prompt's last token
    shares = next(event for event in events if isinstance(event, Scores)).shares
    for layer, seen in zip(shares, weights, strict=True):
        mean = seen[0, :, -1].mean(0)
        for kind in ("system", "image", "instruction", "between"):
            assert layer[MODALITIES.index(kind)] == pytest.approx(float(mean[held[kind]].sum()), abs=1e-5)


def test_recordings_with_four_shares_are_read(small):
    """As they were made before text between image tokens was counted apart."""
    trace = trace_of(small, avl.Full(), scores=True)
    old = [replace(event, shares=tuple(s[:4] for s in event.shares)) if isinstance(event, Scores) else event for event in trace.events]
    document = Trace(old).to_json()
    again = Trace.from_json(document)
    np.testing.assert_allclose(analysis.modality_shares(again), analysis.modality_shares(trace))
    odd = [replace(event, shares=tuple(s[:3] for s in event.shares)) if isinstance(event, Scores) else event for event in trace.events]
    with pytest.raises(ValueError, match="shares does not hold five shares per layer"):
        Trace.from_json(Trace(odd).to_json())
