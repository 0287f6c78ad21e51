"""Qwen3-VL: as Qwen2-VL, and features of the vision tower are added to its tokens after the first layers too (deepstack)."""

from __future__ import annotations

from typing import Any, ClassVar

from avl.models.families.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """``Qwen3VLForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen3_vl"
    prefix: ClassVar[str] = "Qwen3VL"
    texts: ClassVar[tuple[str, ...]] = ("qwen3_vl_text",)

    def misfit(self, config: Any) -> str | None:
        added, layers = len(config.vision_config.deepstack_visual_indexes), config.text_config.num_hidden_layers
        if added < layers:
            return None
        return f"{self.model_class} would add features of the picture after its last layer ({added} times, {layers} layers)"


class Qwen3VLMoe(Qwen3VL):
    """``Qwen3VLMoeForConditionalGeneration``."""

    model_type: ClassVar[str] = "qwen3_vl_moe"
    prefix: ClassVar[str] = "Qwen3VLMoe"
    texts: ClassVar[tuple[str, ...]] = ("qwen3_vl_moe_text",)
