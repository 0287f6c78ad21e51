"""Model families, one file each, and their registry; code elsewhere must not depend on a specific family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avl.models.families import refusals
from avl.models.families.aya_vision import AyaVision
from avl.models.families.base import Facts, Family, end, image_token_id, text_config
from avl.models.families.blip_2 import Blip2
from avl.models.families.gemma3 import Gemma3
from avl.models.families.glm4v import Glm4v
from avl.models.families.idefics3 import Idefics3, SmolVLM
from avl.models.families.instructblip import InstructBlip
from avl.models.families.internvl import InternVL
from avl.models.families.llava import Llava
from avl.models.families.llava_next import LlavaNext
from avl.models.families.llava_onevision import LlavaOnevision
from avl.models.families.mistral3 import Mistral3
from avl.models.families.paligemma import PaliGemma
from avl.models.families.qwen2_5_vl import Qwen25VL
from avl.models.families.qwen2_vl import Qwen2VL
from avl.models.families.qwen3_vl import Qwen3VL, Qwen3VLMoe
from avl.models.families.text_only import TextOnly
from avl.models.families.texts import TEXT_FAMILIES, TextFamily
from avl.trace import Grid

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Llava(),
        LlavaNext(),
        LlavaOnevision(),
        Qwen2VL(),
        Qwen25VL(),
        Qwen3VL(),
        Qwen3VLMoe(),
        InternVL(),
        Idefics3(),
        SmolVLM(),
        Mistral3(),
        AyaVision(),
        Gemma3(),
        Glm4v(),
        PaliGemma(),
        Blip2(),
        InstructBlip(),
        TextOnly("llama", "Llama"),
        TextOnly("mistral", "Mistral"),
        TextOnly("qwen2", "Qwen2"),
        TextOnly("qwen3", "Qwen3"),
    )
}
"""Model type -> family that adaptive attention can attach to."""

_WRAPPED = ("get_base_model", "_orig_mod", "module")
"""Where a wrapper keeps its model: PEFT's, ``torch.compile``'s, those of data parallelism."""

__all__ = [
    "FAMILIES",
    "TEXT_FAMILIES",
    "Facts",
    "Family",
    "TextFamily",
    "causal_model",
    "describe",
    "family_of",
    "image_grids",
    "image_token_id",
    "language_model",
    "supported",
    "text_config",
]


def supported(text_only: bool = False) -> str:
    """Return a sentence fragment that lists the supported model classes; those that take no pictures only if asked."""
    seeing, reading = ([family.prefix for family in FAMILIES.values() if family.pictures is kind] for kind in (True, False))
    return f"{_listed(seeing)} (…ForConditionalGeneration)" + (f", for text alone {_listed(reading)} (…ForCausalLM)" if text_only else "")


def _listed(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def family_of(config: Any) -> Family:
    """Return the family of a model's config.

    Raises:
        TypeError: the model type or its text model is not supported, its attention is more than a softmax over stored keys and values, or
            its class cannot run it; says which and why.
    """
    family = FAMILIES.get(config.model_type)
    reason = refusals.why_not(config, family is not None and family.bidirectional)
    if family is None:
        raise TypeError(
            reason or f"adaptive attention does not know {config.model_type!r} models; supported are {supported(text_only=True)}"
        )
    kind = text_config(config).model_type
    if reason is None and kind not in family.texts:
        reason = (
            f"adaptive attention does not know {config.model_type!r} models with text model {kind!r}; "
            f"{family.model_class} works with {', '.join(family.texts)}"
        )
    reason = reason or family.misfit(config)
    if reason is not None:
        raise TypeError(reason)
    return family


def image_grids(config: Any, processor: Any, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any], n_image: int) -> tuple[Grid, ...]:
    """Return grids that cover the ``n_image`` image tokens of one prompt; none where the tokens' places are not known.

    Raises:
        TypeError: as :func:`family_of`.
    """
    family = family_of(config)
    grids = family.grids(config, processor, sizes, inputs) if sizes else ()
    return grids if grids and end(grids) + family.tail(sizes) == n_image else ()


def describe(model: Any) -> Facts:
    """Return the sizes of a supported model.

    Raises:
        TypeError: the model's class or its text model is not supported; lists the supported ones.
    """
    name = type(model).__name__
    if name not in {family.model_class for family in FAMILIES.values()}:
        inner = next((attribute for attribute in _WRAPPED if hasattr(model, attribute)), None)
        hint = "" if inner is None else f"; this is a wrapper: pass what it wraps, model.{inner}{'()' if inner.startswith('get') else ''}"
        reason = refusals.why_not(model.config) if hasattr(getattr(model, "config", None), "model_type") and not hint else None
        raise TypeError(
            reason or f"adaptive attention does not know the model class {name}; supported are {supported(text_only=True)}{hint}"
        )
    return Facts.of(family_of(model.config), model.config)


def language_model(model: Any) -> Any:
    """Return the text decoder of a supported model: embeddings, ``layers``, final norm, rotary embedding."""
    return FAMILIES[model.config.model_type].decoder(model)


def causal_model(model: Any) -> Any:
    """Return the part of a supported model that turns token ids into logits, and whose generation config ``generate`` obeys."""
    return FAMILIES[model.config.model_type].causal(model)
