"""Random models: the checkpoints' sizes at full scale (nothing allocated), and every architecture end to end at a small one."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_families import MODELS

import avl
from avl.attention.attachment import attach
from avl.bench.roofline import Sizes
from avl.bench.what_if import known
from avl.cache.layout import find_rows
from avl.engine.decoder import Decoder
from avl.models import random_weights
from avl.models.checkpoints import CHECKPOINTS, RANDOM_WEIGHTS
from avl.models.families import family_of, image_token_id

PARAMETERS = {name: known(name).parameters / 1e9 for name in RANDOM_WEIGHTS}  # of the published checkpoints, in thousands of millions
NAMES = list(random_weights.ARCHITECTURES)
LLAVAS = [name for name in NAMES if name.startswith("llava")]


def meta(name):
    config = random_weights.config(name)
    with torch.device("meta"):
        return getattr(transformers, family_of(config).model_class)(config)


def test_every_name_is_that_of_a_checkpoint():
    assert tuple(NAMES) == RANDOM_WEIGHTS
    assert set(NAMES) <= set(CHECKPOINTS)
    assert set(PARAMETERS) == set(NAMES)


def last_logits(model, inputs):
    """Logits after a prompt and five steps under A-VL with all its parameters."""
    decoder = Decoder(model, avl.make_cache(model, inputs, avl.AVL(S=45, C=30, K=3, P=90, T=50), max_new_tokens=6))
    with torch.inference_mode():
        logits = decoder.prefill(inputs)
        for _ in range(5):
            logits = decoder.step(logits.argmax(-1))
    return logits


@pytest.mark.parametrize(
    ("name", "sizes", "context", "tokens"),
    [
        ("qwen2.5-vl-7b", Sizes(28, 28, 4, 128, 3584, 18944, 152064, 2), 128000, {None: 999, (448, 448): 256, (1700, 2200): 61 * 79}),
        ("qwen3-vl-8b", Sizes(36, 32, 8, 128, 4096, 12288, 151936, 2), 262144, {None: 768, (448, 448): 196}),
        ("internvl3-8b", Sizes(28, 28, 4, 128, 3584, 18944, 151674, 2), 32768, {None: 3328, (448, 448): 256, (900, 450): 768}),
        ("gemma-3-12b", Sizes(48, 16, 8, 256, 3840, 15360, 262208, 2), 131072, {None: 256, (1700, 2200): 256}),
    ],
)
def test_full_size_models_of_other_families(name, sizes, context, tokens):
    model = meta(name)
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(PARAMETERS[name], abs=0.001)
    assert Sizes.of(model.config, 2) == sizes
    family = family_of(model.config)
    assert model.config.text_config.max_position_embeddings == context
    assert {size: family.image_tokens(model.config, size or family.random_picture(model.config)) for size in tokens} == tokens


@pytest.mark.parametrize(
    ("name", "tokens"), [("qwen2.5-vl-7b", 3 * 4), ("qwen3-vl-8b", 3 * 4), ("internvl3-8b", 13 * 4), ("gemma-3-12b", 16)]
)
def test_small_models_of_other_families(name, tokens):
    """A prompt and steps of two rows; both have pictures and words of their own."""
    model = attach(random_weights.build(name, scale=1 / 32))
    side = {"qwen2.5-vl-7b": 28, "qwen3-vl-8b": 32}.get(name, 56)
    inputs = random_weights.inputs(model, batch=2, picture=(4 * side + 3, 3 * side - 3), n_text=9)
    row = find_rows(inputs["input_ids"], inputs["attention_mask"], image_token_id(model.config))[1]
    assert (row.n_image, row.n_text) == (tokens, 9)
    assert (inputs["input_ids"][0] != inputs["input_ids"][1]).any()
    first, second = inputs["pixel_values"].chunk(2)
    assert not torch.equal(first, second)
    stock = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:]
    cache = avl.make_cache(model, inputs, avl.Full(), max_new_tokens=4)
    assert torch.equal(model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)[:, -4:], stock)
    logits = last_logits(model, inputs)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.6-13b", "llava-1.6-mistral-7b"])
def test_full_size_models_have_the_published_sizes(name):
    model = meta(name)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(PARAMETERS[name], abs=0.001)
    config = model.config
    assert config.image_token_id == 32000
    assert config.text_config.vocab_size == 32064
    assert config.vision_config.num_hidden_layers == 24
    assert config.vision_feature_layer == -2
    assert Sizes.of(config, 2).head_dim == 128
    assert config.text_config.rope_parameters["rope_theta"] == (1e6 if "mistral" in name else 1e4)
    if "1.5" in name:
        assert family_of(model.config).image_tokens(model.config, (640, 480)) == 576
    else:
        assert config.image_grid_pinpoints == [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
        counts = {size: family_of(model.config).image_tokens(model.config, size) for size in ((672, 672), (640, 480), (1700, 2200))}
        assert counts == {(672, 672): 2928, (640, 480): 2340, (1700, 2200): 2448}


@pytest.mark.parametrize("name", LLAVAS)
def test_small_models_run_a_prompt_and_steps(name):
    model = attach(random_weights.build(name, scale=1 / 32))
    inputs = random_weights.inputs(model, batch=2, n_text=9)
    row = find_rows(inputs["input_ids"], inputs["attention_mask"], model.config.image_token_id)[0]
    assert row.n_text == 9
    assert row.n_image == (16 if "1.5" in name else 16 + 8 * 9)
    assert (inputs["input_ids"][0] != inputs["input_ids"][1]).any()
    heads = model.config.text_config.num_attention_heads // model.config.text_config.num_key_value_heads
    assert heads == (4 if "mistral" in name else 1)
    logits = last_logits(model, inputs)
    assert logits.shape == (2, model.config.text_config.vocab_size)
    assert logits.isfinite().all()
    assert model.lm_head.weight.std() == pytest.approx(0.02, rel=0.05)


def test_dtype_seed_and_picture():
    one, two, other = (random_weights.build("llava-1.6-7b", dtype=torch.bfloat16, scale=1 / 32, seed=seed) for seed in (1, 1, 2))
    assert one.dtype == torch.bfloat16
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    small, tall = (random_weights.inputs(one, picture=size)["input_ids"].shape[1] for size in ((30, 30), (20, 300)))
    assert small != tall
    assert random_weights.inputs(one, picture=(20, 300))["pixel_values"].shape[1] == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_weights.config("llava-2"), "there is no architecture 'llava-2'"),
        (lambda: random_weights.config("llava-1.5-7b", scale=0), "scale=0 is out of range"),
        (lambda: random_weights.inputs(None, n_text=1), "n_text=1 is out of range"),
        (lambda: random_weights.inputs(random_weights.build("llava-1.5-7b", scale=1 / 32), picture=(0, 4)), "picture="),
    ],
)
def test_values_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        call()


def test_a_family_without_random_inputs_says_so():
    with pytest.raises(TypeError, match=r"PaliGemmaForConditionalGeneration has no random weights or inputs: pass a checkpoint"):
        random_weights.inputs(MODELS["paligemma"].model())
