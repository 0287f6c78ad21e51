"""Qwen2-VL."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import HEAD_DIM, WIDTH, Tiny, pictures_only, text_options, token_id, tokenizer

TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
IDS = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), map(token_id, range(4)), strict=True))
PLACEHOLDER = "<|vision_start|> <|image_pad|> <|vision_end|>"
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [HEAD_DIM // 2 - 4, 2, 2]}


def config() -> Any:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2, "patch_size": 5, "spatial_merge_size": 2}
    return transformers.Qwen2VLConfig(vision_config=vision, text_config=text_options(rope_parameters=ROPE), **IDS)


def processor(kind: str = "Qwen2VLProcessor") -> Any:
    images = transformers.Qwen2VLImageProcessorPil(patch_size=5, merge_size=2, min_pixels=200, max_pixels=4000)
    return pictures_only(getattr(transformers, kind), images, tokenizer(TOKENS))


MODELS = {"qwen2_vl": Tiny("qwen2_vl", config, processor, PLACEHOLDER)}
