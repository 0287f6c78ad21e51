"""Why a model cannot have adaptive attention: one sentence per kind, read from the config, for models of any class."""

from __future__ import annotations

from typing import Any

CROSS_ATTENTION = ("mllama", "mllama_text_model", "idefics", "evolla", "blip")
"""Model types that keep their picture in cross-attention layers."""

REMOTE = {
    "qwen": "Qwen/Qwen2.5-VL-7B-Instruct",
    "cogvlm": "zai-org/GLM-4.1V-9B-Thinking",
    "cogagent": "zai-org/GLM-4.1V-9B-Thinking",
    "internvl_chat": "OpenGVLab/InternVL3-8B-hf",
    "internvlchat": "OpenGVLab/InternVL3-8B-hf",
}
"""How names of models begin (model type or class) whose repositories bring their own code -> a later model that transformers has."""

SINKS = ("gpt_oss", "mimo_v2_flash", "deepseek_v4", "flint", "granite_swa", "granitemoe_swa", "hy_v4", "inkling2", "inkling2_text")
"""Model types of text decoders whose softmax has a learned sink besides the keys."""

PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that keep keys and values of every token, and attend to them by one softmax."""

CHUNKED = frozenset({"chunked_attention", "reference_sliding_attention"})
"""Kinds of layers that keep them too, and attend to some of them only, by place."""


def why_not(config: Any, bidirectional: bool = False) -> str | None:
    """Return why adaptive attention cannot run a model with this config, None where nothing speaks against it.

    Args:
        config: of any model.
        bidirectional: whether the model's family takes a text decoder that calls itself not causal (see ``Family``).

    Raises:
        Nothing: an unknown config is judged by what it says of itself.
    """
    kind = getattr(config, "model_type", None)
    foreign = type(config).__module__.startswith("transformers_modules") or getattr(config, "auto_map", None)
    reason = remote({"model_type": kind, "auto_map": foreign, "architectures": getattr(config, "architectures", None)})
    if reason is not None:
        return reason
    if kind in CROSS_ATTENTION:
        return f"{kind!r} models keep the picture in cross-attention layers, not as tokens of the prompt: there is nothing to rank there"
    try:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
    except ValueError:  # it has several
        text = config
    if any(_read(part, "is_encoder_decoder") for part in (config, text)):
        return (
            f"{kind!r} models with this text model are encoder-decoders: the picture stands in the encoder, not in the decoder's KV cache"
        )
    return attention_misfit(text, bidirectional) if hasattr(text, "vocab_size") else None


def remote(config: dict[str, Any]) -> str | None:
    """Return why a model is refused whose repository brings its own code; None where transformers has the class.

    Args:
        config: the contents of its config.json.
    """
    from transformers import CONFIG_MAPPING

    kind, classes = config.get("model_type"), config.get("architectures")
    if not config.get("auto_map") or (isinstance(kind, str) and kind in CONFIG_MAPPING):
        return None
    names = [str(name) for name in (*(classes if isinstance(classes, list) else [classes]), kind) if name]
    instead = next((model for known, model in REMOTE.items() if any(name.lower().startswith(known) for name in names)), None)
    advice = f"use {instead}, a later model that transformers has" if instead else "use a model that transformers has"
    return f"its class{f' {names[0]}' if names else ''} comes as code in its repository, which is not run: {advice}"


def attention_misfit(text: Any, bidirectional: bool = False) -> str | None:
    """Return what the attention of a text decoder does beyond a softmax over stored keys and values, None where it is plain.

    Args:
        text: the decoder's config.
        bidirectional: whether it may call itself not causal, because the masks of its prompt say who sees whom.
    """
    kinds = set(_read(text, "layer_types") or ()) - PLAIN_LAYERS
    if kinds - CHUNKED:
        return (
            f"layers of this text model are of the kind {min(kinds - CHUNKED)}, whose state is not keys and values of single tokens alone"
        )
    chunk = _read(text, "attention_chunk_size")
    if kinds or chunk:
        what = f"a chunk of {chunk}" if chunk else "some of the"
        return f"layers of this text model attend to {what} tokens by their place, which adaptive attention does not compute"
    if _read(text, "model_type") in SINKS:
        return f"the attention of {text.model_type!r} text models has sinks, which adaptive attention does not compute"
    for name in ("attn_logit_softcapping", *(() if bidirectional else ("use_bidirectional_attention",))):
        value = _read(text, name)
        if value:
            return f"this text model's config has {name}={value!r}, which adaptive attention does not compute"
    shared = _read(text, "num_kv_shared_layers")
    if shared:
        return f"the last {shared} layers of this text model share keys and values with earlier ones, so that no layer can choose its own"
    rank, size, width = (_read(text, name) for name in ("kv_lora_rank", "v_head_dim", "head_dim"))
    if DIFFERS in (rank, size, width):
        return "heads of this text model differ in size from layer to layer, and the KV cache of adaptive attention has one size for all"
    if rank or (size and size != (width or size)):
        return (
            "keys and values of this text model differ in size (latent attention), which the KV cache of adaptive attention does not store"
        )
    return None


DIFFERS = "differs from layer to layer"


def _read(config: Any, name: str) -> Any:
    """Return a value of a config, None where it has none, :data:`DIFFERS` where the layers have values of their own."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError of recent releases
        return DIFFERS
