"""SmolVLM2: its processor asks for num2words, for videos only."""

from __future__ import annotations

from typing import Any

import transformers

from tiny_families.base import Tiny, pictures_only, tokenizer
from tiny_families.idefics3 import NAMES, available, config


def processor() -> Any:
    images = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 80}, max_image_size={"longest_edge": 40})
    return pictures_only(transformers.SmolVLMProcessor, images, tokenizer(NAMES), image_seq_len=16)


MODELS = {"smolvlm": Tiny("smolvlm", lambda: config("SmolVLMConfig"), processor, available=available())}
