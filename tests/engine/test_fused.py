"""Fused decode steps give what the model's own modules give, and leave the model as they found it."""

from __future__ import annotations

import copy

import policy_cases
import pytest
import torch
from pairwise import pairwise
from random_models import ARCHITECTURES, build_model, encode, request, shared_processor
from tiny_families import MODELS
from tiny_families.base import encode as encode_family

import avl
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder
from avl.engine.fusable import why_not
from avl.engine.fused import FusedLayers, merge
from avl.kernels import numba_trouble
from avl.models.loading import load

STEPS = 8
POLICIES = tuple(policy_cases.POLICIES)
REQUESTS = {"one": [request(1)], "alike": [request(1), request(2)], "ragged": [request(1), request(2, before=6, after=9)]}


def attached(architecture: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return avl.attach(build_model(architecture, dtype=dtype))


MODULES = "the modules are asked for"


def steps(decoder: Decoder, inputs: dict, tokens: list[torch.Tensor] | None = None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of STEPS steps, and the tokens that were fed: ``tokens``, or the best ones."""
    logits, fed = [decoder.prefill(inputs)], []
    for number in range(STEPS):
        fed.append(logits[-1].argmax(dim=-1) if tokens is None else tokens[number])
        logits.append(decoder.step(fed[-1]))
    return logits[1:], fed


@pairwise(
    architecture=ARCHITECTURES,
    policy=POLICIES,
    rows=REQUESTS,
    how=["apart", "merged", "compiled"],
    ids=lambda value: getattr(value, "label", str(value)),
)
@torch.inference_mode()
def test_fused_steps_are_the_modules_steps(architecture, policy, rows, how):
    model, processor = attached(architecture), shared_processor(architecture)
    inputs = dict(encode(processor, REQUESTS[rows]))
    caches = [avl.make_cache(model, inputs, policy, max_new_tokens=STEPS) for _ in range(2)]
    modules, fused = Decoder(model, caches[0]), Decoder(model, caches[1])
    assert fused.unfused is None
    modules._layers, modules.uncompiled = None, MODULES
    if how == "compiled":
        if (trouble := numba_trouble()) is not None:
            pytest.skip(trouble)
        ragged = len(caches[1].buckets) > 1
        assert (fused.uncompiled is None) != ragged
    else:
        fused._layers, fused.uncompiled = FusedLayers(model, caches[1], merged=how == "merged"), "it is not asked for"
    expected, fed = steps(modules, inputs)
    found, _ = steps(fused, inputs, fed)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-5)
    one, two = caches
    assert one.stored_tokens == two.stored_tokens
    assert one.read_tokens == two.read_tokens
    for row in range(one.batch_size):
        assert one.image_sets(row) == two.image_sets(row)


class Scaled(torch.nn.Embedding):
    """An embedding of its own class, as some families have it."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(tokens)


def hooked(table: torch.nn.Embedding) -> None:
    table.register_forward_hook(lambda module, given, found: 1.5 * found)


def scaled(table: torch.nn.Embedding) -> None:
    table.__class__ = Scaled


def replaced(table: torch.nn.Embedding) -> None:
    forward = table.forward
    table.forward = lambda tokens: 1.5 * forward(tokens)  # type: ignore[method-assign]


def bounded(table: torch.nn.Embedding) -> None:
    table.max_norm = 0.01


@pytest.mark.parametrize("kind", [Decoder, GraphDecoder])
@pytest.mark.parametrize("change", [hooked, scaled, replaced, bounded, None])
@torch.inference_mode()
def test_an_embedding_that_does_more_than_to_look_up_runs_itself(change, kind):
    model, processor = attached("llava-llama"), shared_processor("llava-llama")
    if change is not None:
        change(model.model.language_model.embed_tokens)
    inputs = dict(encode(processor, REQUESTS["alike"]))
    caches = [avl.make_cache(model, inputs, POLICIES[0], max_new_tokens=STEPS) for _ in range(2)]
    modules, fused = Decoder(model, caches[0]), kind(model, caches[1])
    assert fused.unfused is None
    assert fused._layers.looks_up == (change is None)
    fused.uncompiled = MODULES
    modules._layers, modules.uncompiled = None, MODULES
    expected, fed = steps(modules, inputs)
    found, _ = steps(fused, inputs, fed)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_low_precision_rounds_where_the_modules_round(dtype, name):
    """Only the order within sums may differ: no logit moves by more than the dtype's own noise against float32."""
    tiny = MODELS[name]
    model, exact = avl.attach(tiny.model(dtype)), avl.attach(tiny.model())
    exact.load_state_dict(model.state_dict())
    inputs = dict(encode_family(tiny, tiny.processor()))
    low = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    found = {}
    for name, subject, given in (("modules", model, low), ("fused", model, low), ("exact", exact, inputs)):
        cache = avl.make_cache(subject, given, avl.Full(), max_new_tokens=STEPS)
        decoder = Decoder(subject, cache)
        if name == "modules":
            decoder._layers, decoder.uncompiled = None, MODULES
        fed = found.get("modules", (None, None))[1]
        found[name] = steps(decoder, given, fed)
    exactly = torch.stack(found["exact"][0])
    noise, error = ((torch.stack(found[name][0]).float() - exactly).abs().mean() for name in ("modules", "fused"))
    assert error <= 1.1 * noise


def test_merged_weights_change_nothing_and_can_be_undone(tmp_path):
    """One copy of the weights, the same parameters, saved and copied as ever; detach gives each its own memory again."""
    model, processor = attached("llava-llama"), shared_processor("llava-llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    inputs = dict(encode(processor, REQUESTS["one"]))
    plain = model.generate(**inputs, max_new_tokens=4)
    with torch.inference_mode():
        layers = FusedLayers(model, avl.make_cache(model, inputs, avl.Full(), 4), merged=True)
    attention = model.model.language_model.layers[1].self_attn
    storages = {product.weight.untyped_storage().data_ptr() for product in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(storages) == 1
    assert layers.weights[1].qkv[0][0].untyped_storage().data_ptr() in storages

    def same(tensors):
        assert tensors.keys() == before.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, before[name]), name

    same(model.state_dict())
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    again, _ = merge((attention.q_proj, attention.k_proj, attention.v_proj))
    assert again.data_ptr() == layers.weights[1].qkv[0][0].data_ptr()  # merged once
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), plain)
    same(copy.deepcopy(model).state_dict())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    same(load(tmp_path, device="cpu", dtype=torch.float32)[0].state_dict())
    avl.detach(model)
    same(model.state_dict())
    assert attention.q_proj.weight.untyped_storage().nbytes() == attention.q_proj.weight.nbytes
    model.train()
    model.requires_grad_(True)
    model(**inputs).logits.sum().backward()  # the parameters can still be trained
    assert attention.q_proj.weight.grad is not None


@torch.inference_mode()
def test_merged_biases_are_separated_again():
    """As the weights: one copy while merged, each its own memory after ``avl.detach``, the same values throughout."""
    tiny = MODELS["qwen2_5_vl"]
    model, inputs = avl.attach(tiny.model()), dict(encode_family(tiny, tiny.processor()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FusedLayers(model, avl.make_cache(model, inputs, avl.Full(), 2), merged=True)
    attention = model.model.language_model.layers[1].self_attn
    biases = [getattr(attention, f"{letter}_proj").bias for letter in "qkv"]
    assert len({bias.untyped_storage().data_ptr() for bias in biases}) == 1
    avl.detach(model)
    assert len({bias.untyped_storage().data_ptr() for bias in biases}) == 3
    assert all(bias.untyped_storage().nbytes() == bias.nbytes for bias in biases)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "dynamic"])
@torch.inference_mode()
def test_other_rotations_are_fused(kind):
    """Rotary embeddings that depend on nothing but the position, each against the modules; YaRN also scales cosine and sine."""
    scaled = {"factor": 4.0, "original_max_position_embeddings": 128}
    more = {
        "linear": {"factor": 4.0},
        "llama3": {**scaled, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "yarn": scaled,
        "dynamic": scaled,
    }[kind]
    model = avl.attach(build_model("llava-llama", rope_parameters={"rope_type": kind, "rope_theta": 1e4, **more}))
    inputs = dict(encode(shared_processor("llava-llama"), REQUESTS["ragged"]))
    caches = [avl.make_cache(model, inputs, avl.Full(), max_new_tokens=STEPS) for _ in range(2)]
    modules, fused = (Decoder(model, cache) for cache in caches)
    assert fused.unfused is None
    assert (model.model.language_model.rotary_emb.attention_scaling != 1.0) == (kind == "yarn")
    modules._layers, modules.uncompiled = None, MODULES
    expected, fed = steps(modules, inputs)
    for one, two in zip(steps(fused, inputs, fed)[0], expected, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-5)


@torch.inference_mode()
def test_a_dynamic_rotation_that_has_grown_runs_the_modules():
    """Beyond its context the model's frequencies change, and change back at its next shorter sequence: no table holds then."""
    model = avl.attach(build_model("llava-llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}))
    inputs = dict(encode(shared_processor("llava-llama"), REQUESTS["one"]))
    expected = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    assert why_not(model) is None
    model.model.language_model(input_ids=torch.full((1, 600), 40))
    assert "'dynamic', depends on the length" in why_not(model)
    decoder = Decoder(model, avl.make_cache(model, inputs, avl.Full(), max_new_tokens=STEPS))
    tokens = [decoder.prefill(inputs).argmax(dim=-1)]
    while len(tokens) < STEPS:
        tokens.append(decoder.step(tokens[-1]).argmax(dim=-1))
    assert torch.equal(torch.stack(tokens, dim=1), expected[:, -STEPS:])


def test_a_moved_model_leaves_no_memory_behind():
    """Nothing but the parameters holds merged weights: a change of dtype, as a change of device, lets go of them."""
    model = attached("llava-llama")
    products = model.model.language_model.layers[0].mlp.gate_proj, model.model.language_model.layers[0].mlp.up_proj
    merge(products)
    model.half()
    assert products[0].weight.untyped_storage().nbytes() == products[0].weight.nbytes
    merged, _ = merge(products)
    assert merged.dtype == torch.float16
    assert products[1].weight.untyped_storage().data_ptr() == merged.untyped_storage().data_ptr()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_model_made_in_inference_mode_can_be_merged(inside, bias):
    with torch.inference_mode(inside):
        products = tuple(torch.nn.Linear(4, 4, bias=bias) for _ in range(2))
    x = torch.ones(1, 4)
    expected = torch.cat([product(x) for product in products], dim=-1)
    with torch.inference_mode():
        merged = merge(products)
        assert merged[0].untyped_storage().data_ptr() == products[1].weight.untyped_storage().data_ptr()
        assert (merged[1] is not None) == bias
        assert not bias or merged[1].untyped_storage().data_ptr() == products[1].bias.untyped_storage().data_ptr()
        assert all(one is other or one.data_ptr() == other.data_ptr() for one, other in zip(merge(products), merged, strict=True))
    torch.testing.assert_close(torch.nn.functional.linear(x, *merged), expected)
    torch.testing.assert_close(torch.cat([product(x) for product in products], dim=-1), expected)
