"""Faults of a checkpoint's files, each with the words that its refusal holds (regular expressions)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4986\n"
SHARD = "model-00002-of-"
Fault = Callable[[Path], Any]


def change(file: str, edit: Callable[[dict], Any]) -> Fault:
    """Edit a JSON file in place."""

    def fault(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        edit(data)
        (folder / file).write_text(json.dumps(data))

    return fault


def write(file: str, text: str) -> Fault:
    return lambda folder: (folder / file).write_text(text)


def remove(*names: str) -> Fault:
    return lambda folder: [file.unlink() for name in names for file in folder.glob(name)]


def shard(edit: Callable[[Path], Any]) -> Fault:
    return lambda folder: edit(next(folder.glob(f"{SHARD}*")))


def tensors(edit: Callable[[str, torch.Tensor], tuple[str, torch.Tensor] | None]) -> Fault:
    """Write the one file of weights again with other tensors."""

    def fault(folder: Path) -> None:
        file = folder / "model.safetensors"
        kept = [made for name, tensor in load_file(file).items() if (made := edit(name, tensor)) is not None]
        save_file({name: tensor.clone().contiguous() for name, tensor in kept}, file, {"format": "pt"})

    return fault


def only(part: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    return tensors(lambda name, tensor: (name, edit(tensor) if part in name else tensor))


def extra(name: str) -> Fault:
    def fault(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file({**load_file(file), name: torch.ones(3)}, file, {"format": "pt"})

    return fault


INDEX = "model.safetensors.index.json"
AGAIN = "copy or download the folder again"
WEIGHTS: dict[str, tuple[str, Fault, tuple[str, ...]]] = {
    "a tensor is missing": (
        "one",
        tensors(lambda n, t: None if "layers.2.mlp.up" in n else (n, t)),
        ("layers.2.mlp.up_proj.weight", AGAIN),
    ),
    "the tower is missing": (
        "one",
        tensors(lambda n, t: None if "vision_tower" in n else (n, t)),
        ("lacks weights", r"\(\d+ of them\)", "vision_tower"),
    ),
    "the head is missing": ("one", tensors(lambda n, t: None if "lm_head" in n else (n, t)), ("lm_head.weight",)),
    "the projector is missing": ("one", tensors(lambda n, t: None if "projector" in n else (n, t)), ("multi_modal_projector",)),
    "another prefix": ("one", tensors(lambda n, t: (f"module.{n}", t)), ("under the names of its model class", r"module\.")),
    "a foreign tensor": ("one", extra("adapter.scale"), ("no place for", "adapter.scale")),
    "another shape": (
        "one",
        only("layers.1.mlp.up_proj", lambda t: t[:-1]),
        (r"\[95, 64\] in place of \[96, 64\]", "layers.1.mlp.up_proj"),
    ),
    "fewer layers in config.json": (
        "one",
        change("config.json", lambda c: c["text_config"].update(num_hidden_layers=3)),
        ("no place for", "layers.3"),
    ),
    "more layers in config.json": (
        "one",
        change("config.json", lambda c: c["text_config"].update(num_hidden_layers=5)),
        ("lacks", "layers.4"),
    ),
    "another vocabulary": ("one", change("config.json", lambda c: c["text_config"].update(vocab_size=200)), ("other shapes", "200")),
    "whole numbers": (
        "one",
        only("layers.1.mlp.up_proj", lambda t: t.to(torch.int8)),
        ("type I8", "model.safetensors", "float32, bfloat16"),
    ),
    "eight-bit floats": ("one", only("layers.1.mlp", lambda t: t.to(torch.float8_e4m3fn)), ("type F8_E4M3",)),
    "not a number": ("one", only("layers.2.mlp.up_proj", lambda t: t * float("nan")), ("not finite in float32", "layers.2.mlp.up_proj")),
    "infinite": ("one", only("layers.0.input_layernorm", lambda t: t + float("-inf")), ("not finite", "layers.0.input_layernorm")),
    "a pointer": ("shards", shard(lambda file: file.write_text(POINTER)), ("Git LFS pointer", SHARD, "git lfs pull")),
    "a pointer alone": ("one", write("model.safetensors", POINTER), ("Git LFS pointer", "model.safetensors")),
    "truncated": ("shards", shard(lambda file: file.write_bytes(file.read_bytes()[:-500])), (SHARD, "cut off", AGAIN)),
    "truncated header": ("one", lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:40]), ("cut off",)),
    "empty": ("shards", shard(lambda file: file.write_bytes(b"")), (SHARD, "cut off")),
    "a web page": ("one", write("model.safetensors", "<!doctype html><title>Not found</title>"), ("model.safetensors", "damaged")),
    "a missing shard": ("shards", shard(Path.unlink), (f"lacks {SHARD}", AGAIN)),
    "a shard of another": (
        "shards",
        shard(lambda file: shutil.copy(next(file.parent.glob("model-00001*")), file)),
        (INDEX, "does not hold it"),
    ),
    "no index": ("shards", remove(INDEX), (f"no {INDEX}",)),
    "a broken index": ("shards", write(INDEX, "{"), (INDEX, "no JSON")),
    "an index of nothing": ("shards", write(INDEX, "{}"), (INDEX, "without a map")),
    "an index of elsewhere": (
        "shards",
        change(INDEX, lambda i: i["weight_map"].update(dict.fromkeys(i["weight_map"], "../one/model.safetensors"))),
        (r"lacks \.\./one",),
    ),
    "an index that lacks a tensor": ("shards", change(INDEX, lambda i: i["weight_map"].popitem()), (INDEX, "does not list")),
    "an index of too much": (
        "shards",
        change(INDEX, lambda i: i["weight_map"].update(more=sorted(i["weight_map"].values())[0])),
        ("places more in",),
    ),
    "old weights alone": ("one", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), ("pytorch_model.bin", "run code")),
    "no weights": ("one", remove("*.safetensors"), ("no weights", "model.safetensors", AGAIN)),
    "an adapter": ("one", write("adapter_config.json", "{}"), ("adapter_config.json", "merged")),
}
TEXTS: dict[str, tuple[str, Fault, tuple[str, ...]]] = {
    **{
        f"{name} is no JSON": ("one", write(name, "{'a': 1}"), (name, "no JSON", AGAIN))
        for name in ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
    },
    **{
        f"{name} is a pointer": ("one", write(name, POINTER), (name, "Git LFS pointer"))
        for name in ("tokenizer.json", "config.json", "chat_template.jinja")
    },
    **{
        f"{name} is a list": ("one", write(name, "[1]"), (name, "no JSON object"))
        for name in ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
    },
    **{
        f"{name} is empty": ("one", write(name, ""), (name, "no JSON"))
        for name in ("config.json", "tokenizer.json", "processor_config.json")
    },
    **{
        f"{name} is missing": ("one", remove(name), (name,))
        for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
    },
    "no UTF-8": ("one", lambda f: (f / "generation_config.json").write_bytes(b'{"a": "\xff"}'), ("generation_config.json", "no JSON")),
    "a tokenizer's old file": ("one", write("special_tokens_map.json", "nonsense"), ("special_tokens_map.json",)),
    "another old file": ("one", write("preprocessor_config.json", "nonsense"), ("preprocessor_config.json",)),
    "a tokenizer of nothing": ("one", write("tokenizer.json", "{}"), (r"tokenizer\.json",)),
    "a tokenizer cut short": ("one", change("tokenizer.json", lambda t: t.pop("model")), (r"tokenizer\.json",)),
    "a broken template": ("one", write("chat_template.jinja", "{% for %}"), ("chat_template.jinja", "no Jinja")),
    "a template cut short": ("one", write("chat_template.jinja", "{% for m in messages %}{{ m"), ("chat_template.jinja", "no Jinja")),
    "an empty folder": ("one", remove("*"), ("no config.json", "save_pretrained")),
    "no type": ("one", change("config.json", lambda c: c.pop("model_type")), ("Llava, LlavaNext", "model_type")),
    "an unknown type": ("one", change("config.json", lambda c: c.update(model_type="llava9")), ("llava9", "Llava, LlavaNext")),
    "another model": ("one", change("config.json", lambda c: c.update(model_type="vipllava")), ("Llava, LlavaNext",)),
    "another decoder": ("one", change("config.json", lambda c: c["text_config"].update(model_type="gemma")), ("gemma", "mistral")),
    "a wrong type of value": (
        "one",
        change("config.json", lambda c: c["text_config"].update(num_hidden_layers="four")),
        ("config.json", "num_hidden_layers"),
    ),
    "heads that do not divide": (
        "one",
        change("config.json", lambda c: c["text_config"].update(num_attention_heads=3)),
        ("config.json", "heads"),
    ),
    "quantized": (
        "one",
        change("config.json", lambda c: c.update(quantization_config={"quant_method": "awq", "bits": 4})),
        ("quantized", "bfloat16"),
    ),
    "quantized by bitsandbytes": (
        "one",
        change("config.json", lambda c: c.update(quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})),
        ("quantized",),
    ),
    "another image token": ("one", change("config.json", lambda c: c.update(image_token_index=7)), ("<image> is token 4", "7")),
    "another patch": ("one", change("processor_config.json", lambda c: c.update(patch_size=14)), ("4 image tokens", "16")),
    "another choice of features": (
        "one",
        change("processor_config.json", lambda c: c.update(vision_feature_select_strategy="full")),
        ("17 image tokens", "16"),
    ),
    "another size": (
        "one",
        change(
            "processor_config.json",
            lambda c: c["image_processor"].update(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        ),
        ("56 × 56", "28"),
    ),
    "a mean of text": (
        "one",
        change("processor_config.json", lambda c: c["image_processor"].update(image_mean="gray")),
        ("fails with a picture|processor",),
    ),
    "a tokenizer too large": ("one", change("config.json", lambda c: c["text_config"].update(vocab_size=60)), ("120 tokens", "60")),
}
FAULTS = {**WEIGHTS, **TEXTS}
