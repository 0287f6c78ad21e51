"""What the supported LLaVA classes have in common and where they differ, read off a model's config and modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SUPPORTED = ("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration")
"""Model classes that adaptive attention attaches to, with Llama or Mistral text models."""

TEXT_MODELS = ("llama", "mistral")


@dataclass(frozen=True)
class Facts:
    """Sizes of a model. ``context``: most positions the text model was made for."""

    name: str
    image_token_id: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int


def describe(model: Any) -> Facts:
    """Sizes of a supported model.

    Raises:
        TypeError: the model's class, or its text model, is not supported; lists what is.
    """
    name = type(model).__name__
    if name not in SUPPORTED:
        raise TypeError(f"adaptive attention does not know the model class {name}; it supports {' and '.join(SUPPORTED)}")
    config = model.config
    text = config.text_config
    if text.model_type not in TEXT_MODELS:
        raise TypeError(f"adaptive attention does not know {text.model_type!r} text models; it supports {' and '.join(TEXT_MODELS)}")
    window = getattr(text, "sliding_window", None)
    if window is not None and window < text.max_position_embeddings:
        raise TypeError(f"this text model attends to a window of {window} tokens; adaptive attention needs a model with full attention")
    return Facts(
        name=name,
        image_token_id=config.image_token_id,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        context=text.max_position_embeddings,
    )


def language_model(model: Any) -> Any:
    """The text decoder inside a supported model: embeddings, ``layers``, final norm, rotary embedding."""
    return model.model.language_model
