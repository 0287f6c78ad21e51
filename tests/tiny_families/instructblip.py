"""InstructBLIP with Vicuna."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import IMAGE, Tiny, text_options, tokenizer
from tiny_families.blip_2 import QFORMER, QUERIES, SIDE, VISION, padded_whole


def config() -> Any:
    text = text_options(model_type="llama")
    return transformers.InstructBlipConfig(
        vision_config=VISION, qformer_config=QFORMER, text_config=text, num_query_tokens=QUERIES, image_token_index=IMAGE
    )


def processor() -> Any:
    images = transformers.BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return padded_whole(transformers.InstructBlipProcessor, images, tokenizer(), tokenizer())


MODELS = {"instructblip": Tiny("instructblip", config, processor, "", places=False, pictures=False)}
