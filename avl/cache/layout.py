"""Prompt layout: padding, image positions, and what every position holds, for every row of a batch."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from avl.models.dialog import check_later
from avl.models.families import Facts, Family
from avl.policies import Policy


@dataclass(frozen=True)
class Row:
    """The layout of one prompt of a batch.

    Attributes:
        pad: left padding tokens.
        length: real tokens.
        image: positions of the image tokens, counted from the first real token.
        answers: (start, stop) of earlier answers, in a later turn of a conversation: the tokens of each that were decode steps.
    """

    pad: int
    length: int
    image: tuple[int, ...]
    answers: tuple[tuple[int, int], ...] = ()

    @property
    def n_image(self) -> int:
        """Image tokens of this row, all its images together (N in the paper)."""
        return len(self.image)

    @property
    def n_text(self) -> int:
        """Prompt tokens other than image tokens: system prompt, instruction, separators."""
        return self.length - len(self.image)

    @property
    def text(self) -> tuple[int, ...]:
        """Positions of the text tokens, counted from the first real token."""
        image = set(self.image)
        return tuple(position for position in range(self.length) if position not in image)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What every position holds: "system" text before the image tokens, "image", "instruction" after them (Fig. 2), "between" them.

        "between" is text with image tokens on both sides: row breaks, separators of tiles, words between pictures. A prompt without image
        is an instruction. Earlier answers are "generated".
        """
        first, last = (self.image[0], self.image[-1]) if self.image else (0, -1)
        kinds = ["system"] * first + ["between"] * (last + 1 - first) + ["instruction"] * (self.length - last - 1)
        for position in self.image:
            kinds[position] = "image"
        for start, stop in self.answers:
            kinds[start:stop] = ["generated"] * (stop - start)
        return tuple(kinds)

    @property
    def spans(self) -> tuple[tuple[str, int, int], ...]:
        """Spans of one kind as (name, start, stop), in order; the names are those of :attr:`kinds`."""
        spans: list[tuple[str, int, int]] = []
        for kind, group in itertools.groupby(self.kinds):
            start = spans[-1][2] if spans else 0
            spans.append((kind, start, start + len(list(group))))
        return tuple(spans)


def ids_and_mask(inputs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return ``input_ids`` and ``attention_mask`` of a processor's output.

    Raises:
        ValueError: there are none, or they are no tensors.
    """
    found = [inputs.get(name) if isinstance(inputs, Mapping) else None for name in ("input_ids", "attention_mask")]
    if not isinstance(found[0], torch.Tensor) or not (found[1] is None or isinstance(found[1], torch.Tensor)):
        raise ValueError(
            f"inputs, a {type(inputs).__name__}, hold no tensors input_ids and attention_mask: pass the processor's output, made with "
            "return_tensors='pt'"
        )
    return found[0], found[1]


def find_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, image_token_id: int | None) -> tuple[Row, ...]:
    """Return the layout of every row of a batch.

    Args:
        input_ids: ``[B, L]`` token ids, with every image placeholder expanded to one id per image feature.
        attention_mask: ``[B, L]``, 0 for left padding, or None for no padding.
        image_token_id: the id that stands for an image feature, None where the model takes no pictures.

    Raises:
        ValueError: a row is padded on the right or inside, or is empty.
    """
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be [batch, length], not {list(input_ids.shape)}: pass the processor's output as it is")
    ids = input_ids.tolist()
    masks: Sequence[Sequence[int]] = attention_mask.tolist() if attention_mask is not None else [[1] * len(row) for row in ids]
    if len(masks) != len(ids) or any(len(mask) != len(row) for mask, row in zip(masks, ids, strict=False)):
        raise ValueError("attention_mask and input_ids differ in shape: pass the processor's output as it is")
    rows = []
    for number, (tokens, mask) in enumerate(zip(ids, masks, strict=True)):
        length = sum(1 for bit in mask if bit)
        pad = len(tokens) - length
        if length == 0 or any(mask[:pad]) or not all(mask[pad:]):
            inside = length > 0 and bool(mask[0]) and bool(mask[-1])  # as processors do that put the picture before text that is padded
            advice = "move the padding before the picture" if inside else "set processor.tokenizer.padding_side = 'left'"
            raise ValueError(f"row {number} of the batch is not padded on the left: {advice}")
        image = tuple(position for position, token in enumerate(tokens[pad:]) if token == image_token_id)
        rows.append(Row(pad=pad, length=length, image=image))
    return tuple(rows)


def check_images(rows: Sequence[Row], inputs: Any, family: Family, policy: Policy) -> None:
    """Refuse prompts whose image tokens are missing or in the wrong place; warn where a policy for image tokens finds none.

    Args:
        rows: layout of the prompts.
        inputs: the processor's output.
        family: of the model.
        policy: what to store and read.

    Raises:
        ValueError: a row lacks its image, or ends in one that leaves the next position in doubt.
    """
    last = [number for number, row in enumerate(rows) if row.image and row.image[-1] == row.length - 1]
    if last and not family.picture_last:
        raise ValueError(
            f"row {last[0]} of the batch ends in an image, and transformers gives the tokens after it other positions in generate than in "
            f"{family.model_class} itself: end the prompt with text"
        )
    without = [number for number, row in enumerate(rows) if not row.image]
    if not without:
        return
    if not family.placeholders or (len(without) == len(rows) and inputs.get("pixel_values") is not None):
        raise ValueError(f"row {without[0]} of the batch has no image: put an image placeholder in its prompt and pass the image")
    if policy.pins_image and policy.budget is not None:
        where = "the prompts hold no image" if len(without) == len(rows) else f"row {without[0]} of the batch holds no image"
        warnings.warn(f"{where}: {policy.label} has only the text of it to act on", stacklevel=3)


def check_later_pictures(family: Family, new: Sequence[int], image: Sequence[tuple[int, ...]]) -> None:
    """Refuse pictures in a later turn that the family cannot take there, or that the turn ends in.

    Args:
        family: of the model.
        new: tokens that the turn feeds, of every row.
        image: those of them that are image tokens.

    Raises:
        ValueError: says why, and what to do.
    """
    check_later(family, sum(map(bool, image)))
    if not family.picture_last and any(places and places[-1] == count - 1 for count, places in zip(new, image, strict=True)):
        raise ValueError(f"a later turn ends in a picture, and {family.model_class} then counts on in another way: end it with text")


def check_room(facts: Facts, longest: int, max_new_tokens: int) -> None:
    """Refuse a row of ``longest`` tokens, prompt and answer, that the model has no positions for, or that some layer would not see whole.

    Raises:
        ValueError: it exceeds the model's context or the window of its layers.
    """
    advice = f"shorten the question, use fewer or smaller images, or lower max_new_tokens={max_new_tokens}"
    if longest > facts.context:
        raise ValueError(f"prompt and answer need {longest} tokens, the model's context has {facts.context}: {advice}")
    if facts.window is not None and longest > facts.window:
        raise ValueError(
            f"prompt and answer need {longest} tokens, and some layers of this model see a window of {facts.window}, within which adaptive "
            f"attention chooses nothing: {advice}"
        )


def check_image_tokens(rows: Sequence[Row], input_ids: torch.Tensor, image_token_id: int | None) -> None:
    """Refuse a prompt whose image tokens are elsewhere than ``rows`` say.

    Args:
        rows: what a cache was made for.
        input_ids: ``[B, L]``, padding included; of another shape, this function says nothing.
        image_token_id: the id that stands for an image feature, None where there are none.

    Raises:
        ValueError: some image token is elsewhere.
    """
    if image_token_id is None or tuple(input_ids.shape) != (len(rows), rows[0].pad + rows[0].length):
        return
    expected = torch.zeros(input_ids.shape, dtype=torch.bool)
    for flags, row in zip(expected, rows, strict=True):
        flags[torch.tensor(row.image, dtype=torch.int64) + row.pad] = True
    if not torch.equal(input_ids.cpu() == image_token_id, expected):
        raise ValueError("the image tokens of this prompt are not where this cache expects them: make one from these inputs")


def check_mask(rows: Sequence[Row], mask: torch.Tensor | None, seen: int | None) -> None:
    """Refuse an attention mask that hides other tokens than padding: adaptive attention reads its padding from ``rows``.

    Args:
        rows: what a cache was made for.
        mask: ``[B, tokens of this pass and all before]``, 0 for padding; None if the caller has none.
        seen: tokens per row in a step and all passes before it, None for the prompt.

    Raises:
        ValueError: another token is hidden, or padding is not.
    """
    pads = torch.tensor([row.pad for row in rows])
    if mask is None:
        right = seen is not None or not pads.any()
    elif seen is None:
        right = torch.equal(mask.bool().cpu(), torch.arange(mask.shape[1]) >= pads[:, None])
    else:
        right = torch.equal(mask.bool().sum(dim=1).cpu(), seen - pads)  # its columns were compared with the prompt
    if not right:
        raise ValueError("the attention_mask hides other tokens than the left padding this cache was made for: make one from these inputs")
