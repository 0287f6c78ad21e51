"""Loading a model and its processor by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from avl._compat import name_or_path
from avl._paths import ASSETS
from avl.models.checkpoints import CHECKPOINTS
from avl.models.families import FAMILIES, TEXT_FAMILIES, describe, supported

TINY = ASSETS / "tiny"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES |= {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path = "tiny",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Load a LLaVA and its processor for inference, with left padding.

    Args:
        name: "tiny" (bundled), a key of :data:`CHECKPOINTS`, the Hub id of a model of a supported class, or a local folder.
        device: "auto" (CUDA if available), "cuda", "cuda:1", "cpu", …; ignored with ``device_map``.
        dtype: "auto" (bfloat16 on GPUs that support it, float16 on others, float32 on CPU), "fp32", "bf16", "fp16" or a torch dtype.
        revision: branch, tag or commit of a Hub repository.
        device_map: as in accelerate; "auto" shards over the available GPUs.

    Returns:
        (model, processor).

    Raises:
        OSError: files are missing or cannot be fetched; says what to do.
        TypeError: the checkpoint's class is not supported; lists the supported ones.
        ValueError: the dtype or the device is unknown.
    """
    import transformers

    source, label = _source(name)
    target = _device(device)
    kind = _dtype(dtype, target)
    offline = f"download it first where there is a network (hf download {source}), or pass a local folder"
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision)
    except ValueError as error:
        raise TypeError(f"{label} is not a model that transformers knows ({_first_line(error)}); supported are {supported()}") from None
    except OSError as error:
        advice = "check the path" if Path(str(name)).exists() else offline
        raise OSError(f"{label} cannot be loaded ({_first_line(error)}): {advice}") from None
    text = getattr(getattr(config, "text_config", None), "model_type", None)
    if config.model_type not in FAMILIES or text not in TEXT_FAMILIES:
        raise TypeError(f"{label} is a {config.model_type!r} model with text model {text!r}; supported are {supported()}")
    cls = getattr(transformers, FAMILIES[config.model_type].model_class)
    try:
        model = cls.from_pretrained(source, revision=revision, dtype=kind, device_map=device_map, use_safetensors=True)
        processor = transformers.AutoProcessor.from_pretrained(source, revision=revision)
    except OSError as error:
        raise OSError(f"{label} is incomplete ({_first_line(error)}): {offline}") from None
    if device_map is None:
        model = model.to(target)
    describe(model)
    _complete(processor, config)
    return model.eval(), processor


def _source(name: str | Path) -> tuple[str, str]:
    if str(name) == "tiny":
        if not (TINY / "config.json").exists():
            raise OSError(f"the bundled model is missing from {TINY}: install or clone the project again, or run avl train-tiny --out")
        return str(TINY), "the bundled model"
    if str(name) in CHECKPOINTS:
        return CHECKPOINTS[str(name)], str(name)
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise OSError(f"{path} holds no config.json: pass the folder that save_pretrained or hf download wrote")
        return str(path), str(path)
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") != 1:
        names = ", ".join(["tiny", *CHECKPOINTS])
        raise OSError(f"there is no model {name}: pass one of {names}, a Hub id like llava-hf/llava-1.5-7b-hf, or a folder")
    return str(name), str(name)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r} is unknown: use auto, cpu, cuda or cuda:N") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} needs an NVIDIA GPU and a CUDA build of torch, neither is found here: use device='cpu'")
    return target


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".:")[:200] if str(error).strip() else type(error).__name__


def _complete(processor: Any, config: Any) -> None:
    """Fill in processor settings that old checkpoints lack, without which image placeholders are not expanded to image tokens."""
    processor.tokenizer.padding_side = "left"
    if getattr(processor, "patch_size", None) is None:
        processor.patch_size = config.vision_config.patch_size
        processor.num_additional_image_tokens = 1
    if getattr(processor, "vision_feature_select_strategy", None) is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy


def model_name(model: Any) -> str:
    """Return a name to show: "tiny" for the bundled model, a Hub id, or the folder's name (never its path)."""
    path = name_or_path(model.config)
    if path == str(TINY):
        return "tiny"
    return Path(path).name if Path(path).exists() else path or type(model).__name__
