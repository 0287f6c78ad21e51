"""A later turn of a conversation: what the model's chat template writes between an answer and the next one, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from avl.models.families import Family, family_of
from avl.models.prompt import check_plain, check_text, image_token_of, is_whole, template_owner

_ADVICE = "ask it as a new question, or pass the text that follows the answer as avl.Prompt"


def following_text(
    config: Any, processor: Any, questions: Sequence[str], answers: Sequence[str], n_images: int, later: Sequence[int] | None = None
) -> str:
    """Return the text between the last answer and the next one: its end of turn, the last question, the beginning of an answer.

    The chat template writes the whole conversation, with a mark in place of each answer; what it writes behind the last mark is wanted.
    What it writes before must be what it wrote without the last question, because that is in the cache.

    Args:
        config: the model's config.
        processor: the model's processor.
        questions: all of them, the new one last; an ``avl.Prompt`` is a whole prompt, or the text that follows an answer.
        answers: those to all but the last question.
        n_images: number of images, which precede the first question.
        later: number of images that precede each further question; by default none.

    Raises:
        ValueError: the question is no text, empty, or holds what would not be read as text; its placeholders are not those of its pictures,
            or the model takes none in a later turn; a whole prompt is followed by a plain question; the model's prompt cannot be continued;
            or the template is missing, fails, or writes the turns otherwise.
    """
    question, image_token, family = questions[-1], image_token_of(processor), family_of(config)
    counts = [n_images, *(later or [0] * len(answers))]
    new = counts[-1]
    check_text(question)
    reason = family.no_turns()
    if reason is not None:
        raise ValueError(f"a conversation with {family.model_class} cannot go on with what is stored, {reason}: ask a new question")
    check_later(family, new)
    if is_whole(question, image_token):
        if question.count(image_token) != new:
            raise ValueError(
                f"what follows the answer has {question.count(image_token)} placeholders {image_token} for {new} new pictures: pass the "
                "pictures with the question, and write one placeholder for each"
            )
        return str(question)
    if any(is_whole(one, image_token) for one in questions):
        raise ValueError("an earlier turn was a whole prompt, which no chat template continues: pass what follows the answer as avl.Prompt")
    plain = [one.strip() for one in questions]
    check_plain(processor, plain[-1])
    owner = template_owner(processor)
    if owner is None:
        text = family.plain_next(config, f"{image_token}\n" * new + plain[-1])
        if text is None:
            raise ValueError("this model has no chat template: add its chat_template.jinja, or pass what follows the answer as avl.Prompt")
        return text
    images = counts if family.placeholders else [0] * len(counts)
    marks = [f"\ue000{number}\ue001" for number in range(len(answers))]
    marked, before = _written(owner, images, plain, marks), _written(owner, images, plain[:-1], marks[:-1])
    head, mark, tail = marked.partition(marks[-1])
    if not mark or _squeezed(head) != _squeezed(before):
        raise ValueError(f"this model's chat template writes the earlier turns otherwise once a question follows: {_ADVICE}")
    if plain[-1] not in tail:
        raise ValueError(f"this model's chat template changes the question or leaves it out: {_ADVICE}")
    if tail.count(image_token) != new:
        raise ValueError(
            f"this model's chat template writes {tail.count(image_token)} placeholders {image_token} for {new} new images: {_ADVICE}"
        )
    said = marked
    for one, answer in zip(marks, answers, strict=True):
        said = said.replace(one, answer)
    if _squeezed(_written(owner, images, plain, answers)) != _squeezed(said):
        raise ValueError(f"this model's chat template changes an earlier answer, which the cache holds as it was given: {_ADVICE}")
    return tail


def check_later(family: Family, images: int) -> None:
    """Refuse ``images`` new pictures in a later turn where the family takes none there (``ValueError``)."""
    reason = family.no_later_pictures() if images else None
    if reason is not None:
        raise ValueError(f"a later turn with {family.model_class} cannot bring a picture, {reason}: begin a conversation with it")


def following_ids(
    tokenizer: Any, text: str, end: int | None, ends: Collection[int], encode: Callable[[str], list[int]] | None = None
) -> list[int]:
    """Return the tokens that follow an answer.

    An answer's own tokens stay as they were generated, and so does its end, unless the template writes another one in its place.

    Args:
        tokenizer: the model's tokenizer.
        text: from :func:`following_text`.
        end: the token that ended the answer, None where it broke off or reached its limit.
        ends: all tokens that end an answer.
        encode: makes tokens of a text with placeholders, as many for each as its picture has; by default the tokenizer.
    """
    encode = encode or (lambda some: list(tokenizer(some, add_special_tokens=False)["input_ids"]))
    names = {token: str(tokenizer.convert_ids_to_tokens(token)) for token in ends}
    written = next((token for token, name in names.items() if text.lstrip().startswith(name)), None)
    if end is None or (written is not None and written != end):
        return _behind(tokenizer, "a", text, encode)
    rest = text.lstrip()[len(names[end]) :] if written == end else text
    return [end, *_behind(tokenizer, names.get(end, str(tokenizer.convert_ids_to_tokens(end))), rest, encode)]


def _behind(tokenizer: Any, before: str, text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Return the tokens of ``text`` where it follows ``before``: at its own beginning, tokenizers put a space or a special token."""
    both, known = encode(before + text), list(tokenizer(before, add_special_tokens=False)["input_ids"])
    if both[: len(known)] == known and (text[:1].isspace() or len(both) > len(known)):
        return both[len(known) :]
    return encode(text)


def _written(owner: Any, images: Sequence[int], questions: Sequence[str], answers: Sequence[str]) -> str:
    """Return what the template writes, up to the beginning of the answer to the last question."""
    trouble: Exception | None = None
    for plain in (False, True):
        messages: list[dict[str, Any]] = []
        for number, question in enumerate(questions):
            content: list[dict[str, str]] = [{"type": "image"}] * images[number] + [{"type": "text", "text": question}]
            messages.append({"role": "user", "content": content})
            if number < len(answers):
                answer: Any = answers[number] if plain else [{"type": "text", "text": answers[number]}]
                messages.append({"role": "assistant", "content": answer})
        try:
            text = str(owner.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template is a program: it raises whatever it runs into
            trouble = error
            continue
        if all(answer.strip() in text for answer in answers) or plain:
            return text
    reason = str(trouble).strip().splitlines() or [type(trouble).__name__]
    raise ValueError(f"this model's chat template fails with a second question ({reason[0][:200]}): {_ADVICE}") from trouble


def _squeezed(text: str) -> str:
    """Return text without white space, which templates put and strip around what they are given."""
    return "".join(text.split())
