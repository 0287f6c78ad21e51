"""Agreement with full attention on its own answer: what is fed, what is compared, and that nothing of the run changes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import oracle
import policy_cases
import pytest
import torch
from agreement_race import LIMIT, QUESTION, SAME, race
from family_oracle import run as family_run
from random_models import build_model, picture, shared_processor
from tiny_families import MODELS

import avl
from avl.engine import agreement
from avl.engine.decoder import Decoder
from avl.models.inputs import prepare
from avl.trace import MOST_NATS, Agreement, End, Error, Trace

POLICIES = list(policy_cases.POLICIES)


@pytest.fixture(scope="module", params=["llava-llama", "next-mistral"])
def small(request):
    return build_model(request.param), shared_processor(request.param)


@pytest.fixture(scope="module")
def grouped():
    return build_model("next-mistral"), shared_processor("next-mistral")


def distributions(logits) -> np.ndarray:
    """Probabilities ``[T, V]`` by plain numpy."""
    logits = np.array(logits, dtype=np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def check(event: Agreement, full: np.ndarray, ours: np.ndarray, tolerance: float = 2e-3) -> None:
    """Every number of an event follows from the two distributions ``[T, V]``."""
    tokens, steps = list(event.tokens), np.arange(len(event.tokens))
    np.testing.assert_allclose(event.kl, (full * (np.log(full) - np.log(ours))).sum(axis=1), rtol=tolerance, atol=1e-5)
    np.testing.assert_allclose(event.nll, -np.log(ours[steps, tokens]), rtol=tolerance, atol=1e-4)
    np.testing.assert_allclose(event.full_nll, -np.log(full[steps, tokens]), rtol=tolerance, atol=1e-4)
    best, best_full = ours.argmax(axis=1).tolist(), full.argmax(axis=1).tolist()
    assert list(event.top) == [None if one == other else one for one, other in zip(best, best_full, strict=True)]
    assert event.share == np.mean([one == other for one, other in zip(best, best_full, strict=True)])
    assert event.mean_kl == pytest.approx(np.mean(event.kl))
    assert event.perplexity == pytest.approx(np.exp(np.mean(event.nll)))
    assert event.full_perplexity == pytest.approx(np.exp(np.mean(event.full_nll)))


RULES = {name: rule(**parameters) for name, (_, rule, parameters) in policy_cases.ROWS.items()}


def test_every_policy_is_fed_the_answer_as_the_oracle_is(small):
    """Distributions of a float64 decoder that masks instead of evicting and is fed the same tokens: all policies, grouped queries too."""
    trace = race(small, POLICIES)
    assert [event.arm for event in trace.of(Agreement)] == list(range(len(POLICIES)))
    tokens = trace.of(End, 0)[0].tokens
    inputs = small[1](images=[picture(2)], text=[trace.start.prompt], return_tensors="pt", add_special_tokens=True)
    row = oracle.rows(small[0], inputs)[0]
    assert (row.n_image, row.n_text) == (trace.start.n_image, trace.start.n_text)
    runs = {name: oracle.run(small[0], row, rule, LIMIT, feed=tokens) for name, rule in RULES.items()}
    full = distributions([logits.numpy() for logits in runs["Full"].logits])
    differ = 0
    for event, policy in zip(trace.of(Agreement), POLICIES, strict=True):
        assert event.tokens == tokens
        assert event.reference == 0
        check(event, full, distributions([logits.numpy() for logits in runs[policy.name].logits]))
        differ += event.share < 1
    assert differ >= 4, "policies that change nothing show nothing"


@pytest.mark.parametrize("policies", [[SAME, avl.FastV(keep=100)], [avl.Full(), SAME]], ids=["alone", "beside"])
def test_what_reads_all_agrees_with_full_attention(small, policies):
    trace = race(small, policies)
    assert {event.reference for event in trace.of(Agreement)} == {None if policies[0] is SAME else 0}
    for event in trace.of(Agreement):
        assert event.share == 1
        assert max(event.kl) <= 1e-6
        assert event.perplexity == pytest.approx(event.full_perplexity, rel=1e-3)


def test_full_attention_is_its_own_measure(small):
    trace = race(small, [avl.AVL(S=30), avl.Full(), avl.Full()])
    events = trace.of(Agreement)
    assert [event.reference for event in events] == [1, 1, 1]
    for event in events[1:]:
        assert event.share == 1
        assert event.kl == (0.0,) * LIMIT
        assert event.nll == event.full_nll
    assert events[0].share < 1
    assert events[0].full_nll == events[1].nll


def test_texts_add_up_to_the_answer_and_top_texts_are_words(small):
    trace = race(small, [avl.Full(), avl.AVL(S=10, C=5, K=4)])
    events = trace.of(Agreement)
    assert "".join(events[0].texts) == trace.of(End, 0)[0].text
    decode = small[1].tokenizer.decode
    told = [(token, text) for token, text in zip(events[1].top, events[1].top_texts, strict=True) if token is not None]
    assert told
    assert all(text.strip() == decode([token]) for token, text in told)
    assert [token is None for token in events[1].top] == [text is None for text in events[1].top_texts]
    assert Trace.from_json(trace.to_json()) == trace
    assert len(json.dumps(events[1].to_dict())) < 150 * LIMIT


def test_without_full_attention_its_answer_is_the_same_one(small):
    with_full = race(small, [avl.Full(), avl.H2O(keep=30)])
    without = race(small, [avl.H2O(keep=30)])
    (event,) = without.of(Agreement)
    assert event == replace(with_full.of(Agreement, 1)[0], arm=0, reference=None)
    assert {e.arm for e in without if getattr(e, "arm", None) is not None} == {0}, "full attention is not told of"
    single = list(avl.stream(*small, picture(2), QUESTION, avl.H2O(keep=30), LIMIT, agreement=True))
    assert single[-1] == event


@pytest.mark.parametrize("batch", [1, 3])
def test_a_sampled_answer_is_fed_as_it_is_and_compared_without_temperature(small, batch):
    """Full attention still agrees with itself: what is compared is the likeliest token, not the one that was drawn."""
    trace = race(small, [avl.Full(), SAME, avl.AVL(S=30)], batch=batch, temperature=2.0, top_p=0.9, seed=4)
    events = trace.of(Agreement)
    assert events[0].tokens == trace.of(End, 0)[0].tokens
    assert events[0].share == events[1].share == 1 > events[2].share
    greedy = race(small, [avl.Full()]).of(Agreement)[0]
    assert events[0].tokens != greedy.tokens
    assert events[0].full_perplexity > greedy.full_perplexity
    prompt = prepare(*small, picture(2), QUESTION)[0]
    decoder = Decoder(small[0], avl.make_cache(small[0], prompt, avl.Full(), max_new_tokens=LIMIT))
    with torch.inference_mode():
        logits = [decoder.prefill(prompt), *(decoder.step(torch.tensor([token])) for token in events[0].tokens[:-1])]
    full = distributions([one[0].numpy() for one in logits])
    check(events[0], full, full)


def test_an_end_of_sequence_is_part_of_the_answer(small):
    """Whether a policy ends where full attention does is a token like any other; it is told by its name."""
    model, processor = small
    plain = race(small, [avl.Full()]).of(End)[0].tokens
    count = next(place for place, token in enumerate(plain) if place > 1 and token not in plain[:place])
    model.generation_config.eos_token_id = plain[count]
    try:
        for batch in (1, 2):
            trace = race(small, [avl.Full(), avl.AVL(S=20)], batch=batch)
            assert trace.of(End, 0)[0].tokens == plain[:count]
            for event in trace.of(Agreement):
                assert event.tokens == plain[: count + 1]
                assert event.texts[-1] == processor.tokenizer.convert_ids_to_tokens(plain[count])
            assert "".join(trace.of(Agreement)[0].texts[:-1]) == trace.of(End, 0)[0].text
    finally:
        model.generation_config.eos_token_id = None


def test_the_models_penalties_choose_the_answer_and_are_not_compared(small):
    model, _ = small
    plain = race(small, [avl.Full(), SAME])
    model.generation_config.suppress_tokens = [plain.of(End, 0)[0].tokens[0]]
    try:
        trace = race(small, [avl.Full(), SAME])
        first_event = trace.of(Agreement, 1)[0]
        assert first_event.tokens[0] != plain.of(Agreement, 1)[0].tokens[0]
        assert first_event.share == 1
        assert first_event.full_nll[0] > plain.of(Agreement, 1)[0].full_nll[0], "the suppressed token is still the likeliest"
    finally:
        model.generation_config.suppress_tokens = None


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_family_agrees_where_all_is_read_and_counts_where_not(name):
    """Fed to the library's cache by transformers' own forward, as model.generate steps it."""
    model, processor = MODELS[name].model(), MODELS[name].processor()
    policies = [avl.Full(), avl.AVL(S=100, C=100), avl.AVL(S=40, C=20, K=2, P=60)]
    prompt = avl.Prompt(f"what is {MODELS[name].placeholder} here ?")
    trace = Trace(list(avl.race(model, processor, picture(3), prompt, policies, max_new_tokens=6, agreement=True)))
    events = trace.of(Agreement)
    assert len(events) == 3, trace.of(Error)
    assert events[1].share == 1
    assert max(events[1].kl) < 1e-5
    inputs = prepare(model, processor, picture(3), prompt)[0]
    runs = [family_run(model, inputs, rule, 6, events[0].tokens) for rule in (oracle.Full(), oracle.AVL(S=40, C=20, K=2, P=60))]
    full, ours = (distributions([logits.numpy() for logits in run.logits]) for run in runs)
    check(events[2], full, ours)


def test_half_precision_agrees_with_itself():
    dtype = torch.float16
    model = build_model("next-mistral", dtype=dtype)
    events = race((model, shared_processor("next-mistral")), [avl.Full(), SAME, avl.AVL(S=30)], batch=2).of(Agreement)
    assert events[0].share == 1
    assert max(events[1].kl) < 10 * torch.finfo(dtype).eps
    assert events[2].mean_kl > events[1].mean_kl


def test_divergence_by_hand():
    """p = (1/2, 1/4, 1/4) and q = (1/4, 1/2, 1/4): KL is ln 2 / 4."""
    p, q = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.5, 0.25]).log() + 7
    top, divergence, surprise = agreement.compare(p, q, 0)
    assert top == 1
    assert divergence == pytest.approx(math.log(2) / 4, rel=1e-3)
    assert surprise == pytest.approx(math.log(4), rel=1e-3)
    assert agreement.compare(p, p, 0)[:2] == (0, 0.0)
    # a token that only one of them rules out
    ruled_out = torch.tensor([0.0, -math.inf, 0.0])
    assert agreement.compare(ruled_out, p, 2)[1] == pytest.approx(math.log(2) / 2, rel=1e-3)
    assert agreement.compare(p, ruled_out, 1)[1:] == (MOST_NATS, MOST_NATS)
    far = torch.tensor([0.0, -2000.0, -math.inf])
    assert agreement.compare(far, torch.tensor([0.0, -math.inf, -1.0]), 0)[1] == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-3)
    event = Agreement(0, None, (1,), ("a",), (None,), (None,), (MOST_NATS,), (MOST_NATS,), (0.0,))
    assert math.isfinite(event.perplexity)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reference": 5}, "there is no arm 5"),
        ({"kl": []}, "kl has 0 values for 9 tokens"),
        ({"tokens": []}, "tokens has 0 values"),
        ({"nll": [-1.0] * 9}, "nll is negative"),
        ({"full_nll": [501.0] * 9}, "above 500"),
        ({"top": [7] * 9}, "differ in where"),
        ({"top": "x"}, "not a list"),
    ],
    ids=str,
)
def test_a_damaged_event_is_refused(grouped, change, words):
    trace = race(grouped, [avl.Full()])
    document = json.loads(trace.to_json())
    document["events"][-1] |= change
    with pytest.raises(ValueError, match=words):
        Trace.from_json(json.dumps(document))
