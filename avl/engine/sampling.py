"""Choice of the next token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper

from avl.engine.generation import Settings

NOT_FINITE = -1
"""Told in place of a token that was chosen from logits that are no numbers."""


class Temperature(LogitsProcessor):
    """transformers' temperature for numbers of any size: the largest score is 0, so that none overflows to infinity."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return ``scores [B, V]`` divided by the temperature, up to a constant per row."""
        return (scores - scores.amax(dim=-1, keepdim=True)) / self._temperature


class Chooser:
    """Chooses the tokens of one run from its logits as ``model.generate`` does, and holds the sequences where a setting looks at them.

    Args:
        settings: what the model's generation config asks for.
        inputs: of the model; ``input_ids [B, L]`` and, where rows are padded, ``attention_mask``.
        temperature: of the sampling, 0 for the likeliest token.
        generator: of the sampling, on the CPU; None for torch's own.

    Raises:
        ValueError: a setting has an invalid value.
    """

    def __init__(self, settings: Settings, inputs: Any, temperature: float, generator: torch.Generator | None) -> None:
        self._sampled = temperature > 0
        self._generator = generator
        ids = inputs["input_ids"]
        # on the CPU in float64, so that a seed gives the same answer on every device
        ids = ids.cpu() if self._sampled else ids
        found = settings.processors(ids, inputs.get("attention_mask"))
        self._processors = LogitsProcessorList(
            Temperature(temperature) if isinstance(one, TemperatureLogitsWarper) else one for one in found
        )
        self._ids: torch.Tensor | None = ids if self._processors else None
        self._repairs = bool(settings.config.remove_invalid_values)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the processed scores ``[B, V]`` of the next token: their largest is chosen, or their softmax sampled."""
        if self._sampled:
            scores = logits.double().cpu()
        elif self._ids is not None:
            scores = logits.to(self._ids.device, torch.float32, copy=True)  # generate's dtype; processors may write to it
        else:
            return logits
        return scores if self._ids is None else self._processors(self._ids, scores)  # type: ignore[arg-type]

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose a token per row from ``logits [B, V]``; never waits for a GPU unless it samples.

        Returns:
            The tokens ``[B]`` to feed, always valid ids, and the same to tell: :data:`NOT_FINITE` where a row's logits hold a NaN or
            +inf, or are -inf throughout.
        """
        scores = self.scores(logits)
        best, tokens = scores.max(dim=-1)  # a NaN, where there is one
        told_of = best.abs()
        if self._processors and not self._repairs:
            told_of = told_of + logits.amax(dim=-1).to(told_of).abs()  # a processor may have covered it up
        if self._sampled:
            weights = scores.softmax(dim=-1).nan_to_num(nan=1.0)
            tokens = torch.multinomial(weights, 1, generator=self._generator).squeeze(-1)
        told = torch.where(told_of < torch.inf, tokens, NOT_FINITE)
        self.note(tokens)
        return tokens.to(logits.device), told

    def note(self, tokens: torch.Tensor) -> None:
        """Append the chosen tokens ``[B]`` to the sequences."""
        if self._ids is not None:
            self._ids = torch.cat([self._ids, tokens[:, None].to(self._ids)], dim=-1)
