"""Slot tables: what the kernels are given."""

from __future__ import annotations

import pytest
import torch
from random_models import build_model, encode, request, shared_processor

import avl
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder


@pytest.mark.parametrize("rows", [1, 2])
@torch.inference_mode()
def test_a_static_index_is_int32_and_seen_by_its_layers(rows: int) -> None:
    """Half the bytes of int64, one kind of kernel; what it names stays what a table with int64 names, step for step."""
    model = avl.attach(build_model("llava-llama"))
    inputs = dict(encode(shared_processor("llava-llama"), [request(row) for row in range(1, rows + 1)]))
    caches = [avl.make_cache(model, inputs, avl.AVL(S=45, C=30, K=2, T=60, spread=20), 6) for _ in range(2)]
    decoders = [kind(model, cache) for kind, cache in zip((GraphDecoder, Decoder), caches, strict=True)]
    tokens, _ = (decoder.prefill(inputs).argmax(dim=-1) for decoder in decoders)
    for _ in range(5):
        static, plain = (decoder.step(tokens) for decoder in decoders)
        torch.testing.assert_close(static, plain, rtol=1e-4, atol=1e-4)
        tokens = static.argmax(dim=-1)
        for table in caches[0].tables:
            assert table.index.dtype == torch.int32
            assert any(table.index.data_ptr() == tensor.data_ptr() for tensor in table.state())
        for layer in caches[0].layers:
            kv = layer.kvs[0]
            assert kv.index.dtype == torch.int32
            assert kv.index.data_ptr() == kv.table.index[kv.place].data_ptr()
            assert kv.view(False).slots.dtype == torch.int32
        for row in range(rows):
            assert caches[0].image_sets(row) == caches[1].image_sets(row)
