"""Invariant: entries stored and read are closed forms of N, the text, the parameters, the layer and the step; bytes follow from entries."""

from __future__ import annotations

import pytest
import torch
from observed import State, generate, words
from oracle import share
from pairwise import pairwise
from random_models import (
    ARCHITECTURES,
    HEAD_DIM,
    LAYERS,
    RAGGED,
    build_model,
    build_processor,
    encode,
    kv_heads,
    request,
    shared_processor,
)

import avl

LIMIT = 14
BATCHES = {"single": RAGGED[:1], "ragged": RAGGED}


def expected_counts(policy: avl.AVL, n_image: int, n_text: int, limit: int, layer: int, t: int) -> tuple[int, int]:
    """Entries stored after, and read by, decode step t (t = 0: after prefill) of one row: the table of the specification."""
    stored_image = share(policy.S, n_image)
    if layer >= 2 and policy.P is not None:
        stored_image = min(stored_image, share(policy.P, n_image))
    core = stored_image if policy.C is None else min(share(policy.C, n_image), stored_image)
    period = policy.K if policy.update == "every" else policy.K + 1
    read_image = stored_image if t % period == 0 else core
    window = n_text + limit if policy.T is None else share(policy.T, n_text + limit)
    stored_text = min(n_text + t, window)
    read_text = min(n_text + t - 1, window) + 1  # the new token is attended to before anything is evicted
    return stored_image + stored_text, read_image + read_text


def check(states: list[State], policy: avl.AVL, sizes: list[tuple[int, int]], limit: int, entry_bytes: int) -> None:
    for t, state in enumerate(states):
        counts = [[expected_counts(policy, n, text, limit, layer, t) for n, text in sizes] for layer in range(len(state.stored))]
        assert state.stored == [sum(stored for stored, _ in rows) for rows in counts], f"stored, step {t}"
        assert state.stored_bytes == sum(state.stored) * entry_bytes, f"stored bytes, step {t}"
        if t:
            assert state.read == [sum(read for _, read in rows) for rows in counts], f"read, step {t}"
            assert state.read_bytes == sum(state.read) * entry_bytes, f"read bytes, step {t}"


def sizes_of(inputs, image_token_id: int) -> list[tuple[int, int]]:
    image = (inputs["input_ids"] == image_token_id).sum(1)
    real = inputs["attention_mask"].sum(1)
    return [(int(n), int(length - n)) for n, length in zip(image, real, strict=True)]


@pairwise(architecture=ARCHITECTURES, K=[1, 2, 3], update=["every", "after"], batch=BATCHES)
def test_counts_are_closed_forms(architecture, K, update, batch, model, processor):
    inputs = encode(processor, BATCHES[batch])
    sizes = sizes_of(inputs, model.config.image_token_id)
    entry = 2 * kv_heads(architecture) * HEAD_DIM * 4
    for S, C, P, T, spread in ((45, 30, 90, 60, None), (70, 50, 40, 25, 33), (100, 10, None, None, 100)):
        policy = avl.AVL(S=S, C=C, K=K, P=P, T=T, update=update, spread=spread)
        feed = words(3, len(sizes), LIMIT)
        check(generate(model, inputs, policy, LIMIT, feed=feed, sets=False).states, policy, sizes, LIMIT, entry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def test_bytes_follow_the_precision(dtype):
    model = build_model("next-mistral", dtype=dtype)
    avl.attach(model)
    inputs = encode(shared_processor("next-mistral"), RAGGED).to(dtype)
    policy = avl.AVL(S=45, C=30, K=3, P=90, T=60)
    states = generate(model, inputs, policy, 5, sets=False).states
    check(states, policy, sizes_of(inputs, model.config.image_token_id), 5, 2 * 2 * HEAD_DIM * dtype.itemsize)


def test_one_row_alone_counts_the_same_as_the_sum_over_the_batch():
    model, processor = build_model("next-llama"), shared_processor("next-llama")
    avl.attach(model)
    policy, feed = avl.AVL(S=45, C=30, K=3, P=90, T=60), words(3, 3, LIMIT)
    together = generate(model, encode(processor, RAGGED), policy, LIMIT, feed=feed, sets=False).states
    apart = [
        generate(model, encode(processor, [row]), policy, LIMIT, feed=[tokens], sets=False).states
        for row, tokens in zip(RAGGED, feed, strict=True)
    ]
    for t, state in enumerate(together):
        assert state.stored == [sum(row[t].stored[layer] for row in apart) for layer in range(LAYERS)]
        if t:
            assert state.read == [sum(row[t].read[layer] for row in apart) for layer in range(LAYERS)]


def test_the_papers_table_3_with_576_image_tokens():
    """S=45 C=30 K=3 P=90, N = 576, about 64 text tokens: stored 50 %, read 40 to 42 % of the full cache (the paper: 50 % and 40 %)."""
    side, patch = 48, 2
    model = build_model("llava-llama", side=side, patch=patch, max_position_embeddings=1024)
    processor = build_processor("llava-llama", side=side, patch=patch)
    avl.attach(model)
    limit = 31
    inputs = encode(processor, [request(4, before=10, after=24)])
    ((n_image, n_text),) = sizes_of(inputs, model.config.image_token_id)
    assert (n_image, n_text) == (576, 35)
    states = generate(model, inputs, avl.AVL(S=45, C=30, K=3, P=90, T=None), limit, feed=words(1, 1, limit), sets=False).states[1:]
    full = [LAYERS * (n_image + n_text + t) for t in range(1, limit)]
    stored = sum(sum(state.stored) for state in states) / sum(full)
    read = sum(sum(state.read) for state in states) / sum(full)
    assert 0.48 <= stored <= 0.51
    assert 0.395 <= read <= 0.425
