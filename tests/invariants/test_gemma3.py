"""Gemma 3 beside its usual path: crops, a window that is just wide enough, a prompt that ends in a picture, attention without masks."""

from __future__ import annotations

import family_oracle
import pytest
import torch
import transformers
from observed import generate
from random_models import picture
from test_families import CASES, STEPS, assert_close, decoded, made, plain
from test_oracle import check_sets
from tiny_families import MODELS
from tiny_families.base import encode
from tiny_families.gemma3 import TOKENS, config
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

import avl
from avl.models.families import image_grids
from avl.models.families.base import end
from avl.models.inputs import prepare

QUESTION = avl.Prompt(f"{TOKENS[1]} what is on the sign")


class TestCrops:
    """Pan and scan: a long picture is followed by crops of itself."""

    @staticmethod
    def processor():
        class Cropping(transformers.Gemma3Processor):
            def __call__(self, *args, **options):
                scan = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8, "pan_and_scan_max_num_crops": 4}
                return super().__call__(*args, **{**scan, "pan_and_scan_min_ratio_to_activate": 1.2, **options})

        processor = MODELS["gemma3"].processor()
        processor.__class__ = Cropping
        return processor

    @pytest.mark.parametrize(
        ("size", "crops"), [((40, 40), 0), ((90, 40), 2), ((40, 91), 2), ((131, 40), 3), ((33, 200), 4), ((20, 21), 0)]
    )
    def test_rectangles_are_of_what_each_crop_shows(self, size, crops):
        model, processor, image = made("gemma3")[0], self.processor(), picture(1, *size)
        inputs = processor(images=[image], text=str(QUESTION), return_tensors="pt")
        assert len(inputs["pixel_values"]) == 1 + crops
        n_image = int((inputs["input_ids"] == model.config.image_token_id).sum())
        grids = image_grids(model.config, processor, [size], inputs, n_image)
        assert len(grids) == 1 + crops
        assert end(grids) == n_image == 16 * (1 + crops)
        plain = MODELS["gemma3"].processor().image_processor
        for grid, pixels in zip(grids, inputs["pixel_values"], strict=True):
            shown = plain(images=[image.crop(grid.box)], return_tensors="pt")["pixel_values"][0]
            torch.testing.assert_close(shown, pixels)

    def test_no_rectangles_rather_than_wrong_ones(self):
        model, processor, sizes = made("gemma3")[0], self.processor(), [(90, 40), (40, 40)]
        inputs = processor(
            images=[picture(n, *size) for n, size in enumerate(sizes)], text=f"{TOKENS[1]} {TOKENS[1]} what", return_tensors="pt"
        )
        n_image = int((inputs["input_ids"] == model.config.image_token_id).sum())
        assert n_image == 16 * 4
        assert image_grids(model.config, processor, sizes, inputs, n_image) == ()

    def test_a_question(self):
        model, processor = made("gemma3")[0], self.processor()
        inputs, _ = prepare(model, processor, [picture(1, 90, 40)], QUESTION)
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
        events = list(avl.stream(model, processor, picture(1, 90, 40), QUESTION, avl.Full(), 4))
        assert list(events[-1].tokens) == expected
        assert len(events[0].grids) == 3


class TestWindow:
    """Most layers attend to a window; prompt and answer must fit into it."""

    @pytest.mark.parametrize("case", ["avl", "h2o"])
    @torch.inference_mode()
    def test_exactly_at_the_window(self, case):
        policy, rule = CASES[case]
        inputs = dict(encode(MODELS["gemma3"], made("gemma3")[1]))
        longest = inputs["input_ids"].shape[1] + STEPS
        torch.manual_seed(0)
        model = transformers.Gemma3ForConditionalGeneration(config(window=longest)).requires_grad_(False).eval()
        model.load_state_dict(made("gemma3")[0].state_dict())
        model.generation_config.eos_token_id = None
        avl.attach(model)
        tokens, expected = plain(model, inputs)
        assert_close(generate(model, inputs, avl.Full(), STEPS, sets=False).logits, expected)
        assert_close(decoded(model, inputs, tokens)[1], expected)
        feed = tokens[0].tolist()
        observed, wanted = generate(model, inputs, policy, STEPS, feed=[feed]), family_oracle.run(model, inputs, rule, STEPS, feed)
        check_sets(observed, [wanted])
        assert_close([logits[0].double() for logits in observed.logits], wanted.logits)
        with pytest.raises(ValueError, match=f"need {longest + 1} tokens, and some layers of this model see a window of {longest}"):
            avl.make_cache(model, inputs, policy, max_new_tokens=STEPS + 1)


def ending_in_a_picture(name):
    """A prompt cut off behind its image tokens."""
    model, processor = made(name)
    inputs = dict(encode(MODELS[name], processor, seed=3))
    stop = 1 + int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1])
    inputs = {
        key: value[:, :stop] if value.shape == inputs["input_ids"].shape and key != "input_ids" else value for key, value in inputs.items()
    }
    inputs["input_ids"] = inputs["input_ids"][:, :stop]
    return inputs


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_prompt_that_ends_in_a_picture_is_refused_where_its_positions_are_in_doubt(name):
    """transformers' generate and its models' own rope_deltas disagree by whole positions; logits by as much as they are large."""
    with pytest.raises(ValueError, match=r"row 0 of the batch ends in an image.*end the prompt with text"):
        avl.make_cache(made(name)[0], ending_in_a_picture(name), avl.Full())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["gemma3", "paligemma", "llava-llama"])
@torch.inference_mode()
def test_a_prompt_that_ends_in_a_picture(name, case):
    """The picture's last token asks, and sees its picture as the others do."""
    model, inputs = made(name)[0], ending_in_a_picture(name)
    policy, rule = CASES[case]
    feed = torch.randint(30, 100, (STEPS,), generator=torch.Generator().manual_seed(5)).tolist()
    observed, wanted = generate(model, inputs, policy, STEPS, feed=[feed]), family_oracle.run(model, inputs, rule, STEPS, feed)
    check_sets(observed, [wanted])
    assert_close([logits[0].double() for logits in observed.logits], wanted.logits)
    assert_close([logits[0].double() for logits in decoded(model, inputs, torch.tensor([feed]), policy)[1]], wanted.logits)


def padding_only(*, attention_mask=None, q_length, **_):
    """As the masks of flash attention: who is padding, None where nobody is."""
    return attention_mask if attention_mask is not None and not attention_mask.all() else None


class TestNoMask:
    """Attention implementations that get no mask of who sees whom, as flash attention does."""

    @pytest.fixture
    def bare(self):
        """Make a model whose attention gets no such mask."""

        def padded(module, query, key, value, attention_mask, **options):
            if attention_mask is not None:  # [B, L], 0 for padding
                length = query.shape[2]
                seen = attention_mask[:, None, None].bool() & torch.ones(length, key.shape[2]).tril(key.shape[2] - length).bool()
                attention_mask = seen | torch.eye(length, key.shape[2]).bool()
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

        def make(name):
            AttentionInterface.register("bare", padded)
            AttentionMaskInterface.register("bare", padding_only)
            model = MODELS[name].model()
            model.config.get_text_config()._attn_implementation = "bare"
            return avl.attach(model)

        return make

    @pytest.mark.parametrize("name", ["gemma3", "paligemma"])
    @torch.inference_mode()
    def test_a_picture_that_sees_itself_is_refused(self, name, bare):
        model = bare(name)
        inputs = dict(encode(MODELS[name], made(name)[1]))
        cache = avl.make_cache(model, inputs, avl.Full(), 4)
        with pytest.raises(ValueError, match=r"needs a mask that says who sees whom, which attention implementation 'bare' does not give"):
            model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
        with pytest.raises(ValueError, match="needs a mask"):
            decoded(model, inputs, torch.ones(1, 2, dtype=torch.int64))

    @torch.inference_mode()
    def test_gemma3s_text_alone_needs_none(self, bare):
        model = bare("gemma3")
        inputs = {"input_ids": torch.arange(40, 60)[None], "attention_mask": torch.ones(1, 20, dtype=torch.int64)}
        tokens, expected = plain(model, inputs, 4)
        assert generate(model, inputs, avl.Full(), 4, sets=False).tokens == tokens.tolist()
        assert_close(decoded(model, inputs, tokens)[1], expected)

    @torch.inference_mode()
    def test_a_mask_of_padding_is_no_mask_of_who_sees_whom(self, bare):
        """Padded rows of a causal model, whose layers get [B, L]."""
        model = bare("llava-llama")
        inputs = dict(encode(MODELS["llava-llama"], made("llava-llama")[1], (((40, 30),), ((30, 70), (56, 56)))))
        assert not inputs["attention_mask"].all()
        tokens, expected = plain(made("llava-llama")[0], inputs, 4)
        found = generate(model, inputs, avl.Full(), 4, sets=False)
        assert found.tokens == tokens.tolist()
        assert_close(found.logits, expected)

    @torch.inference_mode()
    def test_token_types_that_were_left_out(self):
        """PaliGemma's own attention would see everything then, and its masks nothing ahead."""
        model, processor = made("paligemma")
        inputs = dict(encode(MODELS["paligemma"], processor))
        del inputs["token_type_ids"]
        with pytest.raises(ValueError, match="pass the processor's token_type_ids"):
            model(**inputs, past_key_values=avl.make_cache(model, inputs, avl.Full(), 4))
