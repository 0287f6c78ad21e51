"""Qwen3-VL, dense and with experts."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import HEAD_DIM, WIDTH, Tiny, text_options
from tiny_families.qwen2_vl import IDS, PLACEHOLDER, processor

ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [HEAD_DIM // 2 - 4, 2, 2], "mrope_interleaved": True}


def config(kind: str = "Qwen3VLConfig", **more: Any) -> Any:
    vision = {
        "depth": 4, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": WIDTH, "num_heads": 2, "patch_size": 5,
        "spatial_merge_size": 2, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1, 2],
    }  # fmt: skip
    return getattr(transformers, kind)(vision_config=vision, text_config=text_options(rope_parameters=ROPE, **more), **IDS)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
MODELS = {
    "qwen3_vl": Tiny("qwen3_vl", config, lambda: processor("Qwen3VLProcessor"), PLACEHOLDER),
    "qwen3_vl_moe": Tiny(
        "qwen3_vl_moe", lambda: config("Qwen3VLMoeConfig", **EXPERTS), lambda: processor("Qwen3VLProcessor"), PLACEHOLDER, fused=False
    ),
}
