"""Why a model cannot have adaptive attention: one sentence per kind, read from the config, for models of any class."""

from __future__ import annotations

from typing import Any

CROSS_ATTENTION = ("mllama", "idefics", "evolla", "flamingo", "git", "blip", "kosmos-2.5")
"""Model types that keep their picture in cross-attention layers."""

REMOTE = {"qwen": "Qwen/Qwen2.5-VL-7B-Instruct", "cogvlm": "zai-org/GLM-4.1V-9B-Thinking", "cogvlm2": "zai-org/GLM-4.1V-9B-Thinking"}
"""Model types of repositories that bring their own code -> a later model of the same makers that transformers has."""

PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that keep keys and values of every token."""


def why_not(config: Any) -> str | None:
    """Return why adaptive attention cannot run a model with this config, None where nothing speaks against it.

    Raises:
        Nothing: an unknown config is judged by what it says of itself.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kind = config.model_type
    if kind in CROSS_ATTENTION:
        return f"{kind!r} models keep the picture in cross-attention layers, not as tokens of the prompt: there is nothing to rank there"
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, text)):
        return (
            f"{kind!r} models with this text model are encoder-decoders: the picture stands in the encoder, not in the decoder's KV cache"
        )
    return attention_misfit(text)


def attention_misfit(text: Any) -> str | None:
    """Return what the attention of a text decoder does beyond a softmax over stored keys and values, None where it is plain.

    Args:
        text: the decoder's config.
    """
    kinds = set(getattr(text, "layer_types", None) or ()) - PLAIN_LAYERS
    if kinds:
        return f"layers of this text model are of the kind {sorted(kinds)[0]}, which keep no keys and values of single tokens"
    for name in ("attn_logit_softcapping", "attention_chunk_size", "use_bidirectional_attention"):
        value = getattr(text, name, None)
        if value:
            return f"this text model's config has {name}={value!r}, which adaptive attention does not compute"
    shared = getattr(text, "num_kv_shared_layers", None)
    if shared:
        return f"the last {shared} layers of this text model share keys and values with earlier ones, so that no layer can choose its own"
    rank, size = getattr(text, "kv_lora_rank", None), getattr(text, "v_head_dim", None)
    if rank or (size and size != getattr(text, "head_dim", size)):
        return (
            "keys and values of this text model differ in size (latent attention), which the KV cache of adaptive attention does not store"
        )
    return None
