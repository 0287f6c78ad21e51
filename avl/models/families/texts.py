"""Text decoders whose decode steps the engine may fuse (avl/engine/fused.py): where transformers keeps their classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TextFamily:
    """A class of text decoders.

    Attributes:
        model_type: of its config in transformers.
        prefix: of its class names in transformers: ``{prefix}Attention``, ``{prefix}RMSNorm``, ``{prefix}Config``.
        random_options: config options, besides sizes, for a decoder with full attention.
        other_names: classes that go by another name: ``MLP``, ``Model`` -> that name.
        head_norms: whether queries and keys are normalized head by head before RoPE.
        axes: dimensions of its positions. A token of an answer has the same position in each, so its rotation is the plain one.
    """

    model_type: str
    prefix: str
    random_options: dict[str, Any] = field(default_factory=dict)
    other_names: dict[str, str] = field(default_factory=dict)
    head_norms: bool = False
    axes: int = 1

    @property
    def modeling(self) -> str:
        """Name of the file's folder in ``transformers.models``."""
        return self.model_type.removesuffix("_text")

    def class_name(self, part: str) -> str:
        """Return the name of its class for a ``part``: Model, DecoderLayer, Attention, MLP, RMSNorm, RotaryEmbedding, ForCausalLM."""
        return self.other_names.get(part, f"{self.prefix}{part}")


TEXT_FAMILIES: dict[str, TextFamily] = {
    family.model_type: family
    for family in (
        TextFamily("llama", "Llama"),
        TextFamily("mistral", "Mistral", {"sliding_window": None}),
        TextFamily("qwen2", "Qwen2"),
        TextFamily("qwen3", "Qwen3", head_norms=True),
        TextFamily("qwen2_vl_text", "Qwen2VL", other_names={"Model": "Qwen2VLTextModel", "MLP": "Qwen2MLP"}, axes=3),
        TextFamily("qwen2_5_vl_text", "Qwen2_5_VL", other_names={"Model": "Qwen2_5_VLTextModel", "MLP": "Qwen2MLP"}, axes=3),
        TextFamily("qwen3_vl_text", "Qwen3VLText", head_norms=True, axes=3),
    )
}
"""Model type -> text decoder."""
