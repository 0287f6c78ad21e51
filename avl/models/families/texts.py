"""Text decoders whose decode steps the engine may fuse (avl/engine/fused.py): where transformers keeps their classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TextFamily:
    """A class of text decoders.

    Attributes:
        model_type: of its config in transformers.
        prefix: of its class names in transformers: ``{prefix}Attention``, ``{prefix}MLP``, ``{prefix}RMSNorm``, ``{prefix}Config``.
        random_options: config options, besides sizes, for a decoder with full attention.
    """

    model_type: str
    prefix: str
    random_options: dict[str, Any] = field(default_factory=dict)


TEXT_FAMILIES: dict[str, TextFamily] = {
    family.model_type: family for family in (TextFamily("llama", "Llama"), TextFamily("mistral", "Mistral", {"sliding_window": None}))
}
"""Model type -> text decoder."""
