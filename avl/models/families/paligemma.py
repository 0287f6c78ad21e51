"""PaliGemma: every token of the prompt sees every other, and positions start at 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from avl.models.families.base import Family
from avl.models.families.grids import square
from avl.trace import Grid


class PaliGemma(Family):
    """``PaliGemmaForConditionalGeneration``."""

    model_type: ClassVar[str] = "paligemma"
    prefix: ClassVar[str] = "PaliGemma"
    texts: ClassVar[tuple[str, ...]] = ("gemma",)
    two_way: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = True

    def positions(self, mask: torch.Tensor, pictures: bool) -> dict[str, torch.Tensor]:
        return {"position_ids": mask.cumsum(dim=-1).clamp(min=1)}

    def ahead(self, model: Any, pictures: bool) -> int:
        return 1

    def plain_prompt(self, config: Any, images: str, question: str) -> str:
        # its checkpoints have no template; the processor writes the BOS after the pictures and ends the line
        return images.replace("\n", "") + question

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        return square(config.text_config.num_image_tokens, sizes)
