"""The processor of a checkpoint: completed where it is old, and checked against the model."""

from __future__ import annotations

import inspect
from typing import Any

from PIL import Image

from avl.models.families import FAMILIES, image_token_id
from avl.models.families.base import CLASS_TOKENS, end
from avl.models.source import Source

_PROBE = (64, 48)
"""Size of the blank picture that a processor has to turn into as many tokens as the model expects."""

_NEEDED = ("pixel_values", "image_grid_thw")
"""Inputs without which a model that takes them cannot read a picture."""


def complete(processor: Any, config: Any) -> None:
    """Fill in what old files of LLaVA-like processors lack, without which no placeholder becomes image tokens; pad on the left."""
    if not hasattr(processor, "tokenizer"):
        return  # check_processor says so
    processor.tokenizer.padding_side = "left"
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    for name, value in (("patch_size", lambda: config.vision_config.patch_size), ("vision_feature_select_strategy", lambda: strategy)):
        if getattr(processor, name, ...) is None:
            setattr(processor, name, value())
    tower = config.vision_config.model_type
    if hasattr(processor, "num_additional_image_tokens") and tower in CLASS_TOKENS:  # a file without the number reads as 0
        processor.num_additional_image_tokens = CLASS_TOKENS[tower]


def check_processor(source: Source, processor: Any, config: Any) -> None:
    """Check that a processor belongs to the model.

    Raises:
        OSError: it has no tokenizer or no image processor, its ids are others than the model's, or it makes other inputs of a picture than
            the model takes.
    """
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise source.broken("has no processor for text and pictures, only one of the two")
    tokenizer, vocabulary = processor.tokenizer, config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise source.broken(f"has a tokenizer of {len(tokenizer)} tokens for a model of {vocabulary}")
    second = getattr(processor, "qformer_tokenizer", None)  # where its folder is missing, transformers takes the first one again
    if second is not None and len(second) > config.qformer_config.vocab_size:
        raise source.broken(f"has a qformer_tokenizer of {len(second)} tokens for a Q-Former of {config.qformer_config.vocab_size}")
    tiles = getattr(config, "image_grid_pinpoints", None)
    ours: Any = getattr(processor.image_processor, "image_grid_pinpoints", tiles)
    if tiles is not None and sorted(map(list, ours)) != sorted(map(list, tiles)):
        raise source.broken("has other image_grid_pinpoints in the settings of its image processor than in config.json")
    text = str(getattr(processor, "image_token", "<image>")) if FAMILIES[config.model_type].placeholders else "a"
    try:
        made = dict(processor(images=[Image.new("RGB", _PROBE)], text=text, return_tensors="pt"))
        wrong = _misfit(processor, config, made)
    except Exception as error:
        raise source.broken(f"has a processor that fails with a picture ({source.quoted(error)})") from error
    if wrong is not None:
        raise source.broken(wrong)


def _misfit(processor: Any, config: Any, made: dict[str, Any]) -> str | None:
    """Return what is wrong with what a processor made of one blank picture, None where the model takes it."""
    import transformers

    family, placeholder = FAMILIES[config.model_type], image_token_id(config)
    ids = made["input_ids"]
    tokens = int((ids == placeholder).sum())
    if not tokens:
        most = int(ids.mode().values)  # nearly all of the prompt is the picture
        return (
            f"has a tokenizer whose {processor.tokenizer.convert_ids_to_tokens(most)} is token {most}, where config.json has {placeholder}"
        )
    known = inspect.signature(getattr(transformers, family.model_class).forward).parameters
    lacking = [name for name in _NEEDED if name in known and name not in made]
    foreign = [name for name in made if name.startswith(("pixel", "image", "qformer")) and name not in known]
    if lacking or foreign:
        does = f"makes no {lacking[0]}" if lacking else f"makes {foreign[0]}"
        return f"has a processor of another model ({type(processor).__name__}), which {does} of a picture"
    # BLIP's queries have no places in the picture, but their number is known
    expected = end(family.grids(config, processor, [_PROBE], made)) or getattr(config, "num_query_tokens", tokens)
    wrong = _wrong_pixels(config.vision_config, tuple(made["pixel_values"].shape))
    if wrong is None and tokens != expected:
        wrong = f"has a processor that makes {tokens} image tokens of a picture of which the model makes {expected}"
    return wrong


def _wrong_pixels(vision: Any, shape: tuple[int, ...]) -> str | None:
    """Return why a vision tower cannot read pixels of this shape, None where it can: a square of its size, or one row per patch."""
    tower = vision.model_type
    if tower in CLASS_TOKENS and tower != "pixtral" and shape[-2:] != (vision.image_size, vision.image_size):
        return f"has a processor that makes pictures of {shape[-1]} × {shape[-2]} pixels for a vision tower of {vision.image_size}"
    if len(shape) == 2:
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        if shape[1] != values:
            return f"has a processor that makes patches of {shape[1]} values for a vision tower of {values}"
    return None
