"""A cache can be copied, for several continuations of one prompt, and cannot be pickled; what it cannot do, it says."""

from __future__ import annotations

import copy
import pickle

import policy_cases
import pytest
import torch
from pairwise import pairwise
from random_models import build_model, encode, request, shared_processor

import avl
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder

NEW = 7
ROWS = {"one": [request(1)], "alike": [request(1), request(2)], "ragged": [request(1), request(2, before=6, after=9)]}


def step(model, cache, tokens):
    return model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True).logits[:, -1]


@pairwise(architecture=("llava-llama", "next-mistral"), policy=policy_cases.POLICIES, rows=ROWS, steps=(0, 1, 4), ids=str)
@torch.inference_mode()
def test_a_copy_goes_on_by_itself(architecture, policy, rows, steps):
    """Two continuations of one cache, step by step in turn, are two runs of the whole."""
    model, inputs = avl.attach(build_model(architecture)), dict(encode(shared_processor(architecture), ROWS[rows]))
    caches = [avl.make_cache(model, inputs, policy, NEW) for _ in range(2)]
    for cache in caches:
        first = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1].argmax(dim=-1)
        for number in range(steps):
            step(model, cache, first + number)
    branches = [caches[0], copy.deepcopy(caches[0])]
    branches.append(copy.deepcopy(branches[1]))
    feeds = [first + 20, first + 30, first + 20]
    for number in range(NEW - steps):
        logits = [step(model, cache, (feed + number) % 100 + 10) for cache, feed in zip(branches, feeds, strict=True)]
        alone = step(model, caches[1], (feeds[0] + number) % 100 + 10)
        assert torch.equal(logits[0], alone)
        assert torch.equal(logits[2], alone)
        assert not torch.equal(logits[1], alone)
    for row in range(caches[0].batch_size):
        assert branches[2].image_sets(row) == caches[1].image_sets(row)
        assert branches[2].text_positions(2, row) == caches[1].text_positions(2, row)
    assert branches[0].stored_bytes == branches[1].stored_bytes == caches[1].stored_bytes


@pytest.mark.parametrize("kind", [Decoder, GraphDecoder])
@torch.inference_mode()
def test_a_copy_shares_no_memory(kind):
    model, inputs = avl.attach(build_model("llava-llama")), dict(encode(shared_processor("llava-llama"), ROWS["alike"]))
    cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30, K=3, T=60, spread=20), NEW)
    decoder = kind(model, cache)
    decoder.step(decoder.prefill(inputs).argmax(dim=-1))
    twin = copy.deepcopy(cache)
    for layer, other in zip(cache.layers, twin.layers, strict=True):
        assert other.owner is twin
        assert {flat.data_ptr() for flat in layer.flat}.isdisjoint(flat.data_ptr() for flat in other.flat)
        # the copy's slots are views of the copy's storage, as the original's are
        assert other.kvs[0].keys.untyped_storage().data_ptr() == other.flat[0].untyped_storage().data_ptr()
    assert twin.allocated_bytes == cache.allocated_bytes
    assert twin.model() is model


def test_a_cache_is_not_pickled():
    model, inputs = avl.attach(build_model("llava-llama")), dict(encode(shared_processor("llava-llama"), ROWS["one"]))
    with pytest.raises(TypeError, match="cannot be pickled, it belongs to a model of this process"):
        pickle.dumps(avl.make_cache(model, inputs, avl.Full(), 4))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda cache: cache.crop(1), "evicted tokens do not come back"),
        (lambda cache: cache.batch_repeat_interleave(2), "cannot be repeated"),
        (lambda cache: cache.batch_select_indices(torch.tensor([0])), "cannot be selected"),
        (lambda cache: cache.reorder_cache(torch.tensor([0])), "beam search"),
        (lambda cache: cache.reset(), "belongs to one generation"),
        (lambda cache: cache.offload(0), "stays on its device"),
        (lambda cache: cache.layers[0].prefetch(), "stays on its device"),
    ],
)
def test_what_a_cache_cannot_do_it_says(call, sentence):
    model, inputs = avl.attach(build_model("llava-llama")), dict(encode(shared_processor("llava-llama"), ROWS["one"]))
    cache = avl.make_cache(model, inputs, avl.AVL(S=45), 4)
    with torch.inference_mode():
        model(**inputs, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match=sentence):
        call(cache)
