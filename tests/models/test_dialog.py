"""What follows an answer is what the model's chat template writes between two; its tokens are those of its place in the text."""

from __future__ import annotations

import pytest
from random_models import CHAT_TEMPLATE, build_processor, shared_model
from transformers import AutoTokenizer

import avl
from avl._paths import ASSETS
from avl.models.dialog import following_ids, following_text
from avl.models.prompt import Prompt, Question

TINY = ASSETS / "tiny"
HEAD = "{% for m in messages %}"
TEXTS = "{% for p in m['content'] if p['type'] == 'image' %}{{ '<image>' }}{% endfor %}{% for p in m['content'] if p['type'] == 'text' %}"
SAY = TEXTS + "{{ p['text'] }}{% endfor %}"
CHATML = (
    HEAD + "{{ '<|im_start|>' + m['role'] + '\n' }}" + SAY + "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_NEXT = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
INST = (
    HEAD
    + "{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    + SAY
    + "{{ ' [/INST]' }}{% else %}{{ ' ' }}"
    + SAY
    + "{{ '</s>' }}{% endif %}{% endfor %}"
)
STRIPS = CHATML.replace("p['text']", "p['text'] | trim")
AS_TEXT = HEAD + "{% if m['role'] == 'assistant' %}{{ m['content'] + '</s>' }}{% else %}" + SAY + "{{ ' ->' }}{% endif %}{% endfor %}"
FORGETS = HEAD + "{% if loop.last %}{{ 'USER: ' }}" + SAY + "{% else %}" + SAY + "{{ ' | ' }}{% endif %}{% endfor %}{{ 'ASSISTANT:' }}"
THINKS = STRIPS.replace("p['text'] | trim", "p['text'].split('</think>')[-1]")
DROPS = CHATML.replace(HEAD, "{% for m in messages[:1] %}")
FAILS = HEAD + "{% if not loop.first %}{{ raise_exception('one question only') }}{% endif %}" + SAY + "{% endfor %}"

QUESTIONS, ANSWERS = ("what is left ?", "is it red ?", "why ?"), ("w1 w2", "  w3 ")


def made(template: str):
    processor = build_processor("llava-llama")
    processor.chat_template = template
    return shared_model("llava-llama").config, processor


def follows(template: str, questions=QUESTIONS, answers=ANSWERS) -> str:
    return following_text(*made(template), questions, answers[: len(questions) - 1], 1)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, " USER: {} ASSISTANT:"),
        (CHATML, "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
        (STRIPS, "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
        (INST, "</s>[INST] {} [/INST]"),
        (AS_TEXT, "</s>{} ->"),
    ],
    ids=["vicuna", "chatml", "strips", "inst", "as-text"],
)
def test_the_template_writes_what_follows(template, expected):
    for count in (2, 3):
        assert follows(template, QUESTIONS[:count]) == expected.format(QUESTIONS[count - 1])


def test_pictures_precede_their_question():
    """Of every turn its own; without a template in the model's own form; and a template that writes too few is refused."""
    config, processor = made(CHATML)
    text = following_text(config, processor, QUESTIONS, ANSWERS, 1, [1, 2])
    assert text == CHATML_NEXT.format("<image><image>" + QUESTIONS[2])
    assert following_text(config, processor, QUESTIONS, ANSWERS, 1, [1, 0]) == CHATML_NEXT.format(QUESTIONS[2])
    assert following_text(config, processor, (*QUESTIONS[:2], "<image> so ?"), ANSWERS, 1, [0, 1]) == "<image> so ?"
    processor.chat_template = CHATML.replace("'<image>'", "'<image>' if loop.first")
    with pytest.raises(ValueError, match=r"writes 1 placeholders <image> for 2 new images"):
        following_text(config, processor, QUESTIONS, ANSWERS, 1, [1, 2])
    processor.chat_template = processor.tokenizer.chat_template = None
    assert following_text(config, processor, QUESTIONS, ANSWERS, 1, [0, 1]) == " USER: <image>\nwhy ? ASSISTANT:"


def test_a_template_may_take_an_answer_for_what_it_is():
    assert follows(THINKS) == follows(CHATML)
    with pytest.raises(ValueError, match="changes an earlier answer, which the cache holds as it was given"):
        follows(THINKS, answers=("w1 </think> w2", "w3"))


@pytest.mark.parametrize(
    ("template", "questions", "sentence"),
    [
        (FORGETS, QUESTIONS, "writes the earlier turns otherwise once a question follows"),
        (DROPS, QUESTIONS, "writes the earlier turns otherwise"),
        (FAILS, QUESTIONS, r"fails with a second question \(one question only\)"),
        (CHATML, ("what ?", "<image> what ?"), "1 placeholders <image> for 0 new pictures"),
        (CHATML, ("what ?", Prompt("<image>")), "1 placeholders <image> for 0 new pictures"),
        (CHATML, ("what ?", Question("<image> what ?")), "the question holds <image>"),
        (CHATML, (Prompt("<image> what ?"), "what ?"), "an earlier turn was a whole prompt"),
        (CHATML, ("<image> what ?", "what ?"), "an earlier turn was a whole prompt"),
        (CHATML, ("what ?", "what </s> ?"), "the question holds </s>"),
        (CHATML, ("what ?", " "), "the question is empty"),
    ],
)
def test_what_cannot_go_on_says_so(template, questions, sentence):
    with pytest.raises(ValueError, match=sentence):
        follows(template, questions)


def test_without_a_template_the_models_own_form_goes_on():
    config, processor = made(CHATML)
    processor.chat_template = processor.tokenizer.chat_template = None
    assert following_text(config, processor, QUESTIONS, ANSWERS, 1) == " USER: why ? ASSISTANT:"
    assert following_text(config, processor, (*QUESTIONS[:2], Prompt(" so ?")), ANSWERS, 1) == " so ?"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def test_the_end_of_an_answer_stands_once(tokenizer):
    """Whoever wrote it: the model, the template, or both; another end than the template's gives way to it."""
    end, space = tokenizer.eos_token_id, tokenizer(" USER: why ? ASSISTANT:", add_special_tokens=False)["input_ids"]
    ends = {end, tokenizer.bos_token_id}
    assert following_ids(tokenizer, " USER: why ? ASSISTANT:", None, ends)[-3:] == space[-3:]
    for text in ("</s>USER: why ? ASSISTANT:", "  </s>USER: why ? ASSISTANT:"):
        found = following_ids(tokenizer, text, end, ends)
        assert found.count(end) == 1
        assert found[0] == end
        assert following_ids(tokenizer, text, None, ends).count(end) == 1
        assert following_ids(tokenizer, text, tokenizer.bos_token_id, ends).count(tokenizer.bos_token_id) == 0
    assert following_ids(tokenizer, " USER: why ?", end, ends)[0] == end


def test_tokens_are_those_of_the_whole_text(tokenizer):
    """Behind an answer, with an end or without: no special token, and no space, that the whole conversation would not have there."""
    for answer, text, end in (("a red circle", "</s>USER: why ? ASSISTANT:", True), ("a red circle", " USER: why ? ASSISTANT:", False)):
        before = tokenizer(f"USER: what ? ASSISTANT: {answer}")["input_ids"]
        found = following_ids(tokenizer, text, tokenizer.eos_token_id if end else None, {tokenizer.eos_token_id})
        assert before + found == tokenizer(f"USER: what ? ASSISTANT: {answer}{text}")["input_ids"]


def test_the_bundled_model_goes_on():
    """Its own template ends an answer; its tokens are those of the whole conversation."""
    model, processor = avl.load(str(TINY))
    from PIL import Image

    with avl.Conversation(model, processor, Image.new("RGB", (336, 336), "white"), avl.Full(), max_new_tokens=12) as chat:
        first = chat.ask("What color is the background?")
        start = next(iter(chat.stream("What does the sign say?")))
        assert start.prompt == "</s>USER: What does the sign say? ASSISTANT:"
        assert first.reason == "eos"
        assert start.arms[0].text[-start.arms[0].new_tokens] == "</s>"
