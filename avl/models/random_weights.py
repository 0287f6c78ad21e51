"""Full-size models with random weights and matching inputs, for benchmarks without downloads.

A step's time depends on sizes, not on the values of the weights, as long as they are not zeros. A random model emits no meaningful end of
sequence, so runs have a fixed length.
"""

from __future__ import annotations

from typing import Any

import torch

from avl._compat import from_config
from avl.models.families import FAMILIES, family_of, image_token_id, text_config
from avl.models.random_configs import Architecture, Scale, Single, gemma_3_12b, internvl3_8b, qwen2_5_vl_7b, qwen3_vl_8b

SYSTEM_TOKENS, QUESTION_TOKENS = 35, 30
"""Text tokens of the benchmark's prompt: a system prompt as long as Vicuna's, and a short question."""

ARCHITECTURES: dict[str, Architecture | Single] = {
    "llava-1.5-7b": Architecture("llava", "llama", 32, 4096, 11008, 32, 4096, 1e4),
    "llava-1.5-13b": Architecture("llava", "llama", 40, 5120, 13824, 40, 4096, 1e4),
    "llava-1.6-7b": Architecture("llava_next", "llama", 32, 4096, 11008, 32, 4096, 1e4),
    "llava-1.6-13b": Architecture("llava_next", "llama", 40, 5120, 13824, 40, 4096, 1e4),
    "llava-1.6-mistral-7b": Architecture("llava_next", "mistral", 32, 4096, 14336, 8, 32768, 1e6),
    "qwen2.5-vl-7b": Single("qwen2_5_vl", qwen2_5_vl_7b),
    "qwen3-vl-8b": Single("qwen3_vl", qwen3_vl_8b),
    "internvl3-8b": Single("internvl", internvl3_8b),
    "gemma-3-12b": Single("gemma3", gemma_3_12b),
}


def config(name: str, scale: float = 1.0) -> Any:
    """Return the transformers config of checkpoint ``name``; ``scale`` below 1 shrinks all sizes proportionally, for tests.

    Raises:
        ValueError: the name is unknown, or the scale is not above 0 and at most 1.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {name!r} for random weights: use one of {', '.join(ARCHITECTURES)}")
    if not 0 < scale <= 1:
        raise ValueError(f"scale={scale!r} is out of range: above 0 and at most 1")
    return ARCHITECTURES[name].config(Scale(scale))


def build(
    name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0,
    layers: int | None = None,
) -> Any:  # fmt: skip
    """Return a model of that architecture in evaluation mode, with small normally distributed weights drawn on ``device`` itself.

    Args:
        name: of the architecture.
        device: where.
        dtype: of the weights.
        scale: see :func:`config`.
        seed: of the weights.
        layers: how many of its text decoder's layers there are, the vision tower's two; None for all of both.

    Raises:
        ValueError: see :func:`config`; or ``layers`` is out of range.
    """
    import transformers

    sizes = config(name, scale)
    if layers is not None:
        text = text_config(sizes)
        if not 1 <= layers <= text.num_hidden_layers:
            raise ValueError(f"layers={layers!r} is out of range: {name} has 1 to {text.num_hidden_layers}")
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        if hasattr(sizes.vision_config, "num_hidden_layers"):
            sizes.vision_config.num_hidden_layers = 2
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
        picture: (width, height) of the images, which determines the number of image tokens in most families. None for the family's own
            choice: in LLaVA-1.6 the size with the most, a square of 2 x 2 tiles (2928: 576 of the whole image, 2304 of the tiles and 48 row
            ends); in Qwen-VL and InternVL 1024 x 768 (999 in Qwen2.5-VL, 768 in
            Qwen3-VL, 3328 in InternVL3); in Gemma 3 it is always 256.
        n_text: text tokens of the prompt; the first :data:`SYSTEM_TOKENS` (or fewer) precede the image.
        seed: of the random values.

    Raises:
        ValueError: fewer than two text tokens, or an image without area.
    """
    n_text = SYSTEM_TOKENS + QUESTION_TOKENS if n_text is None else n_text
    if n_text < 2:
        raise ValueError(f"n_text={n_text!r} is out of range: one token stands before the image and one after it, so at least 2")
    sizes = model.config
    family, token = family_of(sizes), image_token_id(sizes)
    width, height = picture or family.random_picture(sizes)
    if width < 1 or height < 1:
        raise ValueError(f"picture={picture!r} is out of range: width and height are at least 1")
    make = torch.Generator().manual_seed(seed)
    words = torch.randint(1, min(token, getattr(sizes, "vision_start_token_id", token)), (batch, n_text), generator=make)
    before = min(SYSTEM_TOKENS, n_text - 1)
    image = torch.full((batch, family.image_tokens(sizes, (width, height))), token)
    ids = torch.cat([words[:, :before], image, words[:, before:]], dim=1).to(model.device)
    pixels = family.random_pixels(sizes, batch, (width, height), torch.Generator(model.device).manual_seed(seed))
    pixels["pixel_values"] = pixels["pixel_values"].to(model.dtype)
    if family.token_types is not None:
        pixels[family.token_types] = (ids == token).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
