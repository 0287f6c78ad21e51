"""Full-size configs of checkpoints, for random weights: sizes as in their public ``config.json``, shrunk for tests.

What backs the sizes, besides parameter counts that agree with the published ones (tests/models/test_random_weights.py):

* LLaVA: the checkpoints' config.json.
* Qwen2.5-VL-7B: its text decoder is that of Qwen2.5-7B, which transformers states as the defaults of ``Qwen2_5OmniTextConfig``
  (Qwen2.5-Omni-7B); its vision tower is ``Qwen2_5_VLVisionConfig``'s defaults, but 1280 wide.
* Qwen3-VL-8B: its vision tower is the defaults of ``Qwen3VLVisionConfig``, with the text's width. Its text decoder is that of Qwen3-8B,
  known from its config.json; transformers does not state it.
* InternVL3-8B: its vision tower is the defaults of ``InternVLVisionConfig`` with biases. Its text decoder is that of Qwen2.5-7B with more
  words and dynamic RoPE, known from its config.json; transformers does not state it.
* Gemma-3-12B: vocabulary, positions, layer pattern and tokens per picture are the defaults of ``Gemma3Config``; widths and layers are from
  its config.json; transformers does not state them. The tower is SigLIP-so400m/14 at 896 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avl.models.families import FAMILIES, TEXT_FAMILIES

_FROM_END = 64
"""Ids of image and control tokens count from the end of the vocabulary where it is shrunk; 32000 of 32064 in every LLaVA."""


@dataclass(frozen=True)
class Scale:
    """How far to shrink all sizes, 1 for none."""

    factor: float

    def __call__(self, size: int, least: int, multiple: int = 1) -> int:
        """Return a size shrunk to a multiple of ``multiple``, at least ``least``."""
        return max(least, round(size * self.factor / multiple) * multiple)

    def heads(self, heads: int, kv_heads: int) -> dict[str, Any]:
        """Return numbers of heads in the same groups."""
        group = heads // kv_heads
        queries = self(heads, group, group)
        return {"num_attention_heads": queries, "num_key_value_heads": queries // group}

    def ids(self, vocabulary: int, **ids: int) -> dict[str, Any]:
        """Return ids of a vocabulary; those of a shrunk one stand at its end, in the same order."""
        if self.factor == 1:
            return ids
        first = self(vocabulary, 2 * _FROM_END) - _FROM_END
        return {name: first + place for place, name in enumerate(sorted(ids, key=lambda name: ids[name]))}


@dataclass(frozen=True)
class Architecture:
    """Sizes that differ between LLaVA's checkpoints; all have a head size of 128 and a vocabulary of 32064.

    ``family`` and ``text`` are the model types of the whole model and of its text decoder.
    """

    family: str
    text: str
    layers: int
    hidden: int
    ffn: int
    kv_heads: int
    context: int
    rope_theta: float

    def config(self, scale: Scale) -> Any:
        """Return the config of the whole model."""
        import transformers

        heads, head_dim = scale.heads(self.hidden // 128, self.kv_heads), scale(128, 16, 8)
        vocab = scale(32064, 2 * _FROM_END)
        vision_heads = scale(16, 2)
        side = scale(24, 4) * 14
        vision = transformers.CLIPVisionConfig(
            hidden_size=vision_heads * scale(64, 16, 8),
            intermediate_size=scale(4096, 32),
            projection_dim=768,
            num_hidden_layers=scale(24, 3),  # features come from the second to last layer; all of them run
            num_attention_heads=vision_heads,
            image_size=side,
            patch_size=14,
        )
        text_family = TEXT_FAMILIES[self.text]
        text = getattr(transformers, f"{text_family.prefix}Config")(
            vocab_size=vocab,
            hidden_size=heads["num_attention_heads"] * head_dim,
            intermediate_size=scale(self.ffn, 32),
            num_hidden_layers=scale(self.layers, 2),
            **heads,
            head_dim=head_dim,
            max_position_embeddings=self.context,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            **text_family.random_options,
        )
        parts = {
            "vision_config": vision,
            "text_config": text,
            "image_token_index": vocab - _FROM_END,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
        }
        return FAMILIES[self.family].random_config(parts, side)


@dataclass(frozen=True)
class Single:
    """One checkpoint of a family: its model type, and what makes its config."""

    family: str
    make: Callable[[Scale], Any]

    def config(self, scale: Scale) -> Any:
        """Return the config of the whole model."""
        return self.make(scale)


_QWEN_IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653}


def _qwen_rope(head_dim: int, sections: tuple[int, int, int], theta: float, **options: Any) -> dict[str, Any]:
    """Return rope parameters whose sections, stated for 64 frequencies, are those of a head of ``head_dim``."""
    tall, wide = (max(1, part * head_dim // 128) for part in sections[1:])
    own = [head_dim // 2 - tall - wide, tall, wide]
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": own, **options}


def qwen2_5_vl_7b(scale: Scale) -> Any:
    """Return the config of Qwen2.5-VL-7B."""
    import transformers

    heads, head_dim, layers = scale.heads(28, 4), scale(128, 16, 16), scale(32, 2)
    hidden, vision_heads = heads["num_attention_heads"] * head_dim, scale(16, 2)
    text = {
        "vocab_size": scale(152064, 2 * _FROM_END),
        "hidden_size": hidden,
        "intermediate_size": scale(18944, 32),
        "num_hidden_layers": scale(28, 2),
        **heads,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": _qwen_rope(head_dim, (16, 24, 24), 1e6),
    }
    vision = {
        "depth": layers,
        "hidden_size": vision_heads * scale(80, 16, 16),
        "intermediate_size": scale(3420, 32),
        "num_heads": vision_heads,
        "out_hidden_size": hidden,
        "window_size": 112,
        "fullatt_block_indexes": sorted({(part + 1) * layers // 4 - 1 for part in range(4)} - {-1}),
    }
    ids = scale.ids(152064, **_QWEN_IDS)
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def qwen3_vl_8b(scale: Scale) -> Any:
    """Return the config of Qwen3-VL-8B."""
    import transformers

    heads, head_dim, depth = scale.heads(32, 8), scale(128, 16, 16), scale(27, 4)
    hidden, vision_heads = heads["num_attention_heads"] * head_dim, scale(16, 2)
    text = {
        "vocab_size": scale(151936, 2 * _FROM_END),
        "hidden_size": hidden,
        "intermediate_size": scale(12288, 32),
        "num_hidden_layers": scale(36, 4),  # the first three take features of the picture
        **heads,
        "head_dim": head_dim,
        "max_position_embeddings": 262144,
        "rope_parameters": _qwen_rope(head_dim, (24, 20, 20), 5e6, mrope_interleaved=True),
    }
    vision = {
        "depth": depth,
        "hidden_size": vision_heads * scale(72, 16, 8),
        "intermediate_size": scale(4304, 32),
        "num_heads": vision_heads,
        "out_hidden_size": hidden,
        "deepstack_visual_indexes": [8, 16, 24] if scale.factor == 1 else [depth - 4, depth - 3, depth - 2],
    }
    ids = scale.ids(151936, **_QWEN_IDS)
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def internvl3_8b(scale: Scale) -> Any:
    """Return the config of InternVL3-8B."""
    import transformers

    heads, head_dim, vision_heads, side = scale.heads(28, 4), scale(128, 16, 16), scale(16, 2), scale(32, 4, 2)
    text = {
        "model_type": "qwen2",
        "vocab_size": scale(151674, 2 * _FROM_END),
        "hidden_size": heads["num_attention_heads"] * head_dim,
        "intermediate_size": scale(18944, 32),
        "num_hidden_layers": scale(28, 2),
        **heads,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
    }
    vision = {
        "hidden_size": vision_heads * scale(64, 16, 8),
        "intermediate_size": scale(4096, 32),
        "num_hidden_layers": scale(24, 2),
        "num_attention_heads": vision_heads,
        "attention_bias": True,
        "image_size": [14 * side, 14 * side],
        "patch_size": [14, 14],
    }
    ids = scale.ids(151674, image_token_id=151667)
    return transformers.InternVLConfig(
        text_config=text, vision_config=vision, image_seq_length=(side // 2) ** 2, tie_word_embeddings=False, **ids
    )


def gemma_3_12b(scale: Scale) -> Any:
    """Return the config of Gemma-3-12B."""
    import transformers

    heads, vision_heads, side = scale.heads(16, 8), scale(16, 2), scale(16, 4)
    text = {
        "vocab_size": scale(262208, 2 * _FROM_END),
        "hidden_size": scale(3840, 32, 32),
        "intermediate_size": scale(15360, 32),
        "num_hidden_layers": scale(48, 6),  # five of six slide
        **heads,
        "head_dim": scale(256, 16, 16),
        "query_pre_attn_scalar": 256,
        "sliding_window": 1024,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": vision_heads * scale(72, 16, 8),
        "intermediate_size": scale(4304, 32),
        "num_hidden_layers": scale(27, 2),
        "num_attention_heads": vision_heads,
        "image_size": 4 * side * 14,
        "patch_size": 14,
        "vision_use_head": False,
    }
    ids = scale.ids(262208, image_token_index=262144, boi_token_index=255999, eoi_token_index=256000)
    return transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=side**2, **ids)
