"""A large batch's prompt runs some rows after others: the answer, the cache and its memory are those of the whole batch at once."""

from __future__ import annotations

import policy_cases
import pytest
import torch
from random_models import ARCHITECTURES, encode, request, shared_model, shared_processor

import avl
from avl.engine import decoder as decode
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder, rows_at_once

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
    """Row 0 is recorded in its own piece; rows laid out differently stay together."""
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
    assert Decoder(model, cache).prefill(ragged).shape[0] == 2
    assert len(cache.buckets) == 2


def test_at_least_one_row_runs():
    assert rows_at_once(decode.PROMPT_TOKENS + 1) == 1
    assert rows_at_once(2900) == decode.PROMPT_TOKENS // 2900
