"""LLaVA-1.6: tiles and row ends."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import IMAGE, Tiny, tokenizer
from tiny_families.llava import PATCH, SIDE, TOWER, text

PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def config() -> Any:
    vision = transformers.CLIPVisionConfig(**TOWER)
    return transformers.LlavaNextConfig(
        vision_config=vision, text_config=text("Mistral"), image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS
    )


def processor() -> Any:
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )
    options = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return transformers.LlavaNextProcessor(images, tokenizer(), **options)


MODELS = {"llava_next": Tiny("llava_next", config, processor)}
