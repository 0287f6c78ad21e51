"""Idefics3: the text decoder is at model.text_model."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import IMAGE, Tiny, tokenizer
from tiny_families.llava import text

NAMES = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)))
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 40, "patch_size": 5,
}  # fmt: skip


def config(kind: str = "Idefics3Config") -> Any:
    return getattr(transformers, kind)(
        vision_config=VISION, text_config=text("Llama"), image_token_id=IMAGE, scale_factor=2, tie_word_embeddings=False
    )


def processor() -> Any:
    images = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 80}, max_image_size={"longest_edge": 40})
    return transformers.Idefics3Processor(images, tokenizer(NAMES), image_seq_len=16)


def available() -> bool:
    try:
        transformers.Idefics3ImageProcessorPil()
    except ImportError:  # before 5.18 or so its only image processor is torchvision's
        return False
    return True


MODELS = {"idefics3": Tiny("idefics3", config, processor, available=available())}
