"""LLaVA-OneVision: few pinpoints, and few enough tiles to shrink to."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import IMAGE, Tiny, pictures_only, tokenizer
from tiny_families.llava import text

PINPOINTS = [[20 * rows, 20 * cols] for rows in (1, 2, 3) for cols in (1, 2, 3)]


def config() -> Any:
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=20, patch_size=5, vision_use_head=False
    )
    return transformers.LlavaOnevisionConfig(
        vision_config=vision, text_config=text("Qwen2"), image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_4",
    )  # fmt: skip


def processor() -> Any:
    images = transformers.LlavaOnevisionImageProcessorPil(size={"height": 20, "width": 20}, image_grid_pinpoints=PINPOINTS)
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_4"}
    return pictures_only(transformers.LlavaOnevisionProcessor, images, tokenizer(("<video>",)), **options)


MODELS = {"llava_onevision": Tiny("llava_onevision", config, processor)}
