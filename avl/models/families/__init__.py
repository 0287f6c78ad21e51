"""Model families, one file each, and their registry; code elsewhere must not depend on a specific family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avl.models.families.base import Facts, Family, TextFamily, end
from avl.models.families.llava import Llava
from avl.models.families.llava_next import LlavaNext
from avl.trace import Grid

FAMILIES: dict[str, Family] = {family.model_type: family for family in (Llava(), LlavaNext())}
"""Model type -> family that adaptive attention can attach to."""

TEXT_FAMILIES: dict[str, TextFamily] = {
    family.model_type: family for family in (TextFamily("llama", "Llama"), TextFamily("mistral", "Mistral", {"sliding_window": None}))
}
"""Model type -> text decoder that a family may have."""

_WRAPPED = ("get_base_model", "_orig_mod", "module")
"""Where a wrapper keeps its model: PEFT's, ``torch.compile``'s, those of data parallelism."""

__all__ = [
    "FAMILIES",
    "TEXT_FAMILIES",
    "Facts",
    "Family",
    "TextFamily",
    "describe",
    "family_of",
    "image_grids",
    "language_model",
    "supported",
]


def supported() -> str:
    """Return a sentence fragment that lists the supported model classes and text models."""
    classes = " and ".join(family.model_class for family in FAMILIES.values())
    return f"{classes} with {' or '.join(TEXT_FAMILIES)} text models"


def family_of(config: Any) -> Family:
    """Return the family of a model's config.

    Raises:
        TypeError: the model type or its text model is not supported, uses a sliding window, or its class cannot run it; says which.
    """
    text = getattr(config, "text_config", None)
    kind = getattr(text, "model_type", None)
    if config.model_type not in FAMILIES or kind not in TEXT_FAMILIES:
        found = f"{config.model_type!r} models with text model {kind!r}"
        raise TypeError(f"adaptive attention does not know {found}; supported are {supported()}")
    window = getattr(text, "sliding_window", None)
    if window is not None and window < text.max_position_embeddings:  # type: ignore[union-attr]
        raise TypeError(f"this text model attends to a window of {window} tokens; adaptive attention needs a model with full attention")
    family = FAMILIES[config.model_type]
    reason = family.misfit(config)
    if reason is not None:
        raise TypeError(reason)
    return family


def image_grids(config: Any, processor: Any, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any], n_image: int) -> tuple[Grid, ...]:
    """Return grids that cover the ``n_image`` image tokens of one prompt; none where the tokens' places are not known.

    Raises:
        TypeError: as :func:`family_of`.
    """
    grids = family_of(config).grids(config, processor, sizes, inputs)
    return grids if end(grids) == n_image else ()


def describe(model: Any) -> Facts:
    """Return the sizes of a supported model.

    Raises:
        TypeError: the model's class or its text model is not supported; lists the supported ones.
    """
    name = type(model).__name__
    if name not in {family.model_class for family in FAMILIES.values()}:
        inner = next((attribute for attribute in _WRAPPED if hasattr(model, attribute)), None)
        hint = "" if inner is None else f"; this is a wrapper: pass what it wraps, model.{inner}{'()' if inner.startswith('get') else ''}"
        raise TypeError(f"adaptive attention does not know the model class {name}; supported are {supported()}{hint}")
    family_of(model.config)
    return Facts.of(name, model.config)


def language_model(model: Any) -> Any:
    """Return the text decoder of a supported model: embeddings, ``layers``, final norm, rotary embedding."""
    return model.model.language_model
