"""InternVL3, with each text decoder that its checkpoints have."""

from __future__ import annotations

from functools import partial
from typing import Any

import transformers

from tiny_families.base import Tiny, pictures_only, token_id, tokenizer
from tiny_families.llava import text

NAMES = ("<IMG_CONTEXT>", "<img>", "</img>", "<video>")


def config(kind: str = "Qwen2") -> Any:
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [40, 40], "patch_size": [5, 5],
    }  # fmt: skip
    return transformers.InternVLConfig(
        vision_config=vision, text_config=text(kind), image_token_id=token_id(0), image_seq_length=16, tie_word_embeddings=False
    )


def processor() -> Any:
    images = transformers.GotOcr2ImageProcessorPil(size={"height": 40, "width": 40}, max_patches=4, crop_to_patches=True)
    words = tokenizer(NAMES, context_image_token=NAMES[0], start_image_token=NAMES[1], end_image_token=NAMES[2], video_token=NAMES[3])
    return pictures_only(transformers.InternVLProcessor, images, words, image_seq_length=16)


MODELS = {
    "internvl-qwen2": Tiny("internvl", config, processor, NAMES[0]),
    "internvl-qwen3": Tiny("internvl", partial(config, "Qwen3"), processor, NAMES[0]),
    "internvl-llama": Tiny("internvl", partial(config, "Llama"), processor, NAMES[0]),
}
