"""LLaVA-1.5, with each text decoder that it may have and with several vision towers."""

from __future__ import annotations

from functools import partial
from typing import Any

import transformers

from tiny_families.base import IMAGE, Tiny, text_options, tokenizer

SIDE, PATCH = 28, 7
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


def text(kind: str) -> Any:
    return getattr(transformers, f"{kind}Config")(**text_options(**({"sliding_window": None} if kind == "Mistral" else {})))


def config(kind: str = "Llama", tower: str = "CLIP") -> Any:
    vision = getattr(transformers, f"{tower}VisionConfig")(**TOWER)
    strategy = "default" if tower == "CLIP" else "full"
    return transformers.LlavaConfig(
        vision_config=vision, text_config=text(kind), image_token_index=IMAGE, vision_feature_select_strategy=strategy
    )


def processor(tower: str = "CLIP") -> Any:
    options = {"patch_size": PATCH, "vision_feature_select_strategy": "default" if tower == "CLIP" else "full"}
    if tower == "Siglip":
        images: Any = transformers.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
        return transformers.LlavaProcessor(images, tokenizer(), num_additional_image_tokens=0, **options)
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return transformers.LlavaProcessor(images, tokenizer(), num_additional_image_tokens=1, **options)


MODELS = {
    "llava-llama": Tiny("llava", config, processor),
    "llava-mistral": Tiny("llava", partial(config, "Mistral"), processor),
    "llava-qwen2": Tiny("llava", partial(config, "Qwen2"), processor),
    "llava-qwen3": Tiny("llava", partial(config, "Qwen3"), processor),
    "llava-siglip": Tiny("llava", partial(config, "Qwen2", "Siglip"), partial(processor, "Siglip")),
}
