"""Language models that take no pictures: policies act on their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from avl.models.families.base import Family
from avl.trace import Grid


class TextOnly(Family):
    """``{prefix}ForCausalLM``.

    Args:
        model_type: of its config in transformers.
        prefix: of its class names.
    """

    pictures: ClassVar[bool] = False

    def __init__(self, model_type: str, prefix: str) -> None:
        self.model_type, self.prefix, self.texts = model_type, prefix, (model_type,)  # type: ignore[misc]

    @property
    def model_class(self) -> str:
        return f"{self.prefix}ForCausalLM"

    def decoder(self, model: Any) -> Any:
        return model.model

    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        return ()
