"""VipLLaVA."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import IMAGE, Tiny
from tiny_families.llava import TOWER, processor, text


def config() -> Any:
    vision = transformers.CLIPVisionConfig(**TOWER)
    return transformers.VipLlavaConfig(
        vision_config=vision, text_config=text("Llama"), image_token_index=IMAGE, vision_feature_layers=[-2, -1]
    )


MODELS = {"vipllava": Tiny("vipllava", config, processor, fused=True)}
