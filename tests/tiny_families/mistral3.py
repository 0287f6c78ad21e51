"""Mistral Small 3, with the project's processor of Pixtral's kind: transformers' own needs torchvision."""

from __future__ import annotations

from typing import Any

import transformers

from avl.models.pixtral_processor import PixtralProcessor
from tiny_families.base import Tiny, token_id, tokenizer
from tiny_families.llava import text

NAMES = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def tower(patch: int) -> Any:
    return transformers.PixtralVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=80, patch_size=patch, head_dim=16
    )


def config() -> Any:
    return transformers.Mistral3Config(
        vision_config=tower(5), text_config=text("Mistral"), image_token_index=token_id(0), spatial_merge_size=2, vision_feature_layer=-1
    )


def processor(patch: int = 5, merge: int = 2) -> Any:
    side = patch * merge
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": 80}, patch_size={"height": side, "width": side})
    return PixtralProcessor(images, tokenizer(NAMES), patch_size=patch, spatial_merge_size=merge)


def pixtral_config() -> Any:
    return transformers.LlavaConfig(
        vision_config=tower(10), text_config=text("Mistral"), image_token_index=token_id(0), vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip


MODELS = {
    "mistral3": Tiny("mistral3", config, processor, "[IMG]"),
    "pixtral": Tiny("llava", pixtral_config, lambda: processor(10, 1), "[IMG]"),
}
