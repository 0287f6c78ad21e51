"""The bank that keeps the core in consecutive slots: what moves, moves whole, and the core is the one that scores say."""

from __future__ import annotations

import pytest
import torch
from random_models import encode, request, shared_model, shared_processor

import avl
from avl.cache.contiguous import SlicedBank
from avl.cache.slots import Bank, Group, Part
from avl.engine.decoder import Decoder

LAYERS, IMAGE, CORE, WINDOW, HEADS, SIZE = 3, 23, 9, 5, 2, 4


def make(dtype: torch.dtype) -> tuple[SlicedBank, list[Part], list[list[int]]]:
    """A bank, its parts, and the ordinals that each layer's core held before. Every entry is its ordinal, everywhere."""
    draw = torch.Generator().manual_seed(1)
    group = Group([0], None, WINDOW - 1, None, 0, 0, WINDOW, None, WINDOW - 1)  # type: ignore[arg-type]
    parts, cores = [], []
    for layer in range(LAYERS):
        ordinals = torch.randperm(40, generator=draw)[:IMAGE].sort().values[None]
        keys = torch.full((1, IMAGE + WINDOW, HEADS, SIZE), 1000.0 + layer, dtype=dtype)
        keys[0, :IMAGE] = ordinals[0, :, None, None].to(dtype)
        core = torch.randperm(IMAGE, generator=draw)[:CORE].sort().values
        cores.append(sorted(ordinals[0, core].tolist()))
        index = torch.cat([core, torch.arange(IMAGE, IMAGE + WINDOW)])[None]
        parts.append(Part(keys, -keys, ordinals, torch.arange(WINDOW).view(1, 1, -1), None, index))
    return SlicedBank(group, parts, CORE), parts, cores


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_core_lies_next_to_the_window(dtype):
    bank, parts, cores = make(dtype)
    addresses = [(part.keys.data_ptr(), part.values.data_ptr()) for part in parts]
    draw = torch.Generator().manual_seed(2)
    for update in range(6):
        if update:
            # few values: ties are common, and go to the lower ordinal wherever its slot is
            bank.image_scores.copy_(torch.randint(4, bank.image_scores.shape, generator=draw) / 4)
            cores = []
            for part, scores in zip(parts, bank.image_scores[:, 0].tolist(), strict=True):
                ranked = sorted(range(IMAGE), key=lambda slot: (-scores[slot], int(part.ordinals[0, slot])))
                cores.append(sorted(part.ordinals[0, ranked[:CORE]].tolist()))
            bank.choose_core()
        for layer, part in enumerate(parts):
            ordinals = part.ordinals[0]
            assert sorted(ordinals[IMAGE - CORE :].tolist()) == cores[layer]
            assert len(set(ordinals.tolist())) == IMAGE
            assert torch.equal(part.keys[0, :IMAGE], ordinals[:, None, None].to(dtype).expand(-1, HEADS, SIZE))
            assert torch.equal(part.values, -part.keys)
            assert (part.keys[0, IMAGE:] == 1000.0 + layer).all()  # the window stays where it is
            assert part.index[0].tolist() == list(range(IMAGE - CORE, IMAGE + WINDOW))
    assert addresses == [(part.keys.data_ptr(), part.values.data_ptr()) for part in parts]


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
        logits = [decoder.prompt(inputs)]
        sets = []
        for _ in range(9):
            logits.append(decoder.step(logits[-1].argmax(dim=-1)))
            sets.append(cache.image_sets(0))
        assert [type(bank) for bank in cache.banks] == [SlicedBank if rows == 1 else Bank]
        found[rows] = torch.stack(logits)[:, 0], sets
    torch.testing.assert_close(found[1][0], found[2][0], rtol=2e-5, atol=2e-5)
    assert found[1][1] == found[2][1]
