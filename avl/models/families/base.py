"""What a model family is: everything that the library must know of a class of vision-language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from avl.trace import Grid


@dataclass(frozen=True)
class TextFamily:
    """A class of text decoders.

    Attributes:
        model_type: of its config in transformers.
        prefix: of its classes' names in transformers: ``{prefix}Attention``, ``{prefix}MLP``, ``{prefix}RMSNorm``, ``{prefix}Config``.
        random_options: what its config needs beside sizes to be a decoder with full attention.
    """

    model_type: str
    prefix: str
    random_options: dict[str, Any] = field(default_factory=dict)


class Family(ABC):
    """A class of vision-language models with one text decoder whose prompt holds the image's tokens.

    Attributes:
        model_type: of its config in transformers.
        prefix: of its classes' names: ``{prefix}Config``, ``{prefix}ForConditionalGeneration``.
        preset: row of the A-VL paper's Table 3 for checkpoints that are not in it.
    """

    model_type: ClassVar[str]
    prefix: ClassVar[str]
    preset: ClassVar[str]

    @property
    def model_class(self) -> str:
        """Name of the model's class in transformers."""
        return f"{self.prefix}ForConditionalGeneration"

    @abstractmethod
    def grids(self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
        """Return which part of which image every image token covers.

        Args:
            config: the model's.
            processor: the model's; None where only the number of tokens matters.
            sizes: (width, height) of each image as given to the processor.
        """

    @abstractmethod
    def random_config(self, parts: dict[str, Any], side: int) -> Any:
        """Return a config for random weights.

        Args:
            parts: keyword arguments that LLaVA-like configs share: vision and text config, image token, feature layer.
            side: edge of the vision tower's input in pixels.
        """

    @abstractmethod
    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return the model's image inputs for one image of ``size`` (width, height) per row: random pixels in float32."""

    def image_tokens(self, config: Any, size: tuple[int, int]) -> int:
        """Return the number of image tokens of one image of ``size`` (width, height)."""
        last = self.grids(config, None, [size])[-1]
        return last.first + last.rows * (last.cols + last.newline)


@dataclass(frozen=True)
class Facts:
    """Sizes of a model's text decoder, read off its config once.

    Attributes:
        name: the model's class. image_token_id: the id that stands for an image feature.
        context: most positions the decoder was made for.
        hidden, ffn, vocab: widths of the hidden states, of the MLP and of the output head.
    """

    name: str
    image_token_id: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    hidden: int
    ffn: int
    vocab: int

    @classmethod
    def of(cls, name: str, config: Any) -> Facts:
        """Return the sizes that a model's config gives."""
        text = config.text_config
        return cls(
            name=name,
            image_token_id=config.image_token_id,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            context=text.max_position_embeddings,
            hidden=text.hidden_size,
            ffn=text.intermediate_size,
            vocab=text.vocab_size,
        )
