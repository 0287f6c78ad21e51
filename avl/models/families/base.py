"""The interface of a model family: all that the library needs to know about a class of vision-language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from avl.trace import Grid

CLASS_TOKENS: dict[str, int] = {"clip_vision_model": 1, "siglip_vision_model": 0, "pixtral": 0}
"""Model type of a vision tower -> features that it puts before those of the patches."""


def leading_features(config: Any) -> int | None:
    """Return how many features of an image precede those of its patches in the prompt.

    None where no patch's place is known: the tower is not in :data:`CLASS_TOKENS`, or ``vision_feature_select_strategy`` drops a patch
    because the tower has no class token to drop.
    """
    tokens = CLASS_TOKENS.get(config.vision_config.model_type)
    if tokens is None:
        return None
    left = tokens - (config.vision_feature_select_strategy == "default")
    return left if left >= 0 else None


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


class Family(ABC):
    """A class of vision-language models whose text decoder has the image tokens in its prompt.

    Attributes:
        model_type: of its config in transformers.
        prefix: of its class names: ``{prefix}Config``, ``{prefix}ForConditionalGeneration``.
        preset: row of the A-VL paper's Table 3 to use for checkpoints that are not in it.
    """

    model_type: ClassVar[str]
    prefix: ClassVar[str]
    preset: ClassVar[str]

    @property
    def model_class(self) -> str:
        """Name of the model's class in transformers."""
        return f"{self.prefix}ForConditionalGeneration"

    def misfit(self, config: Any) -> str | None:
        """Return why the model's own code would fail with this config, None where it would not."""
        return None

    def plain_prompt(self, config: Any, images: str, question: str) -> str | None:
        """Return the prompt of a checkpoint without a chat template, None where none is known.

        Args:
            config: the model's config.
            images: the images' placeholders, each with a line break.
            question: a plain question.
        """
        return None

    @abstractmethod
    def grids(
        self, config: Any, processor: Any | None, sizes: Sequence[tuple[int, int]], inputs: dict[str, Any] | None = None
    ) -> tuple[Grid, ...]:
        """Return grids that say which part of which image every image token covers; none where that is not known.

        Args:
            config: the model's config.
            processor: the model's processor; None if only the number of tokens matters.
            sizes: (width, height) of each image before preprocessing.
            inputs: what the processor made of the images, which some vision towers need.
        """

    @abstractmethod
    def random_config(self, parts: dict[str, Any], side: int) -> Any:
        """Return a config for random weights.

        Args:
            parts: keyword arguments common to LLaVA-like configs: vision and text config, image token, feature layer.
            side: side of the vision tower's input in pixels.
        """

    @abstractmethod
    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return the image inputs of a batch: random float32 pixels of one image of ``size`` (width, height) per row."""

    def image_tokens(self, config: Any, size: tuple[int, int]) -> int:
        """Return the number of image tokens of one image of ``size`` (width, height).

        Raises:
            TypeError: the vision tower is not a known one.
        """
        grids = self.grids(config, None, [size])
        if not grids:
            raise TypeError(f"how many tokens a {config.vision_config.model_type!r} vision tower makes of an image is not known")
        return end(grids)


def end(grids: Sequence[Grid]) -> int:
    """Return the number of image tokens up to the last one in ``grids``."""
    return max((grid.first + grid.rows * (grid.cols + grid.newline) for grid in grids), default=0)


@dataclass(frozen=True)
class Facts:
    """Sizes of a model's text decoder, read from its config.

    Attributes:
        name: name of the model's class.
        image_token_id: token id of an image feature.
        layers: number of decoder layers.
        heads: number of query heads.
        kv_heads: number of key-value heads.
        head_dim: width of a head.
        context: most positions that the decoder supports.
        hidden: width of the hidden states.
        ffn: width of the MLP.
        vocab: width of the output head.
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
        """Return the sizes in a model's config."""
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
