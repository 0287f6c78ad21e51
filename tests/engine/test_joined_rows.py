"""Rows of different layouts that run together, as on a GPU: what bucket by bucket gives, in as many launches as one layout takes."""

from __future__ import annotations

import copy
import warnings

import policy_cases
import pytest
import tiny_families
import torch
from fake_cuda import install
from host_waits import Calls, Operators, Waits
from random_models import ARCHITECTURES, RAGGED, build_model, encode, request, shared_processor
from test_cuda_graphs import POLICIES as WINDOWS
from tiny_families import base

import avl
from avl.attention import decode as steps
from avl.cache import joined
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder

POLICIES = {policy.label: policy for policy in (*policy_cases.POLICIES, policy_cases.SPREAD, *WINDOWS)}
MIXED = (RAGGED[1], RAGGED[0], RAGGED[2], RAGGED[0])
STEPS = 9

pytestmark = pytest.mark.filterwarnings("ignore:Use of index_put_ on expanded tensors")


@pytest.fixture
def together(monkeypatch):
    """On a CPU as on a GPU."""
    monkeypatch.setattr(joined, "joins", lambda device: True)


def seen(cache):
    """Everything that is counted, and which tokens are where."""
    rows, layers = range(cache.batch_size), range(len(cache.layers))
    sets = [cache.image_sets(row) for row in rows], [[cache.text_positions(layer, row) for layer in layers] for row in rows]
    return cache.stored_tokens, cache.read_tokens, cache.allocated_bytes, cache.peak_bytes, sets


def answer(model, inputs, policy, feed=None, kind=Decoder):
    """Logits of every pass, what was seen after each, and the tokens fed; greedy where none are given."""
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=STEPS)
    decoder = kind(model, cache)
    logits, states, tokens = [decoder.prefill(inputs).clone()], [seen(cache)], []
    for step in range(STEPS):
        tokens.append(logits[-1].argmax(dim=-1) if feed is None else feed[step])
        logits.append(decoder.step(tokens[-1]).clone())
        states.append(seen(cache))
    return cache, torch.stack(logits), states, tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("label", POLICIES)
@torch.inference_mode()
def test_rows_together_are_rows_apart(architecture, label, model, processor, monkeypatch):
    policy, inputs = POLICIES[label], dict(encode(processor, MIXED))
    apart, wanted, states, tokens = answer(model, inputs, policy)
    assert not apart.joined
    assert len(apart.buckets) == 3
    monkeypatch.setattr(joined, "joins", lambda device: True)
    cache, logits, found, _ = answer(model, inputs, policy, tokens)
    assert cache.joined
    torch.testing.assert_close(logits, wanted, rtol=2e-5, atol=2e-5)
    for one, other in zip(found, states, strict=True):
        assert one == other


@pytest.mark.parametrize("rows", [MIXED, (RAGGED[0], RAGGED[0], RAGGED[2])], ids=["mixed", "two alike"])
@pytest.mark.parametrize("label", POLICIES)
@torch.inference_mode()
def test_replayed_steps_of_rows_together(label, rows, monkeypatch):
    """CUDA graphs: everything that differs between rows lies in tensors at fixed addresses."""
    model, policy = avl.attach(build_model("next-mistral")), POLICIES[label]
    inputs = dict(encode(shared_processor("next-mistral"), rows))
    _, wanted, states, tokens = answer(model, inputs, policy)
    monkeypatch.setattr(joined, "joins", lambda device: True)
    _, logits, found, _ = answer(model, inputs, policy, tokens, GraphDecoder)  # uncaptured
    torch.testing.assert_close(logits, wanted, rtol=2e-5, atol=2e-5)
    assert found == states
    cuda = install(monkeypatch)
    for _ in range(2):  # warmed up and checked, then captured only
        cache, logits, found, _ = answer(model, inputs, policy, tokens, GraphDecoder)
        assert cuda.made[-1].problem is None
        assert cache.joined
        torch.testing.assert_close(logits, wanted, rtol=2e-5, atol=2e-5)
        assert found == states
        addresses = [tensor.data_ptr() for tensor in cuda.made[-1]._state()]
        assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("name", sorted(tiny_families.MODELS))
@torch.inference_mode()
def test_rows_of_every_family_together(name, monkeypatch):
    """Fused steps and those of the model's own modules."""
    tiny = tiny_families.MODELS[name]
    model = avl.attach(tiny.model())
    rows = base.RAGGED if tiny.pictures else [sizes[:1] for sizes in base.RAGGED]
    inputs = dict(base.encode(tiny, tiny.processor(), [*rows, rows[0]]))
    policy = avl.AVL(S=45, C=30, K=2, P=70, T=50)
    _, wanted, states, tokens = answer(model, inputs, policy)
    monkeypatch.setattr(joined, "joins", lambda device: True)
    cache, logits, found, _ = answer(model, inputs, policy, tokens)
    assert cache.joined
    torch.testing.assert_close(logits, wanted, rtol=2e-5, atol=2e-5)
    assert found == states


@pytest.mark.parametrize("architecture", ["llava-llama", "next-mistral"])
@pytest.mark.parametrize("label", [policy.label for policy in policy_cases.POLICIES])
def test_generate_and_copies_together(architecture, label, model, processor, together):
    """``model.generate``, whose steps transformers drives, and a copy of the cache that goes on by itself."""
    policy, inputs = POLICIES[label], dict(encode(processor, MIXED))
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=STEPS)
    ids = model.generate(**inputs, past_key_values=cache, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
    assert cache.joined
    with torch.inference_mode():
        _, _, _, tokens = answer(model, inputs, policy)
        assert torch.equal(torch.stack(tokens, dim=1), ids)
        cache = avl.make_cache(model, inputs, policy, max_new_tokens=STEPS)
        decoder = Decoder(model, cache)
        logits = decoder.prefill(inputs)
        for step in range(STEPS):
            if step == 4:
                twin = copy.copy(decoder)
                twin._cache, twin._positions = copy.deepcopy(cache), decoder._positions.clone()
                if twin._layers is not None:
                    twin._layers = copy.copy(decoder._layers)
                    twin._layers._cache = twin._cache
                for other in range(step, STEPS):  # another answer, which must not be felt
                    twin.step(tokens[other].flip(0))
            assert torch.equal(logits.argmax(dim=-1), tokens[step])
            logits = decoder.step(tokens[step])


@torch.inference_mode()
def test_a_layer_stores_and_attends_once_for_all_rows(model_of_eight, together, monkeypatch):
    """However many layouts: the attention of a step, and what stores its token."""
    model, inputs = model_of_eight
    cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30, K=3, T=50), max_new_tokens=4)
    decoder = Decoder(model, cache)
    tokens = decoder.prefill(inputs).argmax(dim=-1)
    assert len(cache.buckets) == 8
    calls = []
    attend, ops = joined.core_attention, decoder._layers._ops
    monkeypatch.setattr(joined, "core_attention", lambda *args, **options: calls.append("attend") or attend(*args, **options))
    monkeypatch.setattr(steps, "core_attention", None)
    store = ops.rotate_and_store
    monkeypatch.setattr(ops, "rotate_and_store", lambda *args: calls.append("store") or store(*args))
    decoder.step(tokens)
    assert calls == ["store", "attend"] * len(cache.layers)


@pytest.fixture
def model_of_eight():
    model = avl.attach(build_model("llava-llama"))
    return model, dict(encode(shared_processor("llava-llama"), [request(number, after=3 + number) for number in range(8)]))


@torch.inference_mode()
def test_what_is_recorded_runs_apart(model_of_eight, together):
    """Recorded scores are those of one row."""
    model, inputs = model_of_eight
    cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30), max_new_tokens=4)
    recorder = cache.record()
    decoder = Decoder(model, cache)
    decoder.step(decoder.prefill(inputs).argmax(dim=-1))
    assert not cache.joined
    assert sum(recorder.layers()[0].shares) == pytest.approx(1, abs=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = avl.make_cache(model, inputs, avl.AVL(S=45, C=30), max_new_tokens=4)
        Decoder(model, again).prefill(inputs)
    with pytest.raises(AssertionError, match="from the prompt on"):
        again.record()


@pytest.mark.parametrize("policy", [avl.Full(), avl.AVL(S=45, C=30, K=2, P=70)], ids=lambda policy: policy.label)
@torch.inference_mode()
def test_no_step_of_rows_together_waits(model_of_eight, policy, together, monkeypatch):
    """What differs between rows is on the device. Evictions aside, which a CPU finds with numpy."""
    monkeypatch.setattr("avl.kernels.resolve_impl", lambda *_, **__: "reference")  # no kernel that is a CPU's alone
    model, inputs = model_of_eight
    decoder = GraphDecoder(model, avl.make_cache(model, inputs, policy, max_new_tokens=8))
    tokens, waits = decoder.prefill(inputs).argmax(dim=-1), Waits()
    with Calls(waits), Operators(waits):
        waits.active = True
        for _ in range(6):
            tokens = decoder.step(tokens).argmax(dim=-1)
    assert not waits.found
