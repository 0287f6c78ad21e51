"""Pruning in prefill: the prompt's last position asks and answers, so it never leaves, also where it is an image token."""

from __future__ import annotations

import pytest
import torch
from random_models import build_model, encode, request, shared_processor

import avl
from avl.cache.layout import Row
from avl.cache.prefill_state import PrefillState

POLICIES = [
    avl.AVL(S=100, C=None, P=1, T=None),
    avl.AVL(S=45, C=30, K=3, P=90, T=60),
    avl.FastV(layer=1, keep=1),
    avl.FastV(layer=2, keep=50),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@pytest.mark.parametrize("architecture", ["llava-llama", "next-mistral"])
@torch.inference_mode()
def test_the_last_position_stays_in_every_row(policy, architecture):
    """Rows alone, alike and ragged, of which some end in their image: as many tokens leave as ever, and never the last."""
    model, processor = avl.attach(build_model(architecture)), shared_processor(architecture)
    ends, goes_on = request(11, after=0), request(12, sizes=((30, 44), (28, 28)), after=4)
    for rows in ([ends], [ends, request(13, after=0)], [goes_on, ends, request(14, before=9, after=0)]):
        inputs = dict(encode(processor, rows))
        cache = avl.make_cache(model, inputs, policy, max_new_tokens=4)
        model(**inputs, past_key_values=cache, use_cache=True)
        for number, row in enumerate(cache.rows):
            bucket = next(bucket for bucket in cache.buckets if number in bucket.rows)
            stay = policy.present(len(cache.layers) - 1, bucket.shape)
            gone = cache.pruned.get(number, [])
            assert len(gone) == row.n_image - stay
            if row.image[-1] == row.length - 1:
                assert row.n_image - 1 not in gone


@pytest.mark.parametrize("n", [576, 2928])
@pytest.mark.parametrize("pads", [(0,), (0, 0), (0, 3)])
def test_the_lowest_score_does_not_drop_the_last_position(n, pads):
    """At the sizes of LLaVA-1.5 and 1.6: the last position has the lowest score of all and stays; of the others, the best stay."""
    length = 8 + n
    rows = tuple(Row(pad, length - pad, tuple(range(length - pad - n, length - pad))) for pad in pads)
    buckets = [tuple(range(len(pads)))] if len(set(rows)) == 1 else [(number,) for number in range(len(pads))]
    state = PrefillState(rows, buckets, pins_image=True)
    scores = torch.rand(len(pads), n, generator=torch.Generator().manual_seed(n)) + 1
    scores[:, -1] = 0
    state.scores = [scores[list(bucket)] for bucket in buckets]
    keep = n // 10
    survivors = state.prune([keep] * len(buckets))
    assert survivors is not None
    assert survivors[:, -1].tolist() == [length - 1] * len(pads)
    for bucket, columns in zip(buckets, state.columns, strict=True):
        for row, kept in zip(bucket, columns.image_idx.tolist(), strict=True):
            best = scores[row, :-1].topk(keep - 1).indices.tolist()
            assert kept == sorted([*best, n - 1])
