"""Models that cannot have adaptive attention are refused with a sentence that says why: by avl.load, attach and make_cache alike."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedConfig

import avl
from avl.models.families import FAMILIES, family_of
from avl.models.families.refusals import REMOTE

TEXT = {
    "num_hidden_layers": 2, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 4, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
T5 = {"model_type": "t5", "num_layers": 1, "d_model": 64, "d_ff": 64, "vocab_size": 100}
ONE = {"num_hidden_layers": 1}
INPUTS = {"input_ids": torch.tensor([[4, 5, 6]])}


def llava(kind: str, **changes: Any) -> dict[str, Any]:
    return {
        "text_config": {"model_type": kind, **TEXT, **changes},
        "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 2},
    }


CASES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "Mllama": (
        "Mllama", "ForConditionalGeneration",
        {"text_config": {**TEXT, "cross_attention_layers": [1]},
         "vision_config": {**ONE, "num_global_layers": 1, "hidden_size": 32, "attention_heads": 2, "intermediate_layers_indices": [0]}},
        "cross-attention layers",
    ),
    "Idefics 1": ("Idefics", "ForVisionText2Text", {**TEXT, "vision_config": ONE}, "cross-attention layers"),
    "BLIP-2 with T5": (
        "Blip2", "ForConditionalGeneration", {"text_config": T5, "vision_config": ONE, "qformer_config": ONE}, "encoder-decoder",
    ),
    "InstructBLIP with T5": (
        "InstructBlip", "ForConditionalGeneration", {"text_config": T5, "vision_config": ONE, "qformer_config": ONE}, "encoder-decoder",
    ),
    "Florence-2": (
        "Florence2", "ForConditionalGeneration", {"text_config": {"model_type": "bart", "encoder_layers": 1, "decoder_layers": 1}},
        "encoder-decoder",
    ),
    "PaliGemma 2": (
        "PaliGemma", "ForConditionalGeneration",
        {"text_config": {"model_type": "gemma2", **TEXT}, "vision_config": {"model_type": "siglip_vision_model", **ONE}},
        "attn_logit_softcapping=50",
    ),
    "OneVision without a number of tiles": (
        "LlavaOnevision", "ForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **TEXT}, "vision_config": {"model_type": "siglip_vision_model", **ONE},
         "vision_aspect_ratio": "anyres"},
        "takes no vision_aspect_ratio but 'anyres_max_9'",
    ),
    "LLaVA with gpt-oss": ("Llava", "ForConditionalGeneration", llava("gpt_oss", num_local_experts=2), "'gpt_oss' text models has sinks"),
    "Qwen3.5": (
        "Qwen3_5", "ForConditionalGeneration",
        {"text_config": {**TEXT, "layer_types": ["linear_attention", "full_attention"]}, "vision_config": {"depth": 1}},
        "of the kind linear_attention",
    ),
    "LFM2-VL": (
        "Lfm2Vl", "ForConditionalGeneration",
        {"text_config": {"model_type": "lfm2", **TEXT, "layer_types": ["conv", "full_attention"]},
         "vision_config": {"model_type": "siglip2_vision_model", **ONE}},
        "of the kind conv",
    ),
    "Llama 4": (
        "Llama4", "ForConditionalGeneration", {"text_config": {**TEXT, "num_local_experts": 2}, "vision_config": ONE},
        "a chunk of 8192 tokens",
    ),
    "Gemma 3n": (
        "Gemma3n", "ForCausalLM",
        {**TEXT, "num_hidden_layers": 3, "num_kv_shared_layers": 1, "vocab_size_per_layer_input": 100, "intermediate_size": [64] * 3,
         "activation_sparsity_pattern": [0.0] * 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        "last 1 layers of this text model share keys and values",
    ),
    "LLaVA with DeepSeek-V3": ("Llava", "ForConditionalGeneration", llava("deepseek_v3", n_routed_experts=2), "latent attention"),
    "LLaVA with Gemma": ("Llava", "ForConditionalGeneration", llava("gemma"), "works with llama"),
    "a language model without pictures": ("GPT2", "LMHeadModel", {"n_layer": 1, "n_embd": 8, "n_head": 2}, "does not know"),
}  # fmt: skip
"""Name -> (prefix of its classes, the end of the model's class, options of its config, what the sentence says)."""


@functools.cache
def built(name: str) -> Any:
    """The model without memory for weights: nothing of it runs."""
    prefix, end, options, _ = CASES[name]
    kind = {"Gemma3nForCausalLM": "Gemma3nTextConfig"}.get(f"{prefix}{end}", f"{prefix}Config")
    with torch.device("meta"):
        return getattr(transformers, f"{prefix}{end}")(getattr(transformers, kind)(**options))


def sentence(error: BaseException, said: str) -> None:
    message = str(error)
    assert type(error) is TypeError
    assert re.search(re.escape(said), message), message
    assert len(message) < 500
    assert not re.search(r"\n|Traceback|object at 0x", message), message


def implementations(model: Any) -> list[str | None]:
    return [
        module.config._attn_implementation for module in model.modules() if isinstance(getattr(module, "config", None), PreTrainedConfig)
    ]


@pytest.mark.parametrize("name", CASES)
def test_attach_and_make_cache_say_why(name):
    model, said = built(name), CASES[name][3]
    before = implementations(model)
    for refuse in (avl.attach, lambda model: avl.make_cache(model, INPUTS, avl.Full()), avl.detach):
        with pytest.raises(TypeError) as raised:
            refuse(model)
        sentence(raised.value, said)
    assert implementations(model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", CASES)
def test_load_says_why(name, tmp_path):
    """Of the config alone: there is nothing else in the folder."""
    built(name).config.save_pretrained(tmp_path)
    with pytest.raises(TypeError) as raised:
        avl.load(tmp_path)
    sentence(raised.value, CASES[name][3])
    assert str(tmp_path) in str(raised.value)


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "Qwen-VL": ({"model_type": "qwen", "architectures": ["QWenLMHeadModel"]}, REMOTE["qwen"]),
    "CogVLM": ({"model_type": "cogvlm", "architectures": ["CogVLMForCausalLM"]}, REMOTE["cogvlm"]),
    "CogVLM 2": ({"architectures": ["CogVLMForCausalLM"]}, REMOTE["cogvlm"]),
    "InternVL 2": ({"model_type": "internvl_chat", "architectures": ["InternVLChatModel"]}, REMOTE["internvl_chat"]),
    "another": ({"model_type": "elsewhere", "architectures": ["ElsewhereModel"]}, "use a model that transformers has"),
    "no class": ({}, "use a model that transformers has"),
    "a class as text": ({"architectures": "Elsewhere"}, "its class Elsewhere comes as code"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_code_of_a_repository_is_never_run(name, tmp_path, monkeypatch):
    """Nor asked about: transformers would wait for an answer at the terminal."""
    given, said = FOREIGN[name]
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    for file in ("configuration_foreign.py", "modeling_foreign.py"):
        (tmp_path / file).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError\n")
    code = {"AutoConfig": "configuration_foreign.ForeignConfig", "AutoModelForCausalLM": "modeling_foreign.ForeignModel"}
    (tmp_path / "config.json").write_text(json.dumps({**given, "auto_map": code}))
    with pytest.raises(TypeError) as raised:
        avl.load(tmp_path)
    sentence(raised.value, said)
    sentence(raised.value, "comes as code in its repository, which is not run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["Qwen-VL", "CogVLM", "another"])
def test_a_model_of_such_code(name):
    """Loaded by the caller, who trusts it."""
    given, said = FOREIGN[name]

    class ForeignConfig(PreTrainedConfig):
        model_type = given.get("model_type", "")

    class ForeignModel(torch.nn.Module):
        config = ForeignConfig(architectures=given["architectures"])

    ForeignConfig.__module__ = "transformers_modules.somebody.configuration_foreign"
    for refuse in (avl.attach, lambda model: avl.make_cache(model, INPUTS, avl.Full())):
        with pytest.raises(TypeError) as raised:
            refuse(ForeignModel())
        sentence(raised.value, said)


@pytest.mark.parametrize(
    "file", ["preprocessor_config.json", "processor_config.json", "tokenizer_config.json"],
)  # fmt: skip
def test_code_beside_a_known_model_is_not_run(file, tmp_path, monkeypatch):
    """A processor or tokenizer of its own beside a class that transformers has."""
    from random_models import build_processor, shared_model

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    shared_model("llava-llama").save_pretrained(tmp_path)
    build_processor("llava-llama").save_pretrained(tmp_path)
    (tmp_path / "foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError\n")
    path = Path(tmp_path / file)
    said = json.loads(path.read_text()) if path.exists() else {}
    code = {"AutoProcessor": "foreign.Processor", "AutoTokenizer": ["foreign.Tokenizer", None], "AutoImageProcessor": "foreign.Images"}
    path.write_text(json.dumps({**said, "auto_map": code}))
    with contextlib.suppress(OSError):  # refused in one sentence, or loaded by the class that transformers has
        avl.load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_every_config_of_transformers_is_judged():
    """A family or one sentence, whatever the config holds; nothing else is raised."""
    from transformers import CONFIG_MAPPING

    taken, said = set(), 0
    for name in CONFIG_MAPPING.keys():  # noqa: SIM118 - a lazy mapping iterates over less
        try:
            config = CONFIG_MAPPING[name]()
        except Exception:  # has no defaults
            continue
        try:
            family_of(config)
        except TypeError as error:
            sentence(error, "")
            said += 1
        else:
            taken.add(name)
    assert taken <= set(FAMILIES)
    assert said > 300
