"""The decode steps of an evaluation, known before it runs: what policies are set to equal memory over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from avl.evaluation.tasks import Dialog, Sample
from avl.models.dialog import following_ids, following_text
from avl.models.families import describe, family_of, image_token_id
from avl.policies import PromptShape
from avl.policies.base import PastTurn
from avl.policies.equal_memory import Workload


def batches(samples: Sequence[Sample], size: int) -> list[list[int]]:
    """Return the samples' indices by batch. Answers of one kind are about as long, so that few rows of a batch wait for the others."""

    def length(index: int) -> tuple[str, str, int]:
        question = samples[index].question
        return question.task, question.kind, len(question.answer)

    order = sorted(range(len(samples)), key=length)
    return [order[start : start + size] for start in range(0, len(order), size)]


def prompt(processor: Any, sample: Sample) -> str:
    """Return a sample's prompt, as the model's chat template writes it."""
    content = [{"type": "image"}, {"type": "text", "text": sample.question.text}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text


def workload(model: Any, processor: Any, samples: Sequence[Sample], batch: int, limit: int) -> Workload:
    """Return the steps of right answers: a batch takes as many as its longest answer has tokens, of which ``limit`` is the most."""
    tokenizer, config, layers = processor.tokenizer, model.config, describe(model).layers
    family = family_of(config)
    steps: Workload = {}
    for indices in batches(samples, batch):
        answers = [len(tokenizer(samples[i].question.answer, add_special_tokens=False)["input_ids"]) for i in indices]
        longest = min(max(answers), limit - 1)  # the end of the sequence takes the step after the last token, and prefill gave the first
        for index in indices:
            ids = tokenizer(prompt(processor, samples[index]))["input_ids"]
            text = len(ids) - ids.count(image_token_id(config))
            shape = PromptShape(family.image_tokens(config, samples[index].image.size), text, limit, layers)
            steps.setdefault(shape, Counter()).update(range(1, longest + 1))
    return steps


def dialog_workload(model: Any, processor: Any, dialogs: Sequence[Dialog], limit: int) -> Workload:
    """Return the steps of conversations in which every answer is the right one, continued on one cache; ``limit``: most tokens of each."""
    tokenizer, config, layers = processor.tokenizer, model.config, describe(model).layers
    end = tokenizer.eos_token_id
    steps: Workload = {}
    for dialog in dialogs:
        image = family_of(config).image_tokens(config, dialog.image.size)
        asked = [question.text for question in dialog.questions]
        before = prompt(processor, Sample(dialog.image, dialog.questions[0]))
        ids = tokenizer(before)["input_ids"]
        text, past = len(ids) - ids.count(image_token_id(config)), None
        for turn, question in enumerate(dialog.questions):
            if turn:
                told = [one.answer for one in dialog.questions[:turn]]
                text += len(following_ids(tokenizer, following_text(config, processor, asked[: turn + 1], told, 1), end, [end]))
            shape = PromptShape(image, text, limit, layers, past)
            spoken = len(tokenizer(f"{before} {question.answer}")["input_ids"]) - len(ids)  # with the space, words are other tokens
            answer = min(spoken, limit - 1)
            steps.setdefault(shape, Counter()).update(range(1, answer + 1))
            text, past = text + answer, PastTurn(shape, answer)
    return steps
