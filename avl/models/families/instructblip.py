"""InstructBLIP with Vicuna: as BLIP-2, and its queries read the question too."""

from __future__ import annotations

from typing import Any, ClassVar

from avl.models.families.blip_2 import Blip2


class InstructBlip(Blip2):
    """``InstructBlipForConditionalGeneration``."""

    model_type: ClassVar[str] = "instructblip"
    prefix: ClassVar[str] = "InstructBlip"
    texts: ClassVar[tuple[str, ...]] = ("llama",)

    def decoder(self, model: Any) -> Any:
        return model.language_model.model

    def plain_prompt(self, config: Any, images: str, question: str) -> str:
        return question

    def plain_next(self, config: Any, question: str) -> None:
        return None

    def no_turns(self) -> str:
        return "its queries read the question, so that another one needs the picture again"
