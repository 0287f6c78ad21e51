"""BLIP-2 with OPT: learned queries in place of patches, so that no image token has a place in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from avl.models.families.base import Family
from avl.trace import Grid


class Blip2(Family):
    """``Blip2ForConditionalGeneration``."""

    model_type: ClassVar[str] = "blip-2"
    prefix: ClassVar[str] = "Blip2"
    texts: ClassVar[tuple[str, ...]] = ("opt",)
    placeholders: ClassVar[bool] = False

    def decoder(self, model: Any) -> Any:
        return model.language_model.model.decoder

    def causal(self, model: Any) -> Any:
        return model.language_model

    def plain_prompt(self, config: Any, images: str, question: str) -> str:
        return f"Question: {question} Answer:"  # the form that its model card gives

    def plain_next(self, config: Any, question: str) -> str | None:
        return f" Question: {question} Answer:"

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        return ()
