"""The slot table that keeps the core contiguous: what moves, moves whole, and the core is the one that scores say."""

from __future__ import annotations

import pytest
import torch
from random_models import encode, request, shared_model, shared_processor

import avl
from avl.cache.contiguous import ContiguousSlotTable
from avl.cache.slots import LayerKV, RowBucket, SlotTable, WindowPlan
from avl.engine.decoder import Decoder

LAYERS, IMAGE, CORE, WINDOW, HEADS, SIZE = 3, 23, 9, 5, 2, 4


def make(dtype: torch.dtype) -> tuple[ContiguousSlotTable, list[LayerKV], list[list[int]]]:
    """A table, its layers, and the image tokens that each layer's core held before. Every entry is its token's number, everywhere."""
    draw = torch.Generator().manual_seed(1)
    window = WindowPlan(WINDOW - 1, WINDOW - 1, None, 0, 0, WINDOW, None)
    bucket = RowBucket((0,), None, None, (window,) * LAYERS, None)  # type: ignore[arg-type]
    kvs, cores = [], []
    for layer in range(LAYERS):
        image_idx = torch.randperm(40, generator=draw)[:IMAGE].sort().values[None]
        keys = torch.full((1, IMAGE + WINDOW, HEADS, SIZE), 1000.0 + layer, dtype=dtype)
        keys[0, :IMAGE] = image_idx[0, :, None, None].to(dtype)
        core = torch.randperm(IMAGE, generator=draw)[:CORE].sort().values
        cores.append(sorted(image_idx[0, core].tolist()))
        index = torch.cat([core, torch.arange(IMAGE, IMAGE + WINDOW)])[None]
        kvs.append(LayerKV(keys, -keys, image_idx, torch.arange(WINDOW).view(1, 1, -1), None, index, window))
    return ContiguousSlotTable(bucket, kvs, CORE), kvs, cores


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_core_lies_next_to_the_window(dtype):
    table, kvs, cores = make(dtype)
    addresses = [(kv.keys.data_ptr(), kv.values.data_ptr()) for kv in kvs]
    draw = torch.Generator().manual_seed(2)
    for update in range(6):
        if update:
            # few values: ties are common, and go to the lower token wherever its slot is
            table.image_scores.copy_(torch.randint(4, table.image_scores.shape, generator=draw) / 4)
            cores = []
            for kv, scores in zip(kvs, table.image_scores[:, 0].tolist(), strict=True):
                ranked = sorted(range(IMAGE), key=lambda slot: (-scores[slot], int(kv.image_idx[0, slot])))
                cores.append(sorted(kv.image_idx[0, ranked[:CORE]].tolist()))
            table.choose_core()
        for layer, kv in enumerate(kvs):
            image_idx = kv.image_idx[0]
            assert sorted(image_idx[IMAGE - CORE :].tolist()) == cores[layer]
            assert len(set(image_idx.tolist())) == IMAGE
            assert torch.equal(kv.keys[0, :IMAGE], image_idx[:, None, None].to(dtype).expand(-1, HEADS, SIZE))
            assert torch.equal(kv.values, -kv.keys)
            assert (kv.keys[0, IMAGE:] == 1000.0 + layer).all()  # the window stays where it is
            assert kv.index[0].tolist() == list(range(IMAGE - CORE, IMAGE + WINDOW))
    assert addresses == [(kv.keys.data_ptr(), kv.values.data_ptr()) for kv in kvs]


@torch.inference_mode()
def test_one_row_on_a_cpu_is_sliced_and_several_are_not(monkeypatch):
    """And both answer alike."""
    model, processor = avl.attach(shared_model("llava-llama")), shared_processor("llava-llama")
    policy = avl.AVL(S=60, C=25, K=2, T=50)
    found = {}
    for rows in (1, 2):
        inputs = dict(encode(processor, [request(1)] * rows))
        cache = avl.make_cache(model, inputs, policy, max_new_tokens=9)
        decoder = Decoder(model, cache)
        logits = [decoder.prefill(inputs)]
        sets = []
        for _ in range(9):
            logits.append(decoder.step(logits[-1].argmax(dim=-1)))
            sets.append(cache.image_sets(0))
        assert [type(table) for table in cache.tables] == [ContiguousSlotTable if rows == 1 else SlotTable]
        found[rows] = torch.stack(logits)[:, 0], sets
    torch.testing.assert_close(found[1][0], found[2][0], rtol=2e-5, atol=2e-5)
    assert found[1][1] == found[2][1]
