"""Short names of checkpoints: those of the A-VL paper, and current ones of every other family.

Each id is one that transformers documents for the family's classes, or its makers' documentation names.
"""

from __future__ import annotations

import difflib

CHECKPOINTS: dict[str, str] = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "llava-1.6-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-1.6-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-onevision-0.5b": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "llava-onevision-7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "vip-llava-7b": "llava-hf/vip-llava-7b-hf",
    "qwen2-vl-7b": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen3-vl-30b-a3b": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "internvl3-1b": "OpenGVLab/InternVL3-1B-hf",
    "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
    "smolvlm2-2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "idefics3-8b": "HuggingFaceM4/Idefics3-8B-Llama3",
    "mistral-small-3.1-24b": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    "pixtral-12b": "mistral-community/pixtral-12b",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "gemma-3-12b": "google/gemma-3-12b-it",
    "glm-4.1v-9b": "zai-org/GLM-4.1V-9B-Thinking",
    "paligemma-3b": "google/paligemma-3b-mix-448",
    "aya-vision-8b": "CohereForAI/aya-vision-8b",
    "blip2-opt-2.7b": "Salesforce/blip2-opt-2.7b",
    "instructblip-vicuna-7b": "Salesforce/instructblip-vicuna-7b",
}
"""Short name -> Hub id; ``tiny``, the bundled model, comes on top."""

RANDOM_WEIGHTS = (
    *("llava-1.5-7b", "llava-1.5-13b", "llava-1.6-7b", "llava-1.6-13b", "llava-1.6-mistral-7b"),
    *("qwen2.5-vl-7b", "qwen3-vl-8b", "internvl3-8b", "gemma-3-12b"),
)
"""Those of which avl/models/random_weights.py makes a model of full size."""


def close_to(name: str) -> str:
    """Return the short names that are closest to a name, the bundled model's among them, as a list in words."""
    return ", ".join(["tiny", *difflib.get_close_matches(name.rpartition("/")[2].lower(), CHECKPOINTS, n=4, cutoff=0.3)])
