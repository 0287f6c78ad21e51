"""Qwen2.5-VL."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import WIDTH, Tiny, text_options
from tiny_families.qwen2_vl import IDS, PLACEHOLDER, ROPE, processor


def config() -> Any:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": WIDTH, "num_heads": 2, "patch_size": 5,
        "spatial_merge_size": 2, "window_size": 20, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text_options(rope_parameters=ROPE), **IDS)


MODELS = {"qwen2_5_vl": Tiny("qwen2_5_vl", config, lambda: processor("Qwen2_5_VLProcessor"), PLACEHOLDER)}
