"""What a conversation remembers: of each policy its own side, of each turn what was planned, asked and answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from avl.cache.cache import AdaptiveCache
from avl.cache.layout import Row
from avl.engine.generation import Settings
from avl.engine.replay import Passed
from avl.engine.request import GenerationRequest
from avl.engine.text import TextStream
from avl.policies import Policy, PromptShape
from avl.policies.base import PastTurn


@dataclass(frozen=True)
class Turn:
    """An answer within a conversation.

    Attributes:
        text: the answer.
        tokens: its ids, without the end of the sequence.
        reason: why it ended, as in ``avl.trace.End``.
        first_ms: time of the first pass: of the prompt, or of the tokens that a later turn adds.
        ms: compute time of the whole turn.
        new_tokens: tokens that the first pass fed.
        stored_bytes: of keys and values, mean over the decode steps.
        peak_bytes: most ever held.
    """

    text: str
    tokens: tuple[int, ...]
    reason: str
    first_ms: float
    ms: float
    new_tokens: int
    stored_bytes: float
    peak_bytes: int


@dataclass(frozen=True)
class Said:
    """One turn of a conversation as its text tells it, from which it can be resumed.

    Attributes:
        question: what was asked.
        max_new_tokens: most tokens of each answer.
        answers: of every policy, the tokens that were generated, the end of the sequence included.
    """

    question: str
    max_new_tokens: int
    answers: tuple[tuple[int, ...], ...]


@dataclass
class Line:
    """One policy's side: what was fed to its cache, and what was said and is not fed yet.

    Attributes:
        policy: what to store and read.
        cache: None before it has run, and where it has to be built again.
        passed: the turns that the cache has seen.
        unfed: the newest tokens, which it has not seen; the end of the sequence excepted.
        end: the end of the sequence that the last answer ended with, None if it broke off.
        said: how many of the unfed tokens, counted from the first, belong to the last answer that was begun.
        answers: the text of each.
    """

    policy: Policy
    cache: AdaptiveCache | None = None
    passed: list[Passed] = field(default_factory=list)
    unfed: tuple[int, ...] = ()
    end: int | None = None
    said: int = 0
    answers: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """Every token up to now, the end of the last answer excepted."""
        return [token for turn in self.passed for token in (*turn.new, *turn.steps)] + list(self.unfed)

    def take(self, new: Sequence[int], limit: int, tokens: Sequence[int], settings: Settings, tokenizer: Any) -> None:
        """Note a turn.

        Args:
            new: what its first pass fed; where that did not run, what the next one has to.
            limit: most tokens of its answer.
            tokens: of the answer, its end included; none where the first pass did not run.
            settings: of its generation.
            tokenizer: the model's.
        """
        ends = bool(tokens) and tokens[-1] in settings.eos
        if tokens or not self.passed:
            self.passed.append(Passed(tuple(new), self.said, tuple(tokens[:-1]), limit))
            self.unfed = () if ends else tuple(tokens[-1:])
            self.said = len(self.unfed)
        else:
            self.unfed = tuple(new)
        self.end = tokens[-1] if ends else None
        text = TextStream(tokenizer)
        for token in tokens[:-1] if ends else tokens:
            text.add(token)
        text.finish()
        self.answers.append(text.text)

    def layout(self, first: Row, new: int, limit: int, layers: int) -> tuple[Row, PromptShape]:
        """Return the layout before the answer of a turn that feeds ``new`` tokens, and its sizes.

        Args:
            first: layout of the first turn's prompt.
            new: number of tokens.
            limit: most tokens of the answer.
            layers: of the model.
        """
        length, past, answers, image = 0, None, [], first.n_image
        unfed = [*(turn.said for turn in self.passed[1:]), self.said]
        for turn, few in zip(self.passed, unfed, strict=False):
            length += len(turn.new)
            past = PastTurn(PromptShape(image, length - image, turn.limit, layers, past), len(turn.steps))
            if len(turn.steps) + few:
                answers.append((length, length + len(turn.steps) + few))
            length += len(turn.steps)
        length += new
        return Row(first.pad, length, first.image, tuple(answers)), PromptShape(image, length - image, limit, layers, past)


@dataclass(frozen=True)
class Plan:
    """A turn that was checked.

    Attributes:
        request: what is asked, of the kept policies.
        settings: of the generation.
        inputs: of the first turn's prompt.
        text: the prompt, or what a later turn adds.
        row: layout of the first turn's prompt.
        new: tokens that each policy's first pass feeds.
        reread: numbers of the policies that also re-read.
        rows: layout of each policy's whole prompt.
        shapes: its sizes.
    """

    request: GenerationRequest
    settings: Settings
    inputs: dict[str, Any]
    text: str
    row: Row
    new: list[list[int]]
    reread: tuple[int, ...]
    rows: tuple[Row, ...]
    shapes: tuple[PromptShape, ...]


_PER_TOKEN = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Inputs ``[1, L]`` -> their value for text that follows."""


def whole_inputs(inputs: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Return the inputs of a first turn with the tokens of its whole conversation, pictures included."""
    before = inputs["input_ids"]
    pad = before.shape[1] - int(inputs.get("attention_mask", before.new_ones(before.shape)).sum())
    tokens = torch.cat([before[:, :pad], before.new_tensor([list(ids)])], dim=1)
    grown = {
        name: torch.cat([inputs[name], inputs[name].new_full((1, tokens.shape[1] - before.shape[1]), value)], dim=1)
        for name, value in _PER_TOKEN.items()
        if name in inputs
    }
    return {**inputs, **grown, "input_ids": tokens}
