"""What avl.stream makes of a question for families whose checkpoints have no chat template, and whose generate is a language model's."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from random_models import picture
from tiny_families import MODELS

import avl
from avl.models.inputs import prepare
from avl.models.prompt import Question
from avl.trace import End, Start

QUESTION = "what is on the sign"
SAYS = {
    "paligemma": f"<image>{QUESTION}",
    "blip-2": f"Question: {QUESTION} Answer:",
    "instructblip": QUESTION,
}


@functools.cache
def made(name):
    return MODELS[name].model(), MODELS[name].processor()


@pytest.mark.parametrize("name", SAYS)
@torch.inference_mode()
def test_a_question_is_asked_as_the_family_asks(name):
    """The prompt, every tensor of the processor's (qformer_*, token_type_ids), and generate's tokens for them."""
    model, processor = made(name)
    inputs, prompt = prepare(model, processor, [picture(1)], QUESTION)
    assert prompt == SAYS[name]
    given = processor(images=[picture(1)], text=prompt, return_tensors="pt")
    assert set(inputs) == set(given) - {"labels"}
    n_image = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert n_image == (16 if name == "paligemma" else 8)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, -6:].tolist()
    events = list(avl.stream(model, processor, picture(1), QUESTION, avl.Full(), 6))
    (start,) = (event for event in events if isinstance(event, Start))
    (end,) = (event for event in events if isinstance(event, End))
    assert list(end.tokens) == expected
    assert (start.n_image, bool(start.grids)) == (n_image, MODELS[name].places)


@pytest.mark.parametrize(
    ("images", "question", "said"),
    [
        (2, QUESTION, "takes one picture, not 2"),
        (1, f"<image> {QUESTION}", "puts the picture first: leave it out"),
        (1, Question(f"<image> {QUESTION}"), "reads as a control token"),
        (1, "", "the question is empty"),
    ],
)
@pytest.mark.parametrize("name", ["blip-2", "instructblip"])
def test_a_prompt_has_no_placeholder_where_the_picture_comes_first(name, images, question, said):
    model, processor = made(name)
    with pytest.raises(ValueError, match=said):
        prepare(model, processor, [picture(1)] * images, question)
    assert prepare(model, processor, [picture(1)], avl.Prompt("Question: what"))[1] == "Question: what"


def test_targets_of_training_are_left_out():
    """PaliGemma's processor of recent releases adds labels, all of them -100: the model would compute a loss of them."""
    model, processor = made("paligemma")

    class Labeled(type(processor)):
        def __call__(self, *args, **options):
            made = super().__call__(*args, **options)
            made["labels"] = torch.full_like(made["input_ids"], -100)
            return made

    labeled = MODELS["paligemma"].processor()
    labeled.__class__ = Labeled
    assert set(prepare(model, labeled, [picture(1)], QUESTION)[0]) == set(prepare(model, processor, [picture(1)], QUESTION)[0])
    list(avl.stream(model, labeled, picture(1), QUESTION, avl.Full(), 2))


def test_the_language_models_generation_config_counts():
    """BLIP-2's generate is its language model's, which obeys its own config and not the whole model's."""
    model, processor = MODELS["blip-2"].model(), made("blip-2")[1]
    inputs, _ = prepare(model, processor, [picture(1)], QUESTION)

    def both():
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
        end = list(avl.stream(model, processor, picture(1), QUESTION, avl.Full(), 8))[-1]
        return out, list(end.tokens), end.reason

    plain, found, _ = both()
    assert found == plain
    model.generation_config.eos_token_id = plain[2]  # of no effect
    model.generation_config.num_beams = 4
    assert both() == (plain, plain, "length")
    model.language_model.generation_config.eos_token_id = plain[2]
    ended, found, reason = both()
    assert (ended, found) == (plain[:3], plain[:2])  # an answer's tokens are without its end
    assert reason == "eos"
    model.language_model.generation_config.eos_token_id = None
    model.language_model.generation_config.suppress_tokens = [plain[0]]
    other, found, _ = both()
    assert other == found != plain
    model.language_model.generation_config.num_beams = 4
    with pytest.raises(ValueError, match=r"set model\.language_model\.generation_config\.num_beams = None"):
        avl.stream(model, processor, picture(1), QUESTION, avl.Full(), 8)


@pytest.mark.parametrize("name", ["blip-2", "instructblip"])
def test_padding_between_picture_and_text(name):
    """As the family's own processor pads: its rows are no rows padded on the left."""
    model, processor = made(name)
    plain = copy.copy(processor)
    plain.__class__ = type(processor).__mro__[1]
    inputs = plain(images=[picture(1), picture(2)], text=["what is it", "what"], return_tensors="pt", padding=True)
    assert inputs["attention_mask"][1].tolist() == [1] * 8 + [0, 0] + [1] * 2
    with pytest.raises(ValueError, match="row 1 of the batch is not padded on the left: move the padding before the picture"):
        avl.make_cache(model, inputs, avl.Full())
