"""Invariant: A-VL at 100 % is the full model. And: attaching changes nothing but runs with our cache; detaching leaves no trace."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from observed import assert_within, generate, reductions
from pairwise import pairwise
from random_models import ARCHITECTURES, RAGGED, build_model, encode, request, shared_model, shared_processor
from transformers import DynamicCache

import avl

LIMIT = 12
EVERYTHING = {
    "Full": avl.Full(),
    "C-off": avl.AVL(S=100, C=None, P=None, T=None),
    "C100": avl.AVL(S=100, C=100, P=None, T=None),
    "C100-K1": avl.AVL(S=100, C=100, K=1, P=None, T=None),
    "C100-K2-after": avl.AVL(S=100, C=100, K=2, P=None, T=None, update="after"),
    "P100-T100": avl.AVL(S=100, C=100, K=2, P=100, T=100),
    "FastV-100": avl.FastV(layer=2, keep=100),
}
BATCHES = {"single": (request(7),), "two-images": (request(8, sizes=((44, 30), (28, 50))),), "ragged": RAGGED}


@pairwise(architecture=ARCHITECTURES, policy=EVERYTHING, batch=BATCHES)
def test_at_100_percent_it_is_the_full_model(architecture, policy, batch, processor):
    model = shared_model(architecture)
    inputs = encode(processor, BATCHES[batch])
    stock = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False, output_logits=True, return_dict_in_generate=True)
    tokens = stock.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    avl.attach(model)
    try:
        ours = generate(model, inputs, EVERYTHING[policy], LIMIT)
    finally:
        avl.detach(model)
    assert ours.tokens == tokens
    for b, row in enumerate(oracle.rows(model, inputs)):
        stick = oracle.run(model, row, oracle.Full(), LIMIT, feed=tokens[b])
        mine, theirs = (torch.stack([logits[b] for logits in run.logits]) for run in (ours, stock))
        assert_within(mine, torch.stack(stick.logits), theirs, torch.float32, reductions(model, row.length + LIMIT))
    last = ours.states[-1]
    seen = int(inputs["attention_mask"].sum()) + len(tokens) * (LIMIT - 1)
    layers = model.config.text_config.num_hidden_layers
    assert last.stored == [seen] * layers
    assert last.read == [seen] * layers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unattached_greedy_differs_between_policies(architecture, model, processor):
    """The comparison above could not fail if every policy gave the full answer."""
    inputs = encode(processor, BATCHES["ragged"])
    full = generate(model, inputs, avl.Full(), LIMIT).tokens
    assert generate(model, inputs, avl.AVL(S=20, C=5, K=3, P=50, T=40), LIMIT).tokens != full


def footprint(model: torch.nn.Module) -> dict:
    """Everything a library could change on a model: configurations, classes, attributes, hooks, generation settings."""
    config, text, vision = model.config, model.config.text_config, model.config.vision_config
    modules = {}
    for name, module in model.named_modules():
        hooks = {kind: len(value) for kind, value in vars(module).items() if kind.endswith("hooks") and isinstance(value, dict)}
        modules[name] = (type(module), frozenset(vars(module)), hooks)
    return {
        "configs": [copy.deepcopy(part.to_dict()) for part in (config, text, vision)],
        "implementations": [part._attn_implementation for part in (config, text, vision)],
        "layers": [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")],
        "config attributes": [frozenset(vars(part)) for part in (config, text, vision)],
        "generation": copy.deepcopy(model.generation_config.to_dict()),
        "modules": modules,
        "tensors": {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.state_dict().items()},
        "training": model.training,
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_detach_restores_the_model_exactly(architecture):
    model, processor = build_model(architecture), shared_processor(architecture)
    policy = avl.AVL(S=45, C=30, K=3, P=90, T=60)
    model.generate(**encode(processor, RAGGED), max_new_tokens=2)  # transformers hooks the vision tower at its first use, for good
    before = footprint(model)
    avl.attach(model)
    avl.attach(model)  # idempotent
    generate(model, encode(processor, RAGGED), policy, 4)
    list(avl.stream(model, processor, RAGGED[0].images[0], "what is on the sign ?", policy, max_new_tokens=4))
    avl.detach(model)
    assert footprint(model) == before
    avl.detach(model)  # a second time is harmless
    assert footprint(model) == before


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_detach_restores_the_attention_that_was_set(implementation):
    model = build_model("llava-llama")
    model.set_attn_implementation(implementation)
    before = footprint(model)
    avl.attach(model)
    avl.detach(model)
    assert footprint(model) == before
    assert model.config.text_config._attn_implementation == implementation


@pytest.mark.parametrize("cache", ["none", "dynamic", "no-cache"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attached_without_our_cache_is_bitwise_as_before(architecture, cache, processor):
    model = build_model(architecture)
    inputs = encode(processor, RAGGED)

    def answer() -> list[torch.Tensor]:
        options = {"dynamic": {"past_key_values": DynamicCache()}, "no-cache": {"use_cache": False}, "none": {}}[cache]
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True, **options)
        with torch.no_grad():
            forward = model(**inputs).logits
        return [out.sequences, forward, *out.logits]

    before = answer()
    avl.attach(model)
    attached = answer()
    generate(model, inputs, avl.AVL(S=45, C=30, K=3, P=90, T=60), 3)
    again = answer()
    avl.detach(model)
    for now in (attached, again, answer()):
        assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_attached_without_our_cache_takes_other_paths_as_before():
    """Output of hidden states, labels, text without a picture and a second turn on a DynamicCache work and agree bit by bit."""
    model, processor = build_model("llava-llama"), shared_processor("llava-llama")
    inputs = encode(processor, RAGGED[:1])
    text = processor.tokenizer(["what is on the sign ?"], return_tensors="pt")
    text.pop("token_type_ids", None)

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            full = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True)
            cache = DynamicCache()
            model(**inputs, past_key_values=cache)
            second = model(input_ids=text["input_ids"], past_key_values=cache)
            return [full.loss, *full.hidden_states, second.logits, model(**text).logits]

    before = outputs()
    avl.attach(model)
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(), strict=True))


def test_two_models_attached_at_once_do_not_meet():
    first, second = build_model("llava-llama"), build_model("llava-llama", seed=1)
    processor = shared_processor("llava-llama")
    inputs = encode(processor, RAGGED)
    expected = []
    for model in (first, second):
        avl.attach(model)
        expected.append(generate(model, inputs, avl.AVL(S=45, C=30, K=3, P=90, T=60), 6).tokens)
        avl.detach(model)
    avl.attach(first)
    avl.attach(second)
    assert [generate(model, inputs, avl.AVL(S=45, C=30, K=3, P=90, T=60), 6).tokens for model in (first, second)] == expected
    avl.detach(first)
    assert generate(second, inputs, avl.AVL(S=45, C=30, K=3, P=90, T=60), 6).tokens == expected[1]
