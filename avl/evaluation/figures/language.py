"""Attention of a language model that takes no pictures: the text-only counterpart of Figure 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avl.attention.attachment import attach
from avl.cache.cache import make_cache
from avl.cache.layout import Row
from avl.cache.recorder import MODALITIES, Recorder
from avl.evaluation.figures.answers import Answer
from avl.models.families import describe
from avl.models.prompt import begins_itself, check_text
from avl.policies import Full

QUESTIONS = (
    "Explain how a rainbow forms.",
    "Describe a walk through an old harbor town in the morning.",
    "What are the main differences between a river and a canal?",
    "Give a short history of the bicycle.",
    "How does a refrigerator keep food cold?",
    "Write a letter to a friend about a long train journey.",
    "Why do leaves change their color in autumn?",
    "Explain to a child what a bank does.",
    "What should one consider before buying a house?",
    "Describe how bread is made, from grain to loaf.",
)
"""What is asked where nothing is: answers to these are long."""


@dataclass(frozen=True)
class ChatRow(Row):
    """A prompt without image whose first ``system`` tokens precede the question: control tokens, a system prompt."""

    system: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """What every position holds: "system" before the question, "instruction" from it on."""
        return ("system",) * self.system + ("instruction",) * (self.length - self.system)


def record_language(model: Any, tokenizer: Any, questions: Iterable[str], max_new_tokens: int) -> Iterator[Answer]:
    """Yield full attention's answers, recorded.

    Args:
        model: a language model that takes no pictures; attached if needed.
        tokenizer: its tokenizer.
        questions: what to ask, each in the tokenizer's chat template, or alone where it has none.
        max_new_tokens: most tokens of each answer.

    Raises:
        ValueError: a question is no text, or does not fit into the context.
        TypeError: the model's class is not supported.
    """
    attach(model)
    for question in questions:
        check_text(question)
        inputs, system = _encode(tokenizer, question)
        yield _answer(model, tokenizer, question, {name: value.to(model.device) for name, value in inputs.items()}, system, max_new_tokens)


def _encode(tokenizer: Any, question: str) -> tuple[dict[str, torch.Tensor], int]:
    """Return the inputs of a question, and how many of their tokens precede it."""
    prompt = question
    if getattr(tokenizer, "chat_template", None):
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        if question not in prompt:
            raise ValueError(
                "this model's chat template changes the question or leaves it out: put the model's own into chat_template.jinja"
            )
    special = not begins_itself(tokenizer, prompt)
    whole, before = (tokenizer(text, add_special_tokens=special)["input_ids"] for text in (prompt, prompt[: prompt.index(question)]))
    common = next(
        (place for place, (one, other) in enumerate(zip(whole, before, strict=False)) if one != other), min(len(whole), len(before))
    )
    ids = torch.tensor([whole])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, common


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, question: str, inputs: dict[str, Any], system: int, max_new_tokens: int) -> Answer:
    cache = make_cache(model, inputs, Full(), max_new_tokens)
    row = cache.rows[0]
    recorder = cache.recorder = Recorder(ChatRow(row.pad, row.length, row.image, row.answers, system), describe(model).layers)
    passes: list[np.ndarray] = []

    def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        passes.append(np.mean([layer.shares for layer in recorder.layers()], axis=0))
        return scores

    out = model.generate(**inputs, past_key_values=cache, max_new_tokens=max_new_tokens, do_sample=False, logits_processor=[note])
    text = tokenizer.decode(out[0, row.length :], skip_special_tokens=True).strip()
    shares = dict(zip(MODALITIES, np.stack(passes).T, strict=True))
    return Answer("", question, text, {part: shares[part] for part in ("system", "instruction", "generated")})
