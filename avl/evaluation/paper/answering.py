"""From lmms-eval's chat messages to answers, in batches: what ``avl paper`` and lmms-eval's own command both run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from avl.cache.cache import AdaptiveCache, make_cache
from avl.engine.failures import out_of_memory
from avl.models.families import describe, image_token_id
from avl.models.images import open_image
from avl.models.inputs import to_model
from avl.models.prompt import Question, begins_itself, build_prompt, check_plain, image_token_of, template_owner
from avl.policies import Policy, PromptShape

MAX_NEW_TOKENS = 64
"""Most tokens of an answer where a task sets none, as TextVQA does."""

GREEDY = {"do_sample": (False, None), "temperature": (0, None), "num_beams": (1, None), "num_return_sequences": (1, None)}
"""Settings of a task that answers here can have one value of: what a sampled answer scores would be chance."""

WITHOUT_EFFECT = ("top_p", "top_k", "image_aspect_ratio", "use_cache")
"""Settings of tasks that say nothing to a greedy answer, or to the processor of a transformers checkpoint."""

Messages = Sequence[Mapping[str, Any]]
"""A chat as lmms-eval gives it: turns of a role and a content, which is texts (``text``) and images (``url``)."""


@dataclass(frozen=True)
class Settings:
    """How an answer ends.

    Attributes:
        max_new_tokens: most tokens.
        until: texts before which it is cut off.
    """

    max_new_tokens: int
    until: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any], max_new_tokens: int = MAX_NEW_TOKENS) -> Settings:
        """Return a task's ``generation_kwargs``; ``max_new_tokens`` counts where they set none.

        Raises:
            ValueError: they ask for something other than one greedy answer.
        """
        rest = dict(given)
        limit, until = rest.pop("max_new_tokens", None), rest.pop("until", None)
        for name, value in rest.items():
            if name not in (*GREEDY, *WITHOUT_EFFECT):
                raise ValueError(
                    f"the task sets {name}={value!r}, which answers under a policy do not know: leave it out of generation_kwargs"
                )
            if name in GREEDY and value not in GREEDY[name]:
                raise ValueError(f"the task sets {name}={value!r}, and answers here are greedy: set {name}: {GREEDY[name][0]}")
        texts = [until] if isinstance(until, str) else list(until or ())
        return cls(int(max_new_tokens if limit is None else limit), tuple(text for text in texts if text))


@dataclass(frozen=True)
class Reply:
    """An answer, and what its row of the batch cost until it ended.

    Attributes:
        text: the answer.
        asked: tokens of the prompt.
        tokens: tokens of the answer, the end token included.
        stored: tokens stored, summed over layers and decode steps.
        read: tokens read, likewise.
        full: tokens of a full cache, likewise.
        seconds: an even part of its batch's time.
    """

    text: str
    asked: int
    tokens: int
    stored: int
    read: int
    full: int
    seconds: float


def replies(model: Any, processor: Any, chats: Sequence[Messages], policy: Policy, settings: Settings) -> list[Reply]:
    """Answer one batch of chats greedily.

    Args:
        model: an attached model.
        processor: its processor, which pads on the left.
        chats: each with at least one picture.
        policy: what to store and read.
        settings: when answers end.

    Raises:
        ValueError: a chat cannot be asked of this model, or the policy does not fit; or the device ran out of memory.
    """
    began = time.monotonic()
    inputs = to_model(model, encoded(model, processor, chats))
    cache = make_cache(model, inputs, policy, max_new_tokens=settings.max_new_tokens)
    rows = _Rows(model, processor, cache, inputs, settings)
    try:
        with torch.inference_mode():
            model.generate(
                **inputs,
                past_key_values=cache,
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                num_beams=1,
                stopping_criteria=[rows],
            )
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ValueError(f"the device ran out of memory with {len(chats)} at a time: ask for a smaller batch") from error
    return rows.replies(time.monotonic() - began)


def shape_of(model: Any, processor: Any, chat: Messages, max_new_tokens: int) -> PromptShape:
    """Return the sizes of a chat's prompt; nothing runs but the processor."""
    ids = encoded(model, processor, [chat])["input_ids"][0]
    images = int((ids == image_token_id(model.config)).sum())
    return PromptShape(images, len(ids) - images, max_new_tokens, describe(model).layers)


def encoded(model: Any, processor: Any, chats: Sequence[Messages]) -> dict[str, Any]:
    """Return everything that the processor gives for a batch.

    Raises:
        ValueError: a chat cannot be asked of this model; says why.
    """
    texts = [prompt_of(model, processor, chat) for chat in chats]
    options = {"add_special_tokens": False} if begins_itself(processor.tokenizer, texts[0]) else {}
    pictures = [[open_image(part["url"]) for part in _parts(chat) if part["type"] == "image"] for chat in chats]
    return dict(processor(images=pictures, text=texts, return_tensors="pt", padding=True, **options))


def prompt_of(model: Any, processor: Any, chat: Messages) -> str:
    """Return a chat's prompt, as the model's template writes it.

    Raises:
        ValueError: there is no picture, or something other than pictures and text; a text holds control tokens; the template is missing, or
            leaves out a picture.
    """
    parts = list(_parts(chat))
    other = next((part["type"] for part in parts if part["type"] not in ("image", "text")), None)
    if other is not None:
        raise ValueError(f"it holds {other}, and answers here are about pictures")
    images, texts = (sum(part["type"] == kind for part in parts) for kind in ("image", "text"))
    if not images:
        raise ValueError("it has no picture")
    if not texts:
        raise ValueError("it has no text")
    for part in parts:
        if part["type"] == "text":
            check_plain(processor, part["text"])
    owner = template_owner(processor)
    if owner is None:  # the families that have none take pictures, then one question
        if len(chat) > 1 or [part["type"] for part in parts] != ["image"] * images + ["text"]:
            raise ValueError("this model has no chat template, and it is no single question after its pictures")
        return build_prompt(model.config, processor, Question(parts[-1]["text"]), images)
    told = [
        {"role": turn["role"], "content": [{"type": "image"} if part["type"] == "image" else dict(part) for part in _content(turn)]}
        for turn in chat
    ]
    prompt: str = owner.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
    if prompt.count(image_token_of(processor)) != images:
        raise ValueError(f"this model's chat template writes {prompt.count(image_token_of(processor))} places for {images} pictures")
    return prompt


def _content(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _parts(chat: Messages) -> list[Mapping[str, Any]]:
    return [part for turn in chat for part in _content(turn)]


class _Rows:
    """Follows ``generate`` step by step: which rows have ended, and what each has stored and read until then.

    Counts end with the row's answer, so that they do not depend on which rows share a batch.
    """

    def __init__(self, model: Any, processor: Any, cache: AdaptiveCache, inputs: dict[str, Any], settings: Settings) -> None:
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._tokenizer, self._cache, self._until = processor.tokenizer, cache, settings.until
        self._layers = describe(model).layers
        self._asked = [int(row) for row in inputs["attention_mask"].sum(dim=1)]
        self._tokens: list[list[int]] = [[] for _ in self._asked]
        self._ended = [False] * len(self._asked)
        self._counts = [[0, 0, 0] for _ in self._asked]  # stored, read, full

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if any(self._tokens):  # the first call follows prefill: nothing was decoded yet
            self._count()
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._ended[row]:
                self._tokens[row].append(token)
                self._ended[row] = token in self._ends or self._stop(row) is not None
        return torch.tensor(self._ended, device=input_ids.device)

    def _count(self) -> None:
        for place, bucket in enumerate(self._cache.buckets):
            alike = [layer.kvs[place] for layer in self._cache.layers]
            stored, read = sum(kv.image + kv.count for kv in alike), sum(kv.table.read for kv in alike if kv.table)
            for row in bucket.rows:
                if not self._ended[row]:
                    full = self._layers * (self._asked[row] + len(self._tokens[row]))
                    self._counts[row] = [sum(pair) for pair in zip(self._counts[row], (stored, read, full), strict=True)]

    def _text(self, row: int) -> str:
        return str(self._tokenizer.decode(self._tokens[row], skip_special_tokens=True)).strip()

    def _stop(self, row: int) -> int | None:
        """Return where a stop text begins in a row's answer, None where there is none. Blank space before an answer is none of it."""
        text = str(self._tokenizer.decode(self._tokens[row], skip_special_tokens=True)).lstrip() if self._until else ""
        return min((text.index(stop) for stop in self._until if stop in text), default=None)

    def replies(self, seconds: float) -> list[Reply]:
        found = []
        for row, (stored, read, full) in enumerate(self._counts):
            text = self._text(row)[: self._stop(row)].rstrip()
            found.append(Reply(text, self._asked[row], len(self._tokens[row]), stored, read, full, seconds / len(self._asked)))
        return found
