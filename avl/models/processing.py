"""The processor of a checkpoint: completed where it is old, and checked against the model."""

from __future__ import annotations

from typing import Any

from PIL import Image

from avl.models.families import FAMILIES
from avl.models.families.base import CLASS_TOKENS, end
from avl.models.source import Source

_PROBE = (64, 48)
"""Size of the blank picture that a processor has to turn into as many tokens as the model expects."""


def complete(processor: Any, config: Any) -> None:
    """Fill in settings that old checkpoints lack, without which image placeholders are not expanded to image tokens; pad on the left."""
    processor.tokenizer.padding_side = "left"
    if getattr(processor, "patch_size", None) is None:
        processor.patch_size = config.vision_config.patch_size
    if getattr(processor, "vision_feature_select_strategy", None) is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    tower = config.vision_config.model_type
    if tower in CLASS_TOKENS:  # a file without the number reads as 0
        processor.num_additional_image_tokens = CLASS_TOKENS[tower]


def check_processor(source: Source, processor: Any, config: Any) -> None:
    """Check that a processor belongs to the model.

    Raises:
        OSError: it has no tokenizer or no image processor, its ids are others than the model's, or it makes other inputs of a picture than
            the model takes.
    """
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise source.broken("has no processor for text and pictures, only one of the two")
    tokenizer, placeholder = processor.tokenizer, config.image_token_id
    token = getattr(processor, "image_token", "<image>")
    if tokenizer.convert_tokens_to_ids(token) != placeholder:
        found = tokenizer.convert_tokens_to_ids(token)
        raise source.broken(f"has a tokenizer whose {token} is token {found}, where config.json has {placeholder}")
    if len(tokenizer) > config.text_config.vocab_size:
        raise source.broken(f"has a tokenizer of {len(tokenizer)} tokens for a model of {config.text_config.vocab_size}")
    tiles = getattr(config, "image_grid_pinpoints", None)
    ours: Any = getattr(processor.image_processor, "image_grid_pinpoints", tiles)
    if tiles is not None and sorted(map(list, ours)) != sorted(map(list, tiles)):
        raise source.broken("has other image_grid_pinpoints in the settings of its image processor than in config.json")
    try:
        made = processor(images=[Image.new("RGB", _PROBE)], text=token, return_tensors="pt")
    except Exception as error:
        raise source.broken(f"has a processor that fails with a picture ({source.quoted(error)})") from error
    vision, shape = config.vision_config, made["pixel_values"].shape
    grids = FAMILIES[config.model_type].grids(config, processor, [_PROBE], made)
    if vision.model_type in CLASS_TOKENS and vision.model_type != "pixtral" and tuple(shape[-2:]) != (vision.image_size, vision.image_size):
        raise source.broken(
            f"has a processor that makes pictures of {shape[-1]} × {shape[-2]} pixels for a vision tower of {vision.image_size}"
        )
    tokens, expected = int((made["input_ids"] == placeholder).sum()), end(grids)
    if grids and tokens != expected:
        raise source.broken(f"has a processor that makes {tokens} image tokens of a picture of which the model makes {expected}")
