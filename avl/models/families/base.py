"""The interface of a model family: all that the library needs to know about a class of vision-language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
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


LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of the text decoders that a family without a decoder of its own may have."""


class Family(ABC):
    """A class of vision-language models whose text decoder has the image tokens in its prompt.

    Attributes:
        model_type: of its config in transformers.
        prefix: of its class names: ``{prefix}Config``, ``{prefix}ForConditionalGeneration``.
        texts: model types of the text decoders it may have.
        preset: row of the A-VL paper's Table 3 to use for checkpoints that are not in it; None where the paper has none like it.
        two_way: whether tokens of the prompt, those of a picture at least, also attend to later ones.
        bidirectional: whether the config of its text decoder may call it not causal, because the prompt's masks say who sees whom.
        placeholders: whether a prompt says where its pictures stand; if not, the processor puts the one picture before the text.
        pictures: whether its models take pictures.
        token_types: name of the input ``[B, L]`` that is 1 where a token belongs to a picture, None where the model takes none.
        picture_axis: of what the processor makes of a row's pictures, the axis along which they follow one another.
        own_positions: whether an image token's position is not simply that of the token before and one more.
        picture_last: whether a prompt may end in one; if not, ``generate`` and the model disagree about the positions that follow.
    """

    model_type: ClassVar[str]
    prefix: ClassVar[str]
    texts: ClassVar[tuple[str, ...]] = LLAMAS
    preset: ClassVar[str | None] = None
    two_way: ClassVar[bool] = False
    bidirectional: ClassVar[bool] = False
    placeholders: ClassVar[bool] = True
    pictures: ClassVar[bool] = True
    token_types: ClassVar[str | None] = None
    picture_axis: ClassVar[int] = 0
    own_positions: ClassVar[bool] = False
    picture_last: ClassVar[bool] = True

    @property
    def model_class(self) -> str:
        """Name of the model's class in transformers."""
        return f"{self.prefix}ForConditionalGeneration"

    def misfit(self, config: Any) -> str | None:
        """Return why the model's own code would fail with this config, None where it would not."""
        return None

    def decoder(self, model: Any) -> Any:
        """Return the text decoder: embeddings, ``layers``, final norm, rotary embedding."""
        return model.model.language_model

    def causal(self, model: Any) -> Any:
        """Return the module that turns token ids and positions into logits, and whose generation config ``generate`` obeys."""
        return model

    def positions(self, mask: torch.Tensor, pictures: bool) -> dict[str, torch.Tensor]:
        """Return the position arguments of a padded prompt, as ``generate`` gives them: ``position_ids [B, L]``.

        Args:
            mask: attention mask ``[B, L]``, 0 for left padding.
            pictures: whether some row has one.
        """
        return {"position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0)}

    def ahead(self, model: Any, pictures: bool) -> torch.Tensor | int:
        """Return by how much the next position exceeds the length of the prompt that just ran: a number, or one per row ``[B, 1]``.

        Args:
            model: the model.
            pictures: whether some row of that prompt has one.
        """
        return 0

    def plain_prompt(self, config: Any, images: str, question: str) -> str | None:
        """Return the prompt of a checkpoint without a chat template, None where none is known.

        Args:
            config: the model's config.
            images: the images' placeholders, each with a line break.
            question: a plain question.
        """
        return None

    def plain_next(self, config: Any, question: str) -> str | None:
        """Return what follows an answer where a conversation goes on without a chat template, None where that is not known.

        Args:
            config: the model's config.
            question: the next question.
        """
        return None

    def no_turns(self) -> str | None:
        """Return why a conversation cannot go on with what was stored of it, as the end of a sentence; None where it can."""
        if self.bidirectional:
            return "every token of its prompt sees every other, so that a later turn would change what the earlier ones hold"
        return None

    def no_later_pictures(self) -> str | None:
        """Return why a later turn of a conversation cannot bring a picture, as the end of a sentence; None where it can."""
        if not self.placeholders:
            return "which takes one picture, before all text"
        return None

    def later_positions(self, model: Any, ids: torch.Tensor, pictures: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the positions of what a later turn feeds with its pictures, where they are not one each.

        Args:
            model: the model.
            ids: ``[1, Q]``, pictures included.
            pictures: what the processor made of them.

        Returns:
            ``[axes, 1, Q]`` counted from 0, and ``[1, 1]`` by how much the next one exceeds Q; None where positions are one for each token.
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

    def random_config(self, parts: dict[str, Any], side: int) -> Any:
        """Return a config for random weights.

        Args:
            parts: keyword arguments common to LLaVA-like configs: vision and text config, image token, feature layer.
            side: side of the vision tower's input in pixels.

        Raises:
            TypeError: none is known for this family.
        """
        raise self._no_random()

    def random_picture(self, config: Any) -> tuple[int, int]:
        """Return (width, height) of the picture that random inputs have if none is asked for; here, of the most image tokens."""
        side = config.vision_config.image_size
        return 2 * side, 2 * side

    def random_pixels(self, config: Any, batch: int, size: tuple[int, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return the image inputs of a batch: random float32 pixels of one image of ``size`` (width, height) per row.

        Raises:
            TypeError: none are known for this family.
        """
        raise self._no_random()

    def _no_random(self) -> TypeError:
        return TypeError(f"{self.model_class} has no random weights or inputs: pass a checkpoint and its processor's inputs")

    def tail(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Return how many image tokens follow the last grid's."""
        return 0

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
        two_way: whether tokens of the prompt also attend to later ones.
        image_token_id: token id of an image feature, None where the model takes no pictures.
        layers: number of decoder layers.
        heads: number of query heads.
        kv_heads: number of key-value heads.
        head_dim: width of a head.
        context: most positions that the decoder supports.
        window: tokens that its narrowest layer attends to, None where every layer attends to all.
        hidden: width of the hidden states.
        ffn: width of the MLP.
        vocab: width of the output head.
    """

    name: str
    two_way: bool
    image_token_id: int | None
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    window: int | None
    hidden: int
    ffn: int
    vocab: int

    def token_bytes(self, itemsize: int) -> int:
        """Return the bytes of one token's keys and values in all layers, of ``itemsize`` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize

    @classmethod
    def of(cls, family: Family, config: Any) -> Facts:
        """Return the sizes in the config of a model of ``family``."""
        text = text_config(config)
        heads: int = text.num_attention_heads
        return cls(
            name=family.model_class,
            two_way=family.two_way,
            image_token_id=image_token_id(config) if family.pictures else None,
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            context=text.max_position_embeddings,
            window=window(text),
            hidden=text.hidden_size,
            ffn=getattr(text, "intermediate_size", None) or text.ffn_dim,
            vocab=text.vocab_size,
        )


def text_config(config: Any) -> Any:
    """Return the config of a model's text decoder, which is the model's own where it takes nothing but text."""
    return getattr(config, "text_config", None) or config


def image_token_id(config: Any) -> int:
    """Return the token id of an image feature."""
    found = getattr(config, "image_token_id", None)
    return int(config.image_token_index if found is None else found)


def window(text: Any) -> int | None:
    """Return how many tokens the narrowest layer of a text decoder attends to, None where every layer attends to all.

    Args:
        text: the decoder's config.
    """
    width = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    slides = width is not None and (kinds is None or "sliding_attention" in kinds)
    return width if slides and width < text.max_position_embeddings else None
