"""VipLLaVA: LLaVA-1.5 with features of several layers of the vision tower."""

from __future__ import annotations

from typing import Any, ClassVar

from avl.models.families.llava import Llava


class VipLlava(Llava):
    """``VipLlavaForConditionalGeneration``."""

    model_type: ClassVar[str] = "vipllava"
    prefix: ClassVar[str] = "VipLlava"

    def class_tokens(self, config: Any) -> int:
        return 0  # it always drops the class token

    def random_config(self, parts: dict[str, Any], side: int) -> Any:
        import transformers

        shared = {key: value for key, value in parts.items() if not key.startswith("vision_feature")}
        return transformers.VipLlavaConfig(**{**shared, "vision_feature_layers": [-2, -1]})
