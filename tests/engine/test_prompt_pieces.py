"""A large batch's prompt runs some rows after others: the answer, the cache and its memory are those of the whole batch at once."""

from __future__ import annotations

import threading

import policy_cases
import pytest
import tiny_families
import torch
from random_models import ARCHITECTURES, RAGGED, encode, request, shared_model, shared_processor
from tiny_families import base

import avl
from avl.engine import decoder as decode
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder, Stopped, rows_at_once
from avl.models.families import language_model

POLICIES = (*policy_cases.POLICIES, policy_cases.SPREAD)


def answer(model, inputs, policy, kind=Decoder, steps=5):
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=8)
    decoder = kind(model, cache)
    logits = [decoder.prefill(inputs)]
    state = (cache.stored_tokens, cache.read_tokens, cache.allocated_bytes, dict(cache.pruned), cache.image_sets(4))
    peak = cache.peak_bytes
    for _ in range(steps):
        logits.append(decoder.step(logits[-1].argmax(dim=-1)).clone())
    state = (*state, [cache.image_sets(row) for row in range(5)])  # chosen anew since: the last piece was one row
    return torch.stack(logits), state, peak, cache


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@torch.inference_mode()
def test_pieces_are_the_whole(architecture, policy, model, processor, monkeypatch):
    inputs = dict(encode(processor, [request(seed, sizes=((40, 30), (30, 44))) for seed in range(5)]))
    whole, state, peak, _ = answer(model, inputs, policy)
    monkeypatch.setattr(decode, "PROMPT_TOKENS", 2 * inputs["input_ids"].shape[1] + 1)
    for kind in (Decoder, GraphDecoder):
        pieces, state_of_pieces, peak_of_pieces, cache = answer(model, inputs, policy, kind)
        torch.testing.assert_close(pieces, whole, rtol=2e-5, atol=2e-5)
        assert state_of_pieces == state
        # two rows' whole keys and values of one layer, not five's; and one layer twice while it is handed over
        layer = max(sum(flat.nbytes for flat in layer.flat) for layer in cache.layers)
        assert peak_of_pieces <= max(peak, cache.allocated_bytes + layer)
    if isinstance(policy, avl.AVL):
        assert peak_of_pieces < peak


@torch.inference_mode()
def test_recording_and_ragged_rows(monkeypatch):
    """Row 0 is recorded in its own piece, also where rows are laid out differently."""
    model, processor = avl.attach(shared_model("llava")), shared_processor("llava")
    alike = dict(encode(processor, [request(seed) for seed in range(3)]))
    monkeypatch.setattr(decode, "PROMPT_TOKENS", 1)
    cache = avl.make_cache(model, alike, avl.AVL(S=45, C=30), max_new_tokens=4)
    recorder = cache.record()
    Decoder(model, cache).prefill(alike)
    shares = [sum(layer.shares) for layer in recorder.layers()]
    assert shares == pytest.approx([1] * len(shares), abs=1e-4)
    ragged = dict(encode(processor, [request(1), request(2, before=6, after=9)]))
    cache = avl.make_cache(model, ragged, avl.AVL(S=45, C=30), max_new_tokens=4)
    recorder = cache.record()
    assert Decoder(model, cache).prefill(ragged).shape[0] == 2
    assert len(cache.buckets) == 2
    assert sum(recorder.layers()[0].shares) == pytest.approx(1, abs=1e-4)


MIXED = (RAGGED[1], RAGGED[0], RAGGED[2], RAGGED[0], RAGGED[1])
"""Five rows of three layouts, so that pieces hold other mixtures than the whole."""


def watched(model, rows):
    """Note how many rows pass through the text decoder's first layer at once."""
    return (
        language_model(model)
        .layers[0]
        .register_forward_hook(
            lambda _, args, kwargs, __: rows.append((args[0] if args else kwargs["hidden_states"]).shape[0]), with_kwargs=True
        )
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@torch.inference_mode()
def test_pieces_of_ragged_rows_are_the_whole(architecture, policy, model, processor, monkeypatch):
    inputs = dict(encode(processor, MIXED))
    whole, state, peak, _ = answer(model, inputs, policy)
    length = inputs["input_ids"].shape[1]
    for some in (1, 2, 3):
        monkeypatch.setattr(decode, "PROMPT_TOKENS", some * length + 1)
        rows, forward = [], vars(language_model(model)).get("forward")
        hook = watched(model, rows)
        try:
            pieces, state_of_pieces, peak_of_pieces, cache = answer(model, inputs, policy)
        finally:
            hook.remove()
        assert rows[: -(-5 // some)] == [some] * (5 // some) + [5 % some] * (5 % some > 0)
        assert vars(language_model(model)).get("forward") is forward
        torch.testing.assert_close(pieces, whole, rtol=2e-5, atol=2e-5)
        assert state_of_pieces == state
        layer = max(sum(flat.nbytes for flat in layer.flat) for layer in cache.layers)
        assert peak_of_pieces <= max(peak, cache.allocated_bytes + layer)


@pytest.mark.parametrize("name", sorted(tiny_families.MODELS))
@torch.inference_mode()
def test_pieces_of_every_family(name, monkeypatch):
    """Masks, positions in several dimensions and features that are added after several layers are cut with their rows."""
    tiny = tiny_families.MODELS[name]
    model = avl.attach(tiny.model())
    rows = base.RAGGED if tiny.pictures else [sizes[:1] for sizes in base.RAGGED]
    inputs = dict(base.encode(tiny, tiny.processor(), [*rows, rows[0], rows[1]]))
    policy = avl.AVL(S=45, C=30, P=70, T=60)
    whole, state, _, cache = answer(model, inputs, policy)
    assert len(cache.buckets) > 1
    monkeypatch.setattr(decode, "PROMPT_TOKENS", 2 * inputs["input_ids"].shape[1] + 1)
    seen = []
    hook = watched(model, seen)
    pieces, state_of_pieces, _, _ = answer(model, inputs, policy)
    hook.remove()
    assert seen[:3] == [2, 2, 1]
    torch.testing.assert_close(pieces, whole, rtol=2e-5, atol=2e-5)
    assert state_of_pieces == state


@torch.inference_mode()
def test_a_stop_between_pieces_of_ragged_rows(monkeypatch):
    """Nothing of it stays at the model."""
    model, processor = avl.attach(shared_model("llava")), shared_processor("llava")
    inputs = dict(encode(processor, MIXED))
    monkeypatch.setattr(decode, "PROMPT_TOKENS", 1)
    stop, rows = threading.Event(), []
    hook = watched(model, rows)
    also = language_model(model).layers[0].register_forward_hook(lambda *_: stop.set() if len(rows) > 1 else None)
    cache = avl.make_cache(model, inputs, avl.Full(), max_new_tokens=4)
    with pytest.raises(Stopped):
        Decoder(model, cache).prefill(inputs, stop)
    hook.remove()
    also.remove()
    assert rows == [1, 1]
    assert "forward" not in vars(language_model(model))
    assert Decoder(model, avl.make_cache(model, inputs, avl.Full(), max_new_tokens=4)).prefill(inputs).shape[0] == 5


def test_at_least_one_row_runs():
    assert rows_at_once(decode.PROMPT_TOKENS + 1) == 1
    assert rows_at_once(2900) == decode.PROMPT_TOKENS // 2900
