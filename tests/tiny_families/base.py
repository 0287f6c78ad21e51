"""What the tiny models of all families share: sizes, a word-level tokenizer, random weights, requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from random_models import BOS, EOS, PAD, WORDS, picture
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from avl._compat import allow_missing
from avl.models import pictures_only as library

LAYERS, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 4, 4, 2, 16, 512
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>", "<image>")
IMAGE = SPECIAL.index("<image>")
WIDTH = HEADS * HEAD_DIM
"""Of the text decoder's hidden states."""

RAGGED = (((40, 30),), ((30, 70), (56, 56)), ((90, 40),))
"""Rows of a batch: sizes (width, height) of their pictures."""


@dataclass(frozen=True)
class Tiny:
    """A tiny model of a family, and the processor of the family's own class.

    Attributes:
        family: model type.
        config: makes the model's config.
        processor: makes the processor.
        placeholder: how a prompt asks for one picture.
        fused: whether decode steps are fused.
        places: whether image tokens have places in their picture.
        pictures: whether a prompt may hold several.
        available: whether this release of transformers has its processor without torchvision.
        blind: names (parts) of the vision tower's parameters that mix patches: zeroed, each feature sees its own patch only.
    """

    family: str
    config: Callable[[], Any]
    processor: Callable[[], Any]
    placeholder: str = "<image>"
    fused: bool = True
    places: bool = True
    pictures: bool = True
    available: bool = True
    blind: tuple[str, ...] = field(default=("attn.proj", "self_attn.out_proj", "attention.o_proj", "attention.output", "attn.o_proj"))

    def model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
        """Return the model in evaluation mode, weights wide enough for peaked attention, biases and norms not at their initial values."""
        torch.manual_seed(seed)  # some classes draw parameters when they are made
        config = self.config()
        model = getattr(transformers, type(config).__name__.replace("Config", "ForConditionalGeneration"))(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, 0.2, generator=generator)
                else:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for part in (model, getattr(model, "language_model", None)):
            if hasattr(part, "generation_config"):
                part.generation_config.eos_token_id = None
                part.generation_config.pad_token_id = PAD
        return model.requires_grad_(False).to(dtype).eval()


def text_options(**changes: Any) -> dict[str, Any]:
    """Return sizes of a Llama-like text config."""
    return {
        "vocab_size": len(vocabulary()),
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        **changes,
    }


EXTRA = tuple(f"<extra_{number}>" for number in range(16))
"""Ids that a family's own control tokens take (:func:`tokenizer` renames them)."""


def vocabulary(names: Sequence[str] = ()) -> dict[str, int]:
    """Return word -> id; ``names`` take the place of the first control tokens after the common ones."""
    extra = (*names, *EXTRA[len(names) :])
    return {word: index for index, word in enumerate((*SPECIAL, *extra, *WORDS))}


def token_id(position: int) -> int:
    """Return the id of the ``position``-th of a family's own control tokens."""
    return len(SPECIAL) + position


def tokenizer(names: Sequence[str] = (), **attributes: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits at spaces and knows control tokens wherever they stand; left padding, a BOS first.

    Args:
        names: the family's own control tokens.
        attributes: names of tokens that the family's processor reads as attributes (``boi_token="<boi>"``).
    """
    words = Tokenizer(models.WordLevel(vocabulary(names), unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>", *names],
        padding_side="left",
        **({"extra_special_tokens": attributes} if attributes else {}),
    )


def pictures_only(kind: type, *parts: Any, **options: Any) -> Any:
    """Return a processor of class ``kind`` without its part for videos, which needs torchvision."""

    with allow_missing(kind, ("num2words",)):
        return library.pictures_only(kind)(*parts, video_processor=None, **options)


def encode(tiny: Tiny, processor: Any, rows: Sequence[Sequence[tuple[int, int]]] = RAGGED[:1], seed: int = 0, **options: Any) -> Any:
    """Return the processor's tensors for rows with pictures of these sizes between words, left-padded; all different."""
    images, texts = [], []
    for number, sizes in enumerate(rows):
        images.append([picture(seed + 10 * number + place, *size) for place, size in enumerate(sizes)])
        before, after = 2 + 3 * number, 9 - 2 * number
        words = np.random.default_rng(seed + number).choice(WORDS, before + after)
        texts.append(" ".join([*words[:before], *[tiny.placeholder] * len(sizes), *words[before:]]))
    return processor(images=images, text=texts, return_tensors="pt", padding=True, **options)


def painted(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Return a picture with the inside of ``box`` (left, top, right, bottom) inverted."""
    pixels = np.array(image)
    left, top, right, bottom = (round(edge) for edge in box)
    pixels[top:bottom, left:right] ^= 255
    return Image.fromarray(pixels)
