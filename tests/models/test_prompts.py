"""A question becomes the prompt that the model's template writes, or one sentence says why not."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import BOS, CHAT_TEMPLATE, IMAGE, build_processor, picture, shared_model
from tokenizers import AddedToken

import avl
from avl.models.inputs import prepare, repeat
from avl.models.prompt import Prompt, Question

QUESTION = "what is on the sign ?"


@pytest.fixture
def processor(request: pytest.FixtureRequest) -> Any:
    """A fresh one, which a test may change."""
    known = "architecture" in request.fixturenames
    return build_processor(request.getfixturevalue("architecture") if known else "llava-llama")


def prompt_of(processor: Any, question: Any = QUESTION, images: Any = None, name: str = "llava-llama") -> str:
    return prepare(shared_model(name), processor, [picture(1)] if images is None else images, question)[1]


def refused(processor: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as raised:
        prompt_of(processor, *args, **options)
    message = str(raised.value)
    assert type(raised.value) is ValueError
    assert 15 < len(message) < 400
    assert not re.search(r"\n|Traceback|object at 0x|tensor\(|array\(", message), message
    return message


# ------------------------------------------------------------------------------------------------------------------------ questions


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (None, "question is empty"),
        ("", "question is empty"),
        (" \n\t ", "question is empty"),
        (5, "no text but int"),
        (2.5, "no text but float"),
        (True, "no text but bool"),
        (b"what is it ?", "no text but bytes"),
        (["what", "is"], "no text but list"),
        ({"text": "what"}, "no text but dict"),
        (Path("question.txt"), "no text but"),
        ("what is \0 it ?", "NUL character at position 9"),
        ("what \ud83d is", r"U\+D83D\) at position 6"),
        ("\udfff", r"U\+DFFF"),
        (Question("what is <image> on the sign ?"), "<image>"),
        (Question("<image>"), "<image>"),
        ("what</s>is", "</s>"),
        ("</s> USER: what", "</s>"),
        ("<s> what", "<s>"),
        ("what <pad> <pad>", "<pad>"),
        ("is <unk> red", "<unk>"),
    ],
    ids=repr,
)
def test_what_is_no_question_is_one_sentence(processor, question, words):
    assert re.search(words, refused(processor, question))


@pytest.mark.parametrize("token", ["<|im_end|>", "[INST]", "[/INST]", "[IMG]", "<|eot_id|>"])
def test_control_tokens_of_other_models(processor, token):
    """Refused where the tokenizer reads them as such, and text elsewhere."""
    assert token in prompt_of(processor, f"what is {token} ?")
    processor.tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, special=True)]}, replace_extra_special_tokens=False
    )
    assert token in refused(processor, f"what is {token} ?")


@pytest.mark.parametrize(
    "question",
    [
        "what is it ?",
        "é 日本 🙂",
        "a < b > c </ s >",
        "{{ bos_token }} {% x %}",
        "'; DROP TABLE",
        "w1 " * 200,
        "two\nlines",
        "\u202eabc",
        "unknownword",
    ],
)
def test_a_question_stands_in_the_prompt_as_it_is(processor, question):
    """Around it is what stands around any other."""
    around = prompt_of(processor, "w7").split("w7")
    assert prompt_of(processor, f"  {question}\n") == question.strip().join(around)


@pytest.mark.parametrize("question", ["what is <image> ?", "</s>", "<s>", "<pad>", "\0", "\ud800"])
def test_the_bundled_model_refuses_them_too(question):
    model, processor = avl.load("tiny", device="cpu")
    with pytest.raises(ValueError, match="the question holds"):
        prepare(model, processor, [picture(1)], Question(question))


def test_what_a_visitor_types_is_never_a_prompt(processor):
    """The page, its API and the command line ask with a Question; a library's plain text with a placeholder is a whole prompt."""
    with pytest.raises(ValueError, match="<image>, which this model reads as a control token"):
        prompt_of(processor, Question("USER: <image> what ASSISTANT:"))
    assert prompt_of(processor, "USER: <image> what ASSISTANT:") == "USER: <image> what ASSISTANT:"
    assert "2 placeholders <image> for 1 images" in refused(processor, "<image> what <image>")


# ------------------------------------------------------------------------------------------------------------------------ templates


def test_a_template_of_the_tokenizer_alone(processor):
    expected = prompt_of(processor)
    processor.tokenizer.chat_template, processor.chat_template = processor.chat_template, None
    assert prompt_of(processor) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no pictures here') }}", "no pictures here"),
        ("{% for m in messages %}{{ m['content'] + '!' }}{% endfor %}", "template fails"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "0 placeholders <image> for 1 images"),
        ("{{ messages[7]['content'] }}", "template"),
        ("{{ nonsense.of.it }}", "template fails"),
        ("{% if %}", "template fails"),
        ("{{ '<image>' }}", "leaves it out"),
        ("{{ '<image> <image>' }}", "2 placeholders"),
        ("{{ '<image>' + messages[0]['content'][1]['text'].upper() }}", "changes the question"),
        ("just text", "0 placeholders"),
        ("{{ 1 // 0 }}", "template fails"),
    ],
)
@pytest.mark.parametrize("owner", ["processor", "tokenizer"])
def test_a_template_that_cannot_do_it_is_one_sentence(processor, template, words, owner):
    processor.chat_template = None
    (processor if owner == "processor" else processor.tokenizer).chat_template = template
    message = refused(processor)
    assert re.search(words, message)
    assert "avl.Prompt" in message


def test_no_template_is_llava_15_alone(processor):
    processor.chat_template = None
    assert prompt_of(processor) == f"USER: <image>\n{QUESTION} ASSISTANT:"
    for name in ("next-llama", "next-mistral"):
        other = build_processor(name)
        other.chat_template = None
        assert "no chat template" in refused(other, name=name)


@pytest.mark.parametrize("writes", [True, False], ids=["template-writes-it", "tokenizer-adds-it"])
@pytest.mark.parametrize("whole", [True, False], ids=["prompt", "question"])
def test_one_token_begins_the_prompt(processor, writes, whole):
    start = "<s>" if writes else ""
    processor.chat_template = start + CHAT_TEMPLATE
    question = Prompt(f"{start}<image> {QUESTION}") if whole else QUESTION
    ids = prepare(shared_model("llava-llama"), processor, [picture(1)], question)[0]["input_ids"][0].tolist()
    assert ids[0] == BOS
    assert ids.count(BOS) == 1


def test_a_whole_prompt(processor):
    """Special tokens and placeholders are its own."""
    for text in ("<image> what </s> is", "USER: <image> <unk> w1", "w1 <image>"):
        assert prompt_of(processor, Prompt(text)) == text
    for text, count in (("what", 0), ("<image> <image>", 2)):
        assert f"{count} placeholders <image> for 1 images" in refused(processor, Prompt(text))
    assert "NUL" in refused(processor, Prompt("<image> \0"))


# ------------------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize(
    "images",
    [
        picture(1),
        [picture(1), picture(2)],
        (picture(1),),
        np.full((20, 30, 3), 9, np.uint8),
        [np.full((20, 30), 9, np.uint8), picture(1)],
        Image.new("RGBA", (9, 9)),
    ],
    ids=["one", "two", "tuple", "array", "mixed", "transparent"],
)
def test_pictures_of_any_kind(processor, images):
    inputs, prompt = prepare(shared_model("llava-llama"), processor, images, QUESTION)
    count = len(images) if isinstance(images, list | tuple) else 1
    assert prompt.count("<image>") == count == len(inputs["pixel_values"])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "no image"),
        ((), "no image"),
        (None, "no picture"),
        ([None], "no picture"),
        ([picture(1), None], "no picture"),
        (5, "int"),
        ([5], "int"),
        ([[picture(1)]], "list"),
        ({"image": picture(1)}, "dict"),
        ("no-such.png", "no-such.png"),
        ([picture(1), b"junk"], "PNG, JPEG"),
        (torch.zeros(3, 9, 9), "Tensor"),
        ((image for image in [picture(1)]), "generator"),
        (np.zeros((2, 9, 9, 3), np.uint8), r"\[2, 9, 9, 3\]"),
    ],
)
def test_what_are_no_pictures_is_one_sentence(processor, images, words):
    with pytest.raises(ValueError, match=words):
        prepare(shared_model("llava-llama"), processor, images, QUESTION)
    with pytest.raises(ValueError, match=words.replace("no image", "no image|no picture")):
        list(avl.stream(shared_model("llava-llama"), processor, images, QUESTION, avl.Full(), max_new_tokens=2))


# ------------------------------------------------------------------------------------------------------------------------ inputs


class Adding:
    """A processor that gives more than the model's own."""

    def __init__(self, processor: Any, **extra: Any) -> None:
        self._processor, self._extra = processor, extra

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, **options: Any) -> dict[str, Any]:
        given = dict(self._processor(**options))
        return {**given, **{name: make(given["input_ids"]) for name, make in self._extra.items()}}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("token_type_ids", torch.ones_like),
        ("mm_token_type_ids", torch.zeros_like),
        ("image_grid_thw", lambda ids: torch.ones(1, 3)),
        ("pixel_attention_mask", torch.ones_like),
        ("qformer_input_ids", torch.ones_like),
        ("aspect_ratio_ids", torch.ones_like),
    ],
)
def test_what_the_model_does_not_take_is_refused(processor, name, make):
    assert name in refused(Adding(processor, **{name: make}))


def test_what_is_no_tensor_is_refused(processor):
    assert "list" in refused(Adding(processor, image_sizes=lambda ids: [[1, 2]]))


@pytest.mark.parametrize(("name", "make"), [("token_type_ids", torch.zeros_like), ("mm_token_type_ids", lambda ids: (ids == IMAGE).long())])
def test_what_says_nothing_new_is_left_out(processor, name, make):
    inputs, _ = prepare(shared_model("llava-llama"), Adding(processor, **{name: make}), [picture(1)], QUESTION)
    assert name not in inputs


@pytest.mark.parametrize("architecture", ["llava-llama", "next-llama", "next-mistral"])
def test_every_tensor_of_the_processor_arrives(architecture, model, processor):
    """As the processor made it, for forward as a whole: nothing is dropped, and floats have the model's dtype."""
    inputs, prompt = prepare(model, processor, [picture(1), picture(2, 60, 20)], QUESTION)
    given = processor(images=[picture(1), picture(2, 60, 20)], text=prompt, return_tensors="pt")
    assert inputs.keys() == given.keys()
    assert all(torch.equal(inputs[name], given[name]) for name in given)
    half = torch.nn.Module.half(copy.deepcopy(model))
    assert prepare(half, processor, [picture(1)], QUESTION)[0]["pixel_values"].dtype == torch.float16
    twice = repeat(inputs, 2)
    assert all(torch.equal(twice[name], torch.cat([inputs[name]] * 2)) for name in inputs)
