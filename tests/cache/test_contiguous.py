"""The slot table that keeps the core contiguous: what moves, moves whole, and the core is the one that scores say."""

from __future__ import annotations

import pytest
import torch
from random_models import encode, request, shared_model, shared_processor

import avl
import avl.kernels
from avl.cache.contiguous import ContiguousSlotTable
from avl.cache.slots import LayerKV, RowBucket, StaticSlotTable, WindowPlan
from avl.engine.decoder import Decoder

LAYERS, IMAGE, CORE, WINDOW, HEADS, SIZE = 3, 23, 9, 5, 2, 4


def make(dtype: torch.dtype, rows: int) -> tuple[ContiguousSlotTable, list[LayerKV], list[list[list[int]]]]:
    """A table, its layers, and the image tokens that each layer's core held before, row by row. Every entry is its token's number."""
    draw = torch.Generator().manual_seed(1)
    window = WindowPlan(WINDOW - 1, WINDOW - 1, None, 0, 0, WINDOW, None)
    bucket = RowBucket(tuple(range(rows)), None, None, (window,) * LAYERS, None)  # type: ignore[arg-type]
    kvs, cores = [], []
    for layer in range(LAYERS):
        image_idx = torch.stack([torch.randperm(40, generator=draw)[:IMAGE].sort().values for _ in range(rows)])
        keys = torch.full((rows, IMAGE + WINDOW, HEADS, SIZE), 1000.0 + layer, dtype=dtype)
        keys[:, :IMAGE] = image_idx[:, :, None, None].to(dtype)
        core = torch.stack([torch.randperm(IMAGE, generator=draw)[:CORE].sort().values for _ in range(rows)])
        cores.append([sorted(tokens) for tokens in image_idx.gather(1, core).tolist()])
        index = torch.cat([core, torch.arange(IMAGE, IMAGE + WINDOW).expand(rows, -1)], dim=1)
        token_idx = torch.arange(WINDOW).expand(rows, 1, -1)
        kvs.append(LayerKV(keys, -keys, image_idx, token_idx, None, index, window))
    return ContiguousSlotTable(bucket, kvs, CORE), kvs, cores


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_core_lies_next_to_the_window(dtype, rows):
    table, kvs, cores = make(dtype, rows)
    addresses = [(kv.keys.data_ptr(), kv.values.data_ptr()) for kv in kvs]
    draw = torch.Generator().manual_seed(2)
    for update in range(6):
        if update:
            # few values: ties are common, and go to the lower token wherever its slot is
            table.image_scores.copy_(torch.randint(4, table.image_scores.shape, generator=draw) / 4)
            cores = [[] for _ in kvs]
            for layer, kv in enumerate(kvs):
                for row, scores in enumerate(table.image_scores[layer].tolist()):
                    token = kv.image_idx[row].tolist()
                    ranked = sorted(range(IMAGE), key=lambda slot, scores=scores, token=token: (-scores[slot], token[slot]))
                    cores[layer].append(sorted(token[slot] for slot in ranked[:CORE]))
            table.choose_core()
        for layer, kv in enumerate(kvs):
            for row, image_idx in enumerate(kv.image_idx):
                assert sorted(image_idx[IMAGE - CORE :].tolist()) == cores[layer][row]
                assert len(set(image_idx.tolist())) == IMAGE
                assert torch.equal(kv.keys[row, :IMAGE], image_idx[:, None, None].to(dtype).expand(-1, HEADS, SIZE))
                assert kv.index[row].tolist() == list(range(IMAGE - CORE, IMAGE + WINDOW))
            assert torch.equal(kv.values, -kv.keys)
            assert (kv.keys[:, IMAGE:] == 1000.0 + layer).all()  # the window stays where it is
    assert addresses == [(kv.keys.data_ptr(), kv.values.data_ptr()) for kv in kvs]


@torch.inference_mode()
def test_torch_alone_slices_and_numba_reads_in_place(monkeypatch):
    """And both answer alike."""
    model, processor = avl.attach(shared_model("llava-llama")), shared_processor("llava-llama")
    policy = avl.AVL(S=60, C=25, K=2, T=50)
    found = []
    if (trouble := avl.kernels.numba_trouble(torch.float32)) is not None:
        pytest.skip(trouble)
    for rows, trouble, kind in ((1, None, StaticSlotTable), (1, "none", ContiguousSlotTable), (2, "none", ContiguousSlotTable)):
        monkeypatch.setattr(avl.kernels, "numba_trouble", lambda dtype, trouble=trouble: trouble)
        inputs = dict(encode(processor, [request(1)] * rows))
        cache = avl.make_cache(model, inputs, policy, max_new_tokens=9)
        decoder = Decoder(model, cache)
        logits = [decoder.prefill(inputs)]
        sets = []
        for _ in range(9):
            logits.append(decoder.step(logits[-1].argmax(dim=-1)))
            sets.append(cache.image_sets(0))
        assert {type(table) for table in cache.tables} == {kind}
        found.append((torch.stack(logits)[:, 0], sets))
    for logits, sets in found[1:]:
        torch.testing.assert_close(logits, found[0][0], rtol=2e-5, atol=2e-5)
        assert sets == found[0][1]
