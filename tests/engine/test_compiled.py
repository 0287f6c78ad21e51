"""Steps compiled for a CPU do what torch's steps do, or are not used."""

from __future__ import annotations

import policy_cases
import pytest
import torch
from pairwise import pairwise
from random_models import build_model, encode, request, shared_model, shared_processor

import avl
import avl.kernels
from avl.engine import compiled
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder

STEPS = 7
POLICY = avl.AVL(S=45, C=30, K=3)


def both(model, inputs, policy, dtype=torch.float32):
    """The same tokens through compiled steps and through torch's at the same fixed addresses: pairs of logits, the caches."""
    caches = [avl.make_cache(model, inputs, policy, max_new_tokens=STEPS) for _ in range(2)]
    one, two = Decoder(model, caches[0]), Decoder(model, caches[1])
    assert one.uncompiled is None
    two.uncompiled = "not asked for"
    pairs = [(one.prefill(inputs), two.prefill(inputs))]
    for _ in range(STEPS):
        tokens = pairs[-1][1].argmax(dim=-1)
        pairs.append((one.step(tokens), two.step(tokens)))
    return pairs, caches


@pairwise(
    architecture=["llava-llama", "next-mistral"],
    policy=[*policy_cases.POLICIES, avl.AVL(S=60, C=30, K=2, T=60, spread=40), avl.H2O(keep=40)],
    rows=[1, 3],
    threads=[1, 2, 3],
    ids=lambda value: getattr(value, "label", str(value)),
)
@torch.inference_mode()
def test_a_compiled_step_leaves_what_torch_leaves(architecture, policy, rows, threads, monkeypatch):
    model, processor = avl.attach(shared_model(architecture)), shared_processor(architecture)
    inputs = dict(encode(processor, [request(number, before=3, after=6) for number in range(rows)]))
    monkeypatch.setattr(compiled, "_trusted", {})
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(compiled, "BYTES_PER_THREAD", 1)
    pairs, caches = both(model, inputs, policy)
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-5)
    for one, two in zip(caches[0].tables, caches[1].tables, strict=True):
        for found, wanted in zip(one.state(), two.state(), strict=True):
            if found.is_floating_point():
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
            else:
                assert torch.equal(found, wanted)
    for found, wanted in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(found.flat, wanted.flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_compiled_steps_at_real_head_sizes(dtype, monkeypatch):
    """Heads of 128, four query heads to a KV head, rows of several hundred tokens."""
    sizes = {"hidden_size": 1024, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128}
    model, processor = avl.attach(build_model("llava-llama", dtype=dtype, **sizes)), shared_processor("llava-llama")
    inputs = dict(encode(processor, [request(number, before=100, after=150) for number in range(4)]))
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    monkeypatch.setattr(compiled, "_trusted", {})
    pairs, caches = both(model, inputs, avl.AVL(S=60, C=40, K=2, T=80), dtype)
    near = 2e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    for one, two in pairs:
        assert float((one.float() - two.float()).abs().max() / two.float().abs().max()) <= near
    assert caches[0].stored_tokens == caches[1].stored_tokens


@torch.inference_mode()
def test_a_compiled_step_that_differs_is_not_trusted(monkeypatch):
    from avl.kernels.step.numba import Step

    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    inputs = dict(encode(processor, [request(1)]))
    right = avl.make_cache(model, inputs, POLICY, max_new_tokens=STEPS)
    decoder = Decoder(model, right)
    decoder.uncompiled = "not asked for"
    tokens = decoder.prefill(inputs).argmax(dim=-1)
    wanted = [decoder.step(tokens) for _ in range(3)]
    whole = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda self, *given: whole(self, *given) * 1.5)
    cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=STEPS)
    decoder = Decoder(model, cache)
    decoder.prefill(inputs)
    for one in wanted:
        assert torch.equal(decoder.step(tokens), one)
    assert decoder.uncompiled == "a compiled step leaves another logits than torch's"
    again = Decoder(model, avl.make_cache(model, inputs, POLICY, max_new_tokens=STEPS))
    assert again.uncompiled == decoder.uncompiled  # once is enough


@torch.inference_mode()
def test_why_steps_are_not_compiled(monkeypatch):
    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    alike, ragged = (dict(encode(processor, requests)) for requests in ([request(1)] * 2, [request(1), request(2, after=9)]))

    def why(inputs=alike, subject=model, record=False):
        cache = avl.make_cache(subject, inputs, POLICY, max_new_tokens=4)
        if record:
            cache.record()
        decoder = Decoder(subject, cache)
        assert cache.static == (decoder.uncompiled is None)
        return decoder.uncompiled

    assert why() is None
    assert why(ragged) == "the rows of the batch are laid out differently"
    assert why(record=True) == "its attention is recorded"
    assert why(dict(encode(processor, [request(1)] * 17))) == "torch's products are faster for more than 16 rows"
    assert why(subject=avl.attach(build_model("llava-llama").double())) == "numba's kernels are not used"
    hooked = avl.attach(build_model("llava-llama"))
    hooked.lm_head.register_forward_hook(lambda *_: None)
    assert why(subject=hooked) == "its output layer is not a plain linear layer"
    strided = avl.attach(build_model("llava-llama"))
    down = strided.model.language_model.layers[2].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.t().contiguous().t(), requires_grad=False)
    assert why(subject=strided) == "its weights do not lie in memory as they were made"
    monkeypatch.setattr(avl.kernels, "numba_trouble", lambda dtype: "none")
    assert why() == "numba's kernels are not used"
    assert isinstance(GraphDecoder(model, avl.make_cache(model, alike, POLICY, max_new_tokens=4)).uncompiled, str)
