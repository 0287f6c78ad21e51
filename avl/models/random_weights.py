"""Full-size models with random weights and matching inputs, for benchmarks without downloads.

Sizes come from the public ``config.json`` of the checkpoints in ``CHECKPOINTS``. A step's time depends on sizes, not on the values of the
weights, as long as they are not zeros. A random model emits no meaningful end of sequence, so runs have a fixed length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from avl._compat import from_config
from avl.models.families import FAMILIES, TEXT_FAMILIES, family_of

SYSTEM_TOKENS, QUESTION_TOKENS = 35, 30
"""Text tokens of the benchmark's prompt: a system prompt as long as Vicuna's, and a short question."""

_IMAGE_TOKEN_FROM_END = 64  # 32000 of 32064 in every checkpoint


@dataclass(frozen=True)
class Architecture:
    """Sizes that differ between the checkpoints; all have a head size of 128 and a vocabulary of 32064.

    ``family`` and ``text`` are the model types of the whole model and of its text decoder.
    """

    family: str
    text: str
    layers: int
    hidden: int
    ffn: int
    kv_heads: int
    context: int
    rope_theta: float

    @property
    def heads(self) -> int:
        return self.hidden // 128


ARCHITECTURES: dict[str, Architecture] = {
    "llava-1.5-7b": Architecture("llava", "llama", 32, 4096, 11008, 32, 4096, 1e4),
    "llava-1.5-13b": Architecture("llava", "llama", 40, 5120, 13824, 40, 4096, 1e4),
    "llava-1.6-7b": Architecture("llava_next", "llama", 32, 4096, 11008, 32, 4096, 1e4),
    "llava-1.6-13b": Architecture("llava_next", "llama", 40, 5120, 13824, 40, 4096, 1e4),
    "llava-1.6-mistral-7b": Architecture("llava_next", "mistral", 32, 4096, 14336, 8, 32768, 1e6),
}


def config(name: str, scale: float = 1.0) -> Any:
    """Return the transformers config of checkpoint ``name``; ``scale`` below 1 shrinks all sizes proportionally, for tests.

    Raises:
        ValueError: the name is unknown, or the scale is not above 0 and at most 1.
    """
    import transformers

    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {name!r} for random weights: use one of {', '.join(ARCHITECTURES)}")
    if not 0 < scale <= 1:
        raise ValueError(f"scale={scale!r} is out of range: above 0 and at most 1")
    facts = ARCHITECTURES[name]

    def scaled(size: int, least: int, multiple: int = 1) -> int:
        return max(least, round(size * scale / multiple) * multiple)

    group = facts.heads // facts.kv_heads
    heads = scaled(facts.heads, group, group)
    head_dim = scaled(128, 16, 8)
    vocab = scaled(32064, 2 * _IMAGE_TOKEN_FROM_END)
    vision_heads = scaled(16, 2)
    side = scaled(24, 4) * 14
    vision = transformers.CLIPVisionConfig(
        hidden_size=vision_heads * scaled(64, 16, 8),
        intermediate_size=scaled(4096, 32),
        projection_dim=768,
        num_hidden_layers=scaled(24, 3),  # features come from the second to last layer; all of them run
        num_attention_heads=vision_heads,
        image_size=side,
        patch_size=14,
    )
    text_family = TEXT_FAMILIES[facts.text]
    text_class = getattr(transformers, f"{text_family.prefix}Config")
    text = text_class(
        vocab_size=vocab,
        hidden_size=heads * head_dim,
        intermediate_size=scaled(facts.ffn, 32),
        num_hidden_layers=scaled(facts.layers, 2),
        num_attention_heads=heads,
        num_key_value_heads=heads // group,
        head_dim=head_dim,
        max_position_embeddings=facts.context,
        rope_parameters={"rope_type": "default", "rope_theta": facts.rope_theta},
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        **text_family.random_options,
    )
    parts = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": vocab - _IMAGE_TOKEN_FROM_END,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }
    return FAMILIES[facts.family].random_config(parts, side)


def build(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Any:
    """Return a model of that architecture in evaluation mode, with small normally distributed weights drawn on ``device`` itself.

    Raises:
        ValueError: see :func:`config`.
    """
    import transformers

    sizes = config(name, scale)
    model_class = getattr(transformers, FAMILIES[ARCHITECTURES[name].family].model_class)
    torch.manual_seed(seed)
    # transformers' own initialization, run on the device: it also fills buffers such as RoPE frequencies
    with torch.device(device):
        model = from_config(model_class, sizes, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms of 1 and biases of 0 would be simpler than a real model's
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False).eval()


def inputs(model: Any, batch: int = 1, picture: tuple[int, int] | None = None, n_text: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Return prompts with one image each, on the model's device: random pixels, random words, every row different.

    Args:
        model: whose inputs to make.
        batch: number of rows.
        picture: (width, height) of the images, which determines the number of image tokens in LLaVA-1.6. None for the size with the most: a
            square of 2 x 2 tiles (2928: 576 of the whole image, 2304 of the tiles and 48 row ends).
        n_text: text tokens of the prompt; the first :data:`SYSTEM_TOKENS` (or fewer) precede the image.
        seed: of the random values.

    Raises:
        ValueError: fewer than two text tokens, or an image without area.
    """
    n_text = SYSTEM_TOKENS + QUESTION_TOKENS if n_text is None else n_text
    if n_text < 2:
        raise ValueError(f"n_text={n_text!r} is out of range: one token stands before the image and one after it, so at least 2")
    sizes = model.config
    side = sizes.vision_config.image_size
    width, height = picture or (2 * side, 2 * side)
    if width < 1 or height < 1:
        raise ValueError(f"picture={picture!r} is out of range: width and height are at least 1")
    make = torch.Generator().manual_seed(seed)
    words = torch.randint(1, sizes.image_token_id, (batch, n_text), generator=make)
    before = min(SYSTEM_TOKENS, n_text - 1)
    family = family_of(sizes)
    image = torch.full((batch, family.image_tokens(sizes, (width, height))), sizes.image_token_id)
    ids = torch.cat([words[:, :before], image, words[:, before:]], dim=1).to(model.device)
    pixels = family.random_pixels(sizes, batch, (width, height), torch.Generator(model.device).manual_seed(seed))
    pixels["pixel_values"] = pixels["pixel_values"].to(model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
