"""From a name to a model and its processor, from a picture and a question to the model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from avl.architectures import SUPPORTED, TEXT_MODELS, describe
from avl.trace import Grid

ASSETS = Path(__file__).resolve().parents[1] / "assets"
TINY = ASSETS / "tiny"

CHECKPOINTS: dict[str, str] = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "llava-1.6-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-1.6-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
}
"""Short names of the checkpoints that the paper and this project speak of; ``tiny`` is the bundled one."""

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
    """Load a LLaVA and its processor, ready for inference; left padding is set.

    Args:
        name: "tiny" (bundled), a key of :data:`CHECKPOINTS`, any Hub id of a supported class, or a local folder.
        device: "auto" (CUDA where there is one), "cuda", "cuda:1", "cpu", …; ignored with ``device_map``.
        dtype: "auto" (bfloat16 on a GPU that has it, float16 on others, float32 on CPU), "fp32", "bf16", "fp16" or a torch dtype.
        revision: branch, tag or commit of a Hub repository. device_map: as in accelerate, "auto" shards over the GPUs there are.

    Returns:
        (model, processor).

    Raises:
        OSError: the files are missing, or cannot be fetched; says what to do.
        TypeError: the checkpoint is of an unsupported class; lists what is supported.
        ValueError: an unknown dtype or device.
    """
    import transformers

    source, label = _source(name)
    target = _device(device)
    kind = _dtype(dtype, target)
    offline = f"download it first where there is a network (hf download {source}), or pass a local folder"
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision)
    except ValueError as error:
        known = " and ".join(SUPPORTED)
        raise TypeError(f"{label} is not a model that transformers knows ({_first_line(error)}); supported are {known}") from None
    except OSError as error:
        advice = "check the path" if Path(str(name)).exists() else offline
        raise OSError(f"{label} cannot be loaded ({_first_line(error)}): {advice}") from None
    classes = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}
    text = getattr(getattr(config, "text_config", None), "model_type", None)
    if config.model_type not in classes or text not in TEXT_MODELS:
        raise TypeError(
            f"{label} is a {config.model_type!r} model with text model {text!r}; "
            f"supported are {' and '.join(SUPPORTED)} with {' or '.join(TEXT_MODELS)} text models"
        )
    cls = getattr(transformers, classes[config.model_type])
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
            raise OSError("the bundled model is missing from assets/tiny: clone the repository again, or run python -m avl train-tiny")
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
    """Set what old checkpoints leave out of their processor: without it an image placeholder is not expanded to its tokens."""
    processor.tokenizer.padding_side = "left"
    if getattr(processor, "patch_size", None) is None:
        processor.patch_size = config.vision_config.patch_size
        processor.num_additional_image_tokens = 1
    if getattr(processor, "vision_feature_select_strategy", None) is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy


def model_name(model: Any) -> str:
    """Name to show: "tiny" for the bundled model, a Hub id, or a folder's own name (never this machine's path)."""
    path = str(getattr(model.config, "_name_or_path", "") or "")
    if path == str(TINY):
        return "tiny"
    return Path(path).name if Path(path).exists() else path or type(model).__name__


def chat_prompt(processor: Any, question: str, n_images: int) -> str:
    """The model's own chat template around a plain question; a text that holds image placeholders is taken as the whole prompt.

    Raises:
        ValueError: an empty question, or placeholders that do not match the number of images.
    """
    if not question or not question.strip():
        raise ValueError("the question is empty: ask something about the image")
    image_token = processor.image_token
    if image_token in question:
        if question.count(image_token) != n_images:
            raise ValueError(
                f"the prompt has {question.count(image_token)} placeholders {image_token} for {n_images} images: write one for each image"
            )
        return question
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": question.strip()}]
    if getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None):
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    # checkpoints without a template are of the LLaVA-1.5 family, whose model card gives this form
    images = f"{image_token}\n" * n_images
    return f"USER: {images}{question.strip()} ASSISTANT:"


def prepare(model: Any, processor: Any, images: Sequence[Image.Image], question: str) -> tuple[dict[str, Any], str]:
    """Model inputs of one request, on the model's device, and the prompt they come from. Raises ValueError as :func:`chat_prompt`."""
    if not images:
        raise ValueError("there is no image: upload one, or pick an example")
    prompt = chat_prompt(processor, question, len(images))
    inputs = processor(images=list(images), text=prompt, return_tensors="pt")
    kept = {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
    moved = {key: value.to(model.device) for key, value in inputs.items() if key in kept}
    moved["pixel_values"] = moved["pixel_values"].to(model.dtype)
    return moved, prompt


def repeat(inputs: dict[str, Any], batch: int) -> dict[str, Any]:
    """The same request ``batch`` times: every tensor repeated along its first dimension."""
    return {key: torch.cat([value] * batch) if batch > 1 else value for key, value in inputs.items()}


def image_grids(model: Any, processor: Any, sizes: Sequence[tuple[int, int]]) -> tuple[Grid, ...]:
    """Which part of which picture every image token covers.

    Args:
        sizes: (width, height) of each picture as given to the processor.
    """
    config = model.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    class_token = 0 if config.vision_feature_select_strategy == "default" else 1
    grids: list[Grid] = []
    first = 0
    for number, (width, height) in enumerate(sizes):
        first += class_token
        if config.model_type == "llava":
            grids.append(Grid(number, first, side, side, False, _crop(processor, width, height)))
            first += side * side
            continue
        whole = (0.0, 0.0, float(width), float(height))
        grids.append(Grid(number, first, side, side, False, whole))
        first += side * side
        rows, cols = _unpadded(config, side, width, height)
        grids.append(Grid(number, first, rows, cols, True, whole))
        first += rows * (cols + 1)
    return tuple(grids)


def _crop(processor: Any, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a picture that LLaVA-1.5 sees: its image processor scales the shorter edge and cuts out the centre."""
    image_processor = processor.image_processor
    edge = image_processor.size.get("shortest_edge")
    if not (image_processor.do_resize and edge and image_processor.do_center_crop):
        return (0.0, 0.0, float(width), float(height))
    scale = min(width, height) / edge
    crop_width, crop_height = image_processor.crop_size["width"] * scale, image_processor.crop_size["height"] * scale
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return (left, top, left + crop_width, top + crop_height)


def _unpadded(config: Any, side: int, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of LLaVA-1.6's tile features after the padding was cut off, as its modeling code does."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    tiles = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, config.vision_config.image_size)
    features = torch.empty(1, tiles[0] * side, tiles[1] * side, device="meta")
    return tuple(unpad_image(features, (height, width)).shape[1:])
