"""Sizes of the bundled model: a small LLaVA-1.5."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from avl.tiny.data.scenes import CANVAS, GRID, PATCH

VISION_WIDTH, VISION_LAYERS, VISION_HEADS = 192, 6, 3
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 192, 8, 6
FEATURE_LAYER = -1  # the tower is trained for its last layer; LLaVA takes -2 of CLIP's
IMAGE_TOKENS = GRID * GRID


def build(vocab_size: int, image_token: int, bos: int, eos: int, pad: int, seed: int = 0) -> LlavaForConditionalGeneration:
    """Return an untrained float32 model with sine position embeddings in the vision tower.

    Args:
        vocab_size: rows of the token embedding.
        image_token: token id of an image feature.
        bos: token id of the beginning.
        eos: token id of the end.
        pad: token id of padding.
        seed: of the initial weights.
    """
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=VISION_WIDTH,
            intermediate_size=3 * VISION_WIDTH,
            num_hidden_layers=VISION_LAYERS,
            num_attention_heads=VISION_HEADS,
            image_size=CANVAS,
            patch_size=PATCH,
            projection_dim=VISION_WIDTH,
        ),
        text_config=LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=512,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=TEXT_HEADS,
            num_key_value_heads=TEXT_HEADS,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
            tie_word_embeddings=False,
        ),
        image_token_index=image_token,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        tower(model).embeddings.position_embedding.weight[1:] = sine_positions()
    return model


def tower(model: Any) -> Any:
    """Return the transformer inside the vision tower, however this transformers version nests it."""
    outer = model.model.vision_tower
    return getattr(outer, "vision_model", outer)


def wave_numbers() -> torch.Tensor:
    """Return the frequencies of the position embedding, in radians per patch."""
    return torch.exp(torch.linspace(math.log(math.pi / 2), math.log(math.pi / 64), VISION_WIDTH // 4))


def sine_positions() -> torch.Tensor:
    """Return [576, width] sines and cosines of the patches' rows and columns, so that neighbors are easy to attend to from the start."""
    angles = torch.arange(GRID)[:, None] * wave_numbers()
    axis = torch.cat([angles.sin(), angles.cos()], -1)  # [24, width / 2]
    row = axis[:, None].expand(GRID, GRID, -1)
    column = axis[None].expand(GRID, GRID, -1)
    return 0.5 * torch.cat([row, column], -1).reshape(GRID * GRID, -1)
