"""PaliGemma."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import IMAGE, WIDTH, Tiny, text_options, tokenizer

SIDE, PATCH = 28, 7


def config(kind: str = "gemma") -> Any:
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False,
    }  # fmt: skip
    text = {"model_type": kind, **text_options(vocab_size=1400)}  # the processor adds over a thousand tokens for places
    return transformers.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, projection_dim=WIDTH, tie_word_embeddings=False
    )


class Unlabeled(transformers.PaliGemmaProcessor):
    """Without the training targets that the family's own adds."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        made.pop("labels", None)
        return made


def processor() -> Any:
    images = transformers.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = (SIDE // PATCH) ** 2
    return Unlabeled(images, tokenizer(image_token="<image>"))


MODELS = {"paligemma": Tiny("paligemma", config, processor, fused=False)}
