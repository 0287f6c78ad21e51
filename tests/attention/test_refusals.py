"""What transformers asks of an attention and adaptive attention does not compute is refused, at attach and again at the call."""

from __future__ import annotations

import copy

import pytest
import torch
from random_models import CONTEXT, build_model, encode, request, shared_processor

import avl
from avl.attention.interface import PREFIX, _dispatch

POLICY = avl.AVL(S=45, C=30, K=3, P=90, T=60)
ONE = (request(1),)


def prepared(rows=ONE, architecture="llava-llama", **changes):
    model = avl.attach(build_model(architecture, **changes))
    inputs = dict(encode(shared_processor(architecture), list(rows)))
    return model, inputs, avl.make_cache(model, inputs, POLICY, 6)


def passing(model, **arguments):
    """Layer 1 calls its attention with more arguments, as other families' layers do."""
    attention = model.model.language_model.layers[1].self_attn
    attention.register_forward_pre_hook(lambda module, args, kwargs: (args, {**kwargs, **arguments}), with_kwargs=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"softcap": 50.0}, "softcap=50.0"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"sinks": torch.zeros(4)}, "sinks"),
        ({"sliding_window": 16}, "sliding_window=16"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": False}, "is_causal=False"),
        ({"output_attentions": True}, "output_attentions=True"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"cu_seq_lens_q": torch.zeros(2)}, "cu_seq_lens_q"),
        ({"block_indices": torch.zeros(2)}, "block_indices"),
        ({"an_argument_of_tomorrow": 1}, "an_argument_of_tomorrow=1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@torch.inference_mode()
def test_an_argument_that_would_be_ignored_is_refused(arguments, said):
    """In the prompt and in a step, with our cache; without it the model's own attention gets the argument."""
    model, inputs, cache = prepared()
    layer, query = cache.layers[0], torch.zeros(1, 4, 1, 16)
    attention = model.model.language_model.layers[0].self_attn
    with pytest.raises(ValueError, match=f"calls its attention with {said}"):
        _dispatch("sdpa", attention, query, query, query, None, avl_layer=layer, **arguments)
    if "dropout" in arguments:
        return  # LlamaAttention passes its own
    tokens = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1].argmax(dim=-1)
    passing(model, **arguments)
    with pytest.raises(ValueError, match=said):
        model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match=said):
        model(**inputs, past_key_values=avl.make_cache(model, inputs, POLICY, 6), use_cache=True)


@torch.inference_mode()
def test_arguments_without_effect_pass():
    """What transformers passes today, and a window that hides nothing of prompt and answer."""
    model, inputs, cache = prepared()
    wanted = model(**inputs, past_key_values=avl.make_cache(model, inputs, POLICY, 6), use_cache=True).logits
    passing(model, sliding_window=cache.longest, softcap=None, is_causal=True, output_attentions=False, use_cache=True)
    assert torch.equal(model(**inputs, past_key_values=cache, use_cache=True).logits, wanted)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: setattr(text.config, "layer_types", ["linear_attention"]), "of the kind linear_attention"),
        (lambda text: setattr(text.config, "attn_logit_softcapping", 50.0), "attn_logit_softcapping=50.0"),
        (lambda text: setattr(text.config, "attention_chunk_size", 64), "a chunk of 64 tokens"),
        (lambda text: setattr(text.config, "use_bidirectional_attention", True), "use_bidirectional_attention=True"),
        (lambda text: setattr(text.layers[2].self_attn, "sinks", torch.zeros(4)), "layer 2 has sinks"),
        (lambda text: setattr(text.layers[2].self_attn, "is_causal", False), "layer 2 is not causal"),
    ],
)
def test_attach_refuses_another_kind_of_attention(change, sentence):
    model = build_model("next-mistral")
    change(model.model.language_model)
    with pytest.raises(TypeError, match=sentence):
        avl.attach(model)
    assert not model._forward_pre_hooks  # nothing was begun


def test_attach_takes_a_config_that_says_full_attention():
    model = build_model("next-mistral")
    model.model.language_model.config.layer_types = ["full_attention"] * 4
    model.model.language_model.config.sliding_window = CONTEXT
    avl.attach(model)


class TestMasks:
    """The rows of a cache say what is padding; a mask that says more is refused, never ignored."""

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    @torch.inference_mode()
    def test_what_generate_passes_is_right(self, implementation):
        rows = (request(1), request(2, before=6, after=9))
        model, inputs, cache = prepared(rows)
        model.set_attn_implementation(implementation)
        avl.attach(model)
        model.generate(**inputs, past_key_values=cache, max_new_tokens=6, do_sample=False)
        assert cache.t == 5

    @pytest.mark.parametrize("hidden", [slice(5, 9), slice(0, 1), slice(-1, None)])
    @torch.inference_mode()
    def test_a_hole_in_the_mask(self, hidden):
        model, inputs, cache = prepared()
        mask = inputs["attention_mask"].clone()
        mask[:, hidden] = 0
        with pytest.raises(ValueError, match="hides other tokens than the left padding"):
            model.generate(**{**inputs, "attention_mask": mask}, past_key_values=cache, max_new_tokens=4)

    @torch.inference_mode()
    def test_a_hole_in_a_steps_mask(self):
        model, inputs, cache = prepared((request(1), request(2, before=6, after=9)))
        tokens = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1].argmax(dim=-1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        wrong = mask.clone()
        wrong[1, 12] = 0
        with pytest.raises(ValueError, match="hides other tokens"):
            model(input_ids=tokens[:, None], attention_mask=wrong, past_key_values=cache, use_cache=True)
        model(input_ids=tokens[:, None], attention_mask=mask, past_key_values=cache, use_cache=True)  # the refusal cost nothing

    @torch.inference_mode()
    def test_no_mask_for_padded_rows(self):
        model, inputs, cache = prepared((request(1), request(2, before=6, after=9)))
        del inputs["attention_mask"]
        with pytest.raises(ValueError, match="attention_mask"):
            model(**inputs, past_key_values=cache, use_cache=True)

    @torch.inference_mode()
    def test_a_mask_of_who_sees_whom(self):
        model, inputs, cache = prepared()
        length = inputs["input_ids"].shape[1]
        with pytest.raises(ValueError, match="none that says who sees whom"):
            model(**{**inputs, "attention_mask": torch.zeros(1, 1, length, length)}, past_key_values=cache, use_cache=True)

    @pytest.mark.parametrize("kind", [torch.bool, torch.float32])
    @pytest.mark.parametrize("ragged", [False, True])
    @torch.inference_mode()
    def test_a_two_way_mask_at_the_call(self, kind, ragged):
        """As of a family whose picture sees itself both ways: caught in the first layer that gets it."""
        rows = (request(1), request(2, before=6, after=9)) if ragged else (request(1),)
        model, inputs, cache = prepared(rows)
        length = inputs["input_ids"].shape[1]
        visible = torch.ones(length, length).tril().bool()
        visible[10, 11] = True
        mask = visible if kind is torch.bool else torch.zeros(length, length).masked_fill(~visible, torch.finfo(torch.float32).min)
        passing(model, attention_mask=mask[None, None])
        with pytest.raises(ValueError, match="not causal over the real tokens"):
            model(**inputs, past_key_values=cache, use_cache=True)


@torch.inference_mode()
def test_a_prompt_with_its_image_elsewhere():
    """The same length, another layout: spans, windows and counts would all be of the wrong tokens."""
    model, inputs, cache = prepared((request(1), request(2)))
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][1] = other["input_ids"][1].roll(1)
    with pytest.raises(ValueError, match="not where this cache expects them"):
        model.generate(**other, past_key_values=cache, max_new_tokens=4)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=4)


class TestGenerate:
    """Ways to call ``model.generate`` that adaptive attention does not support each get a sentence."""

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"prompt_lookup_num_tokens": 3}, "prompt lookup"),
            ({"use_cache": False}, "use_cache=False"),
            ({"num_beams": 2}, "beam search"),
            ({"do_sample": True, "num_return_sequences": 2}, "num_return_sequences"),
            ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    @pytest.mark.parametrize("rows", [1, 2])
    def test_options(self, options, sentence, rows):
        if rows > 1 and "prompt_lookup_num_tokens" in options:
            pytest.skip("transformers itself refuses prompt lookup for several rows")
        model, inputs, cache = prepared([request(number) for number in range(1, rows + 1)])
        with pytest.raises(ValueError, match=sentence):
            model.generate(**inputs, past_key_values=cache, max_new_tokens=5, **options)

    def test_an_assistant(self):
        model, inputs, cache = prepared()
        with pytest.raises(ValueError, match="assisted decoding"):
            model.generate(**inputs, past_key_values=cache, max_new_tokens=5, assistant_model=build_model("llava-llama"))

    def test_without_our_cache_they_work(self):
        model, inputs, _ = prepared()
        plain = build_model("llava-llama")
        for options in ({"prompt_lookup_num_tokens": 3}, {"use_cache": False}, {"num_beams": 2}, {"cache_implementation": "static"}):
            one, two = (copy.deepcopy(each).generate(**inputs, max_new_tokens=5, do_sample=False, **options) for each in (model, plain))
            assert torch.equal(one, two), options
        assert model.model.language_model.config._attn_implementation.startswith(PREFIX)
