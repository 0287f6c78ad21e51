"""GLM-4V."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import HEAD_DIM, WIDTH, Tiny, pictures_only, text_options, token_id, tokenizer

TOKENS = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
NAMES = ("image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id")
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [HEAD_DIM // 4 - 2, 1, 1]}


def config() -> Any:
    vision = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "image_size": 30,
        "patch_size": 5, "spatial_merge_size": 2,
    }  # fmt: skip
    ids = dict(zip(NAMES, map(token_id, range(6)), strict=True))
    return transformers.Glm4vConfig(vision_config=vision, text_config=text_options(rope_parameters=ROPE), **ids)


def processor() -> Any:
    images = transformers.Glm4vImageProcessorPil(patch_size=5, merge_size=2, size={"shortest_edge": 400, "longest_edge": 8000})
    return pictures_only(transformers.Glm4vProcessor, images, tokenizer(TOKENS))


MODELS = {"glm4v": Tiny("glm4v", config, processor, "<|begin_of_image|> <|image|> <|end_of_image|>", fused=False)}
