"""Tiny LLaVA models with random weights and processors to match: every architecture the library supports, nothing to download.

The weights are wide (standard deviation 0.2) so that attention is peaked and the best token clearly wins: a ranking or an argmax
that changes in a test changed because of the code, not of the last bit. Special tokens have a zero row in the output head, so greedy
decoding never picks one of them; a test that needs an end of sequence names an ordinary word as such.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)

ARCHITECTURES = ("llava-llama", "next-llama", "next-mistral")
"""Readable ids: LLaVA-1.5 with Llama; LLaVA-1.6 with Llama (Vicuna); LLaVA-1.6 with Mistral (grouped-query attention)."""

LAYERS, HEADS, HEAD_DIM = 4, 4, 16
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<image>")
UNK, PAD, BOS, EOS, IMAGE = range(5)
WORDS = ("USER:", "ASSISTANT:", "what", "is", "on", "the", "sign", "red", "blue", "left", "?", *(f"w{i}" for i in range(104)))
VOCAB = len(SPECIAL) + len(WORDS)
SIDE, PATCH = 28, 7
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
CONTEXT = 512

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image> ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def kv_heads(name: str) -> int:
    return 2 if name.endswith("mistral") else HEADS


def text_config(name: str, **changes: Any) -> LlamaConfig | MistralConfig:
    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads(name),
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **changes,
    }
    return MistralConfig(**common, sliding_window=None) if name.endswith("mistral") else LlamaConfig(**common)


def build_model(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, side: int = SIDE, patch: int = PATCH, **text_changes: Any
) -> torch.nn.Module:
    """A fresh random model in evaluation mode. Greedy decoding runs to ``max_new_tokens``: no end-of-sequence token is set."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
    )
    config_class, model_class, extra = LlavaConfig, LlavaForConditionalGeneration, {}
    if name.startswith("next"):
        config_class, model_class, extra = LlavaNextConfig, LlavaNextForConditionalGeneration, {"image_grid_pinpoints": PINPOINTS}
    config = config_class(
        vision_config=vision,
        text_config=text_config(name, **text_changes),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **extra,
    )
    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim >= 2 or parameter_name.endswith(("class_embedding", "image_newline")):
                parameter.normal_(0.0, 0.2, generator=generator)
        model.lm_head.weight[: len(SPECIAL)] = 0.0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.requires_grad_(False).to(dtype).eval()


def build_processor(name: str, side: int = SIDE, patch: int = PATCH) -> LlavaProcessor | LlavaNextProcessor:
    """The processor of :func:`build_model`: a word-level tokenizer (left padding, a BOS first) and the PIL image processors."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    size = {"shortest_edge": side}
    crop = {"height": side, "width": side}
    common = {
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": CHAT_TEMPLATE,
    }
    if name.startswith("next"):
        images = LlavaNextImageProcessorPil(size=size, crop_size=crop, image_grid_pinpoints=PINPOINTS)
        return LlavaNextProcessor(images, tokenizer, **common)
    return LlavaProcessor(CLIPImageProcessorPil(size=size, crop_size=crop), tokenizer, **common)


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Noise over a few colored blocks: every patch differs."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (3, 4, 3)).repeat((height + 2) // 3, axis=0).repeat((width + 3) // 4, axis=1)[:height, :width]
    return Image.fromarray((0.6 * blocks + 0.4 * random.integers(0, 256, (height, width, 3))).astype(np.uint8))


def sentence(seed: int, words: int) -> str:
    return " ".join(WORDS[i] for i in np.random.default_rng(seed).integers(2, len(WORDS), words))


@dataclass(frozen=True)
class Request:
    """One row of a batch: its pictures and its text, the pictures between two parts of the text."""

    images: tuple[Image.Image, ...]
    text: str


def request(seed: int, sizes: tuple[tuple[int, int], ...] = ((40, 30),), before: int = 3, after: int = 6) -> Request:
    images = tuple(picture(100 * seed + i, *size) for i, size in enumerate(sizes))
    text = " ".join([sentence(seed, before), *["<image>"] * len(images), sentence(seed + 50, after)])
    return Request(images, text)


RAGGED = (
    request(1, sizes=((40, 30),), before=3, after=5),
    request(2, sizes=((30, 44), (28, 28)), before=1, after=9),
    request(3, sizes=((60, 20),), before=9, after=14),
)
"""Rows that differ in the length of the text, the number of pictures and, in LLaVA-1.6, the number of tokens per picture."""


def encode(processor: Any, rows: tuple[Request, ...] | list[Request]) -> Any:
    """The processor's BatchFeature for ``rows``, left-padded."""
    images = [image for row in rows for image in row.images]
    return processor(images=images, text=[row.text for row in rows], return_tensors="pt", padding=True)


@functools.cache
def shared_model(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """One model per architecture for the whole session; tests leave it as they found it."""
    return build_model(name, dtype=dtype)


@functools.cache
def shared_processor(name: str) -> Any:
    return build_processor(name)
