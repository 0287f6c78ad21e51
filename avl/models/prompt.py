"""From a question to the prompt: the model's chat template, and what may not stand in a question."""

from __future__ import annotations

import re
from typing import Any

from avl.models.families import family_of


class Prompt(str):
    """A whole prompt, with its own image placeholders and special tokens: no chat template goes around it."""

    __slots__ = ()


class Question(str):
    """Text that somebody typed: never a whole prompt, so an image placeholder in it is refused."""

    __slots__ = ()


def image_token_of(processor: Any) -> str:
    """Return a processor's placeholder of a picture."""
    return str(processor.image_token)  # some keep it as an AddedToken


def is_whole(question: str, image_token: str) -> bool:
    """Return whether text is a whole prompt: a :class:`Prompt`, or a plain str that has image placeholders."""
    return isinstance(question, Prompt) or (image_token in question and not isinstance(question, Question))


def build_prompt(config: Any, processor: Any, question: str, n_images: int) -> str:
    """Wrap a question in the model's chat template; return a whole prompt as it is.

    Args:
        config: the model's config.
        processor: the model's processor.
        question: a question, or a whole prompt (see :func:`is_whole`).
        n_images: number of images, which precede the question.

    Raises:
        ValueError: the question is no text, empty, or holds what would not be read as text; the placeholders do not match the images; or
            the template is missing, fails, or leaves out an image or the question.
    """
    check_text(question)
    image_token, family = image_token_of(processor), family_of(config)
    if not family.placeholders and n_images != 1:
        raise ValueError(f"{family.model_class} takes one picture, not {n_images}: pass one")
    places = n_images if family.placeholders else 0
    if is_whole(question, image_token):
        if not family.placeholders and image_token in question:
            raise ValueError(f"the prompt has a placeholder {image_token}, where {family.model_class} puts the picture first: leave it out")
        if question.count(image_token) != places:
            raise ValueError(
                f"the prompt has {question.count(image_token)} placeholders {image_token} for {n_images} images: write one for each image, "
                "or none where the chat template is to go around it"
            )
        return str(question)
    question = question.strip()
    check_plain(processor, question)
    owner = template_owner(processor)
    if owner is None:
        prompt = family.plain_prompt(config, f"{image_token}\n" * n_images, question)
        if prompt is None:
            raise ValueError("this model has no chat template: add its chat_template.jinja, or pass a whole prompt as avl.Prompt")
        return prompt
    content = [{"type": "image"}] * places + [{"type": "text", "text": question}]
    advice = "put the model's own into chat_template.jinja, or pass a whole prompt as avl.Prompt"
    try:
        prompt = owner.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program: it raises whatever it runs into
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"this model's chat template fails with a picture and a question ({reason[0][:200]}): {advice}") from error
    if prompt.count(image_token) != places:
        raise ValueError(
            f"this model's chat template writes {prompt.count(image_token)} placeholders {image_token} for {places} images: {advice}"
        )
    if question not in prompt:
        raise ValueError(f"this model's chat template changes the question or leaves it out: {advice}")
    return prompt


def template_owner(processor: Any) -> Any | None:
    """Return what holds the chat template, the processor or its tokenizer; None where there is none."""
    return next((one for one in (processor, processor.tokenizer) if getattr(one, "chat_template", None)), None)


def check_text(question: Any) -> None:
    """Refuse what is no text to ask (``ValueError``)."""
    if question is None:
        raise ValueError("the question is empty: ask something about the image")
    if not isinstance(question, str):
        raise ValueError(f"the question is no text but {type(question).__name__}: pass a str")
    if not question.strip():
        raise ValueError("the question is empty: ask something about the image")
    strange = re.search(r"[\0\ud800-\udfff]", question)
    if strange:
        what = "a NUL character" if strange[0] == "\0" else f"half a character (U+{ord(strange[0]):X})"
        raise ValueError(f"the question holds {what} at position {strange.start() + 1}, which is no text: remove it")


def check_plain(processor: Any, question: str) -> None:
    """Refuse text that the tokenizer reads as something other than text: it would change the prompt that the template writes."""
    tokenizer = processor.tokenizer
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    # an unknown word has the id of <unk> too
    found = [special[number] for number in ids if number in special and (number != tokenizer.unk_token_id or special[number] in question)]
    if image_token_of(processor) in question:
        found.insert(0, image_token_of(processor))
    if found:
        raise ValueError(f"the question holds {found[0]}, which this model reads as a control token and not as text: reword it")


def begins_itself(tokenizer: Any, prompt: str) -> bool:
    """Return whether a prompt already begins with the token that the tokenizer would put there."""
    return bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
