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
from avl.models.inputs import PER_TOKEN, join_pictures
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
        images: pictures that a later turn brought (PIL); those of the first turn are the conversation's.
    """

    question: str
    max_new_tokens: int
    answers: tuple[tuple[int, ...], ...]
    images: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Fed:
    """What the first pass of a turn feeds.

    Attributes:
        new: its tokens.
        image: those of them that are image tokens, from 0.
        pictures: what the processor made of a later turn's pictures, empty for none.
    """

    new: tuple[int, ...]
    image: tuple[int, ...] = ()
    pictures: dict[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)


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
        image: those of the unfed tokens that are image tokens, from 0: of a question that was never read.
        pictures: what the processor made of their pictures.
        answers: the text of each.
    """

    policy: Policy
    cache: AdaptiveCache | None = None
    passed: list[Passed] = field(default_factory=list)
    unfed: tuple[int, ...] = ()
    end: int | None = None
    said: int = 0
    image: tuple[int, ...] = ()
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """Every token up to now, the end of the last answer excepted."""
        return [token for turn in self.passed for token in (*turn.new, *turn.steps)] + list(self.unfed)

    def take(self, fed: Fed, limit: int, tokens: Sequence[int], settings: Settings, tokenizer: Any) -> None:
        """Note a turn.

        Args:
            fed: what its first pass fed; where that did not run, what the next one has to.
            limit: most tokens of its answer.
            tokens: of the answer, its end included; none where the first pass did not run.
            settings: of its generation.
            tokenizer: the model's.
        """
        ends = bool(tokens) and tokens[-1] in settings.eos
        if tokens or not self.passed:
            self.passed.append(Passed(fed.new, self.said, tuple(tokens[:-1]), limit, fed.image, fed.pictures))
            self.unfed = () if ends else tuple(tokens[-1:])
            self.said, self.image, self.pictures = len(self.unfed), (), {}
        else:
            self.unfed, self.image, self.pictures = fed.new, fed.image, fed.pictures
        self.end = tokens[-1] if ends else None
        text = TextStream(tokenizer)
        for token in tokens[:-1] if ends else tokens:
            text.add(token)
        text.finish()
        self.answers.append(text.text)

    def follow(self, ids: Sequence[int], image_token: int | None, new: dict[str, torch.Tensor], axis: int) -> Fed:
        """Return what the first pass of a next turn feeds.

        Args:
            ids: what follows the unfed tokens.
            image_token: stands for an image feature among them.
            new: what the processor made of their pictures, empty for none.
            axis: along which pictures follow one another in that.

        Raises:
            ValueError: the model would take a token of the last answer for a picture.
        """
        if (new or self.pictures) and any(token == image_token for token in self.unfed[: self.said]):
            raise ValueError(
                "the last answer ends in the placeholder of a picture, so that no picture can follow it: ask without one first"
            )
        begin = len(self.unfed)
        image = tuple(begin + place for place, token in enumerate(ids) if new and token == image_token)
        return Fed((*self.unfed, *ids), (*self.image, *image), join_pictures(self.pictures, new, axis))

    def all_pictures(self, inputs: dict[str, torch.Tensor], fed: Fed, axis: int) -> dict[str, torch.Tensor]:
        """Return what the processor made of all pictures: those of the first prompt's ``inputs``, of every turn since, and of ``fed``."""
        found = join_pictures(inputs, {}, axis)
        for some in (*(turn.pictures for turn in self.passed), fed.pictures):
            found = join_pictures(found, some, axis)
        return found

    def layout(self, first: Row, fed: Fed, limit: int, layers: int) -> tuple[Row, PromptShape]:
        """Return the layout before the answer of a turn that feeds ``fed``, and its sizes.

        Args:
            first: layout of the first turn's prompt.
            fed: by its first pass.
            limit: most tokens of the answer.
            layers: of the model.
        """
        length, past, answers, image = 0, None, [], []
        unfed = [*(turn.said for turn in self.passed[1:]), self.said]
        for turn, few in zip(self.passed, unfed, strict=False):
            image += [length + place for place in turn.image]
            length += len(turn.new)
            past = PastTurn(PromptShape(len(image), length - len(image), turn.limit, layers, past), len(turn.steps))
            if len(turn.steps) + few:
                answers.append((length, length + len(turn.steps) + few))
            length += len(turn.steps)
        image += [length + place for place in fed.image]
        length += len(fed.new)
        return Row(first.pad, length, tuple(image), tuple(answers)), PromptShape(len(image), length - len(image), limit, layers, past)


@dataclass(frozen=True)
class Plan:
    """A turn that was checked.

    Attributes:
        request: what is asked, of the kept policies.
        settings: of the generation.
        inputs: of the first turn's prompt.
        text: the prompt, or what a later turn adds.
        row: layout of the first turn's prompt.
        fed: what each policy's first pass feeds.
        images: the new pictures of a later turn.
        pictures: what the processor made of them, empty for none.
        reread: numbers of the policies that also re-read.
        rows: layout of each policy's whole prompt.
        shapes: its sizes.
    """

    request: GenerationRequest
    settings: Settings
    inputs: dict[str, Any]
    text: str
    row: Row
    fed: list[Fed]
    images: tuple[Any, ...]
    pictures: dict[str, torch.Tensor]
    reread: tuple[int, ...]
    rows: tuple[Row, ...]
    shapes: tuple[PromptShape, ...]


def whole_inputs(inputs: dict[str, Any], ids: Sequence[int], row: Row, token_types: str | None) -> dict[str, Any]:
    """Return the inputs of a first turn with the tokens of its whole conversation, and the first turn's pictures.

    Args:
        inputs: of the first turn.
        ids: every token.
        row: their layout.
        token_types: name of the input that is 1 where a token belongs to a picture.
    """
    before = inputs["input_ids"]
    pad = before.shape[1] - int(inputs.get("attention_mask", before.new_ones(before.shape)).sum())
    tokens = torch.cat([before[:, :pad], before.new_tensor([list(ids)])], dim=1)
    grown = {
        name: torch.cat([inputs[name], inputs[name].new_full((1, tokens.shape[1] - before.shape[1]), value)], dim=1)
        for name, value in PER_TOKEN.items()
        if name in inputs
    }
    if token_types in grown:
        grown[token_types][0, [pad + place for place in row.image if pad + place >= before.shape[1]]] = 1
    return {**inputs, **grown, "input_ids": tokens}
