"""Recorded attention adds up, covers what was read, changes no token; the analysis that stands on it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import policy_cases
import pytest
import torch
from random_models import build_model, picture, shared_processor
from tiny_families import MODELS

import avl
from avl.cache.layout import Row
from avl.cache.recorder import MODALITIES, Recorder
from avl.evaluation.figures import attention as analysis
from avl.evaluation.figures import summary as summaries
from avl.evaluation.figures.attention import ppci, top_share
from avl.trace import End, Scores, Start, Step, Trace, codec, listed_tokens, pack_scores, scores_bytes, unpack_scores

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
        image = np.stack([unpack_scores(layer, n) for layer in event.image])
        shares = np.array(event.shares)
        assert image.shape == (recorded.start.layers, n)
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=3e-5)  # five digits each
        np.testing.assert_allclose(image.sum(axis=1), shares[:, 1], atol=2e-3)  # float16 in the trace
    assert np.array(events[0].shares)[:, 3].max() == 0, "nothing was generated before the prompt's pass"
    assert np.array(events[-1].shares)[:, 3].min() > 0


def test_a_core_step_scores_core_alone_and_an_update_step_all_that_is_stored(small):
    trace = trace_of(small, avl.AVL(S=60, C=30, K=2), scores=True)
    n = trace.start.n_image
    read = {event.t: (np.stack([unpack_scores(layer, n) for layer in event.image]) > 0).sum(axis=1).max() for event in trace.of(Scores)}
    assert read[1] <= -(-30 * n // 100) < read[2] <= -(-60 * n // 100)


def test_figures_from_a_trace(small):
    trace = trace_of(small, avl.Full(), scores=True)
    passes = len(trace.of(Scores))
    layers = trace.start.layers
    assert analysis.image_scores(trace).shape == (passes, layers, trace.start.n_image)
    np.testing.assert_allclose(analysis.modality_shares(trace).sum(axis=1), 1, atol=3e-5)
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
    few = trace_of(small, avl.Full(), scores=True)
    n = few.start.n_image
    listed = [replace(event, image=tuple(pack_scores(unpack_scores(layer, n), 5) for layer in event.image)) for event in few.of(Scores)]
    with pytest.raises(ValueError, match=f"lists the 5 highest of {n} scores per layer"):
        analysis.image_scores(Trace([few.start, *listed]))


@pytest.mark.parametrize("policies", [[avl.Full()], [avl.Full(), avl.AVL(S=60, C=30, K=2)]], ids=len)
def test_a_budget_keeps_the_prompt_whole_and_the_highest_of_later_passes(small, policies):
    """The same attention as without one: 3 % off where listed, no number elsewhere, whose sum is told."""
    options = {"max_new_tokens": 6, "scores": True}
    whole = Trace(list(avl.race(*small, picture(3, 56, 56), "what is here ?", policies, **options)))
    start = whole.start
    n, passes = start.n_image, 6
    budget = scores_bytes(n, start.layers, passes, len(policies), codec.FEWEST + 3)
    most = listed_tokens(n, start.layers, passes, len(policies), budget)
    assert most is not None
    least = Trace(list(avl.race(*small, picture(3, 56, 56), "what is here ?", policies, scores_bytes=budget, **options)))
    dense = Trace(list(avl.race(*small, picture(3, 56, 56), "what is here ?", policies, scores_bytes=10**9, **options)))
    assert sum(len(json.dumps(event.to_dict())) for event in least.of(Scores)) < budget * 1.1
    for exact, few, all_of in zip(whole.of(Scores), least.of(Scores), dense.of(Scores), strict=True):
        assert (few.arm, few.t, few.shares, few.mean) == (exact.arm, exact.t, exact.shares, exact.mean)
        assert {text[:2] for text in all_of.image} == {"d:"}
        assert {text[:2] for text in few.image} == ({"t:"} if few.t else {"d:"})
        assert (few.rest is None) == (few.t == 0)
        for number, (told, listed, codes) in enumerate(zip(exact.image, few.image, all_of.image, strict=True)):
            scores, found = unpack_scores(told, n), unpack_scores(listed, n)
            np.testing.assert_allclose(unpack_scores(codes, n), scores, rtol=0.03, atol=1e-6)
            known = ~np.isnan(found)
            np.testing.assert_allclose(found[known], scores[known], rtol=0.03, atol=1e-6)
            if few.t:
                assert known.sum() <= most
                assert few.rest[number] == pytest.approx(scores[~known].sum(), rel=1e-2, abs=1e-5)
    Trace.from_json(least.to_json())


def test_divergence_is_at_the_first_token_that_differs(small):
    trace = Trace(list(avl.race(*small, picture(3), "what is here ?", [avl.Full(), avl.AVL(S=10)], max_new_tokens=8)))
    ends = [end.tokens for end in sorted(trace.of(End), key=lambda end: end.arm)]
    found = summaries.divergence(trace)
    assert ends[0][: found.common] == ends[1][: found.common]
    assert not found.same
    assert ends[0][found.common] != ends[1][found.common]
    assert found.first[0] != found.first[1]
    same = Trace(list(avl.race(*small, picture(3), "what is here ?", [avl.Full(), avl.AVL(S=100)], max_new_tokens=8)))
    assert summaries.divergence(same).same


def test_of_several_answers_each_is_compared_with_full_attentions(small):
    policies = [avl.AVL(S=10), avl.AVL(S=100), avl.Full(), avl.AVL(S=100)]
    trace = Trace(list(avl.race(*small, picture(3), "what is here ?", policies, max_new_tokens=6, scores=True)))
    found = [summaries.summary(trace, arm) for arm in range(4)]
    assert [one["other"] for one in found] == ["Full attention"] * 2 + [avl.AVL(S=10).label] + ["Full attention"]
    assert [one["divergence"]["same"] for one in found] == [False, True, False, True]
    words = [list(summaries.tables(one))[-1] for one in found]
    assert words[1] == "The answer is the same as under Full attention."
    assert words[0] == f"The answer is the same for {found[0]['divergence']['common']} tokens as under Full attention."
    alone = trace_of(small, avl.Full(), scores=True)
    assert summaries.summary(alone)["divergence"] is None


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


def test_layers_are_sums_over_what_was_noted():
    """Per modality and image token, in any order of positions, mean over heads; behind the prompt is the answer."""
    row = Row(pad=2, length=7, image=(1, 2, 4))
    recorder = Recorder(row, 2)
    positions = torch.tensor([9, 4, 0, 2, 6, 3, 7])
    recorder.note(0, torch.tensor([0.1, 0.2, 0.05, 0.25, 0.1, 0.12, 0.18]), positions)
    recorder.note(1, torch.tensor([[0.4, 0.6], [0.5, 0.5]]), torch.tensor([[1, 8], [2, 5]]))
    first, second = recorder.layers()
    assert first.image.tolist() == pytest.approx([0, 0.25, 0.2])
    assert first.shares == pytest.approx((0.05, 0.45, 0.1, 0.28, 0.12))
    assert second.image.tolist() == pytest.approx([0.2, 0.25, 0])
    assert second.shares == pytest.approx((0, 0.45, 0.25, 0.3, 0))
    assert Recorder(Row(0, 3, ()), 1)._number.tolist() == [0, 0, 0, 0]
