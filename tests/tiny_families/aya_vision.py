"""Aya Vision: sliding layers with a window wider than the tests' prompts."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import Tiny, text_options, token_id, tokenizer

NAMES = ("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "TILE_1", "TILE_2", "TILE_3", "TILE_4")


def config() -> Any:
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=40, patch_size=5
    )
    kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    text = transformers.Cohere2Config(**text_options(sliding_window=300, layer_types=kinds))
    return transformers.AyaVisionConfig(vision_config=vision, text_config=text, image_token_index=token_id(0), downsample_factor=2)


def processor() -> Any:
    images = transformers.GotOcr2ImageProcessorPil(size={"height": 40, "width": 40}, max_patches=4, crop_to_patches=True)
    return transformers.AyaVisionProcessor(images, tokenizer(NAMES), patch_size=5, img_size=40, downsample_factor=2)


MODELS = {"aya_vision": Tiny("aya_vision", config, processor, fused=False)}
