"""The files of a checkpoint: whole, readable and of one model. What from_pretrained would skip, guess or initialize is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from avl.models.source import Source

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_TEXTS = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", "chat_template.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", INDEX),
)
"""What from_pretrained reads; other files of a folder are its owner's."""
_DTYPES = {"F64", "F32", "F16", "BF16"}
_LFS = b"version https://git-lfs"


def check_texts(source: Source, folder: Path) -> None:
    """Check those files that are not weights and that are there.

    Raises:
        OSError: a file is a Git LFS pointer, or is no JSON or Jinja; names it. Or there is an adapter.
    """
    if (folder / "adapter_config.json").exists():
        raise source.broken("holds an adapter (adapter_config.json), which has to be merged into the weights first")
    for file in (folder / name for name in _TEXTS if (folder / name).exists()):
        if not isinstance(_json(source, file), dict):
            raise source.broken(f"has a {file.name} that holds no JSON object")
    for file in sorted([*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")]):
        _check_template(source, file)


def check_present(source: Source, folder: Path) -> None:
    """Check that tokenizer and image processor have their files; from_pretrained would guess what some of them say.

    Raises:
        OSError: a file is missing; names it.
    """
    for names, what in (
        (("tokenizer_config.json",), "settings of its tokenizer"),
        (("tokenizer.json", "tokenizer.model"), "tokenizer"),
        (("processor_config.json", "preprocessor_config.json"), "settings of its image processor"),
    ):
        if not any((folder / name).exists() for name in names):
            raise source.broken(f"holds no {' or '.join(names)}, the {what}")


def _json(source: Source, file: Path) -> Any:
    _check_pointer(source, file)
    try:
        return json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # text that is no UTF-8 included
        raise source.broken(f"has a {file.name} that is no JSON ({source.quoted(error)})") from None


def _check_template(source: Source, file: Path) -> None:
    import jinja2

    _check_pointer(source, file)
    try:
        # transformers' templates use loop controls and its {% generation %} tag
        from transformers.utils.chat_template_utils import render_jinja_template

        render_jinja_template([[]], chat_template=file.read_text("utf-8"))
    except (jinja2.TemplateSyntaxError, UnicodeDecodeError) as error:
        raise source.broken(f"has a {file.name} that is no Jinja template ({source.quoted(error)})") from None
    except Exception:  # it compiles; that it wants a message is right
        return


def _check_pointer(source: Source, file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(len(_LFS)) == _LFS:
            raise OSError(f"{source.label} holds a Git LFS pointer in place of {file.name}: run git lfs pull in it, or {source.advice}")


def check_weights(source: Source, folder: Path) -> None:
    """Check the headers of the files of weights; reads none of the weights.

    Raises:
        OSError: a file is missing, a Git LFS pointer or truncated, tensors are elsewhere than the index says, or have a dtype that is not
            supported; names the file.
    """
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    if (folder / WEIGHTS).exists():
        listed: dict[str, str] | None = None
        shards = [WEIGHTS]
    elif (folder / INDEX).exists():
        listed = _json(source, folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(shard, str) for shard in listed.values()):
            raise source.broken(f"has a {INDEX} without a map of its weights")
        shards = sorted(set(listed.values()))
    elif shards:
        raise source.broken(f"holds {shards[0]} but no {INDEX}, which says what is in which file")
    else:
        old = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
        if old:
            raise OSError(f"{source.label} has its weights in {old[0]}, which can run code: take a revision with {WEIGHTS}, or convert it")
        raise source.broken(f"holds no weights ({WEIGHTS})")
    found: dict[str, str] = {}
    for shard in shards:
        found |= dict.fromkeys(_tensors(source, folder, shard), shard)
    if listed is not None and listed != found:
        name = min(listed.items() ^ found.items())[0]
        wrong = f"places {name} in {listed[name]}, which does not hold it" if name in listed else f"does not list {name}"
        raise source.broken(f"has a {INDEX} that {wrong}")


def _tensors(source: Source, folder: Path, name: str) -> list[str]:
    """Return the names of the tensors in one file."""
    from safetensors import SafetensorError, safe_open

    file = folder / name
    if Path(name).name != name or not file.is_file():
        raise source.broken(f"lacks {name}, a file of its weights")
    _check_pointer(source, file)
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            kinds = {tensor: opened.get_slice(tensor).get_dtype() for tensor in names}
    except (SafetensorError, OSError) as error:
        raise source.broken(f"has a {name} that is damaged or cut off ({source.quoted(error)})") from None
    strange = [tensor for tensor in names if kinds[tensor] not in _DTYPES and not tensor.endswith("position_ids")]
    if strange:
        raise OSError(
            f"{source.label} has weights of type {kinds[strange[0]]} ({strange[0]} in {name}): "
            "quantized checkpoints are not supported, pass one in float32, bfloat16 or float16"
        )
    return names


def check_report(source: Source, report: dict[str, Any]) -> None:
    """Check transformers' own report of what it loaded.

    Args:
        source: of the model.
        report: as ``from_pretrained`` returns with ``output_loading_info=True``.

    Raises:
        OSError: weights are missing (they were initialized at random), unknown or of another shape; names one and counts them.
    """
    missing, unknown = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    misfit = sorted(report["mismatched_keys"], key=lambda entry: entry[0])
    if misfit:
        name, stored, expected = misfit[0]
        raise source.broken(
            f"has weights of other shapes than its config.json says{_count(misfit)}: {name} is {list(stored)} in place of {list(expected)}"
        )
    if missing and unknown:
        raise source.broken(f"lacks weights under the names of its model class{_count(missing)}: no {missing[0]}, but {unknown[0]}")
    if missing:
        raise source.broken(f"lacks weights that its config.json calls for{_count(missing)}: {missing[0]}")
    if unknown:
        raise source.broken(f"holds weights that its config.json has no place for{_count(unknown)}: {unknown[0]}")
    if report.get("error_msgs"):
        raise source.broken(f"cannot be loaded ({source.quoted(ValueError(report['error_msgs'][0]))})")


def _count(names: Iterable[Any]) -> str:
    number = len(list(names))
    return f" ({number} of them)" if number > 1 else ""
