"""Gemma 3: five of six layers slide; here every second one, with a window wider than the tests' prompts."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import Tiny, text_options, token_id, tokenizer

TOKENS = ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
KINDS = ["sliding_attention", "full_attention"] * 2


def config(window: int = 200) -> Any:
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=40, patch_size=5
    )
    text = text_options(sliding_window=window, layer_types=KINDS, query_pre_attn_scalar=16)
    ids = {"image_token_id": token_id(0), "boi_token_index": token_id(1), "eoi_token_index": token_id(2)}
    return transformers.Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=16, **ids)


def processor() -> Any:
    words = tokenizer(TOKENS, image_token=TOKENS[0], boi_token=TOKENS[1], eoi_token=TOKENS[2])
    images = transformers.Gemma3ImageProcessorPil(size={"height": 40, "width": 40}, do_pan_and_scan=False)
    return transformers.Gemma3Processor(images, words, image_seq_length=16)


MODELS = {"gemma3": Tiny("gemma3", config, processor, TOKENS[1], fused=False)}
