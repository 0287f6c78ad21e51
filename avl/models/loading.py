"""Loading a model and its processor by name."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from avl._compat import name_or_path, set_commit_hash
from avl.models.families import describe, family_of, supported
from avl.models.families.base import Family
from avl.models.families.refusals import remote
from avl.models.files import check_present, check_report, check_texts, check_weights
from avl.models.memory import check_memory
from avl.models.pictures_only import read_processor
from avl.models.processing import check_processor, complete
from avl.models.progress import Report, reported
from avl.models.source import TINY, Source, find_source
from avl.telemetry import gpu_trouble

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES |= {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path = "tiny",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    progress: Report | None = None,
) -> tuple[Any, Any]:
    """Load a model and its processor for inference, with left padding.

    A checkpoint loads whole or not at all: nothing of it is initialized at random, and its processor fits its model. Only the processor's
    part for videos is left out where it cannot be had, which needs torchvision. Whether it fits is known from its config, before its
    weights are fetched; a large model runs on a CPU only where ``device`` and ``dtype`` say so.

    Args:
        name: "tiny" (bundled), a key of :data:`CHECKPOINTS`, the Hub id of a model of a supported class, or a local folder.
        device: "auto" (CUDA if available), "cuda", "cuda:1", "cpu", …; ignored with ``device_map``.
        dtype: "auto" (bfloat16 on GPUs that support it, float16 on others, float32 on CPU), "fp32", "bf16", "fp16" or a torch dtype.
        revision: branch, tag or commit of a Hub repository.
        device_map: as in accelerate; "auto" shards over the available GPUs.
        progress: hears how much is downloaded and loaded, as (what, done, total, unit).

    Returns:
        (model, processor).

    Raises:
        OSError: files are missing, damaged, of another model, or cannot be fetched; names the file or the weight and says what to do.
        TypeError: the checkpoint's class is not supported, lists the supported ones; or an argument has a wrong type.
        ValueError: the dtype, the device or the device map is unknown, or does not hold the model; or a large one would run on a CPU.
    """
    source = find_source(name, revision)
    target = _device(device)
    kind = _dtype(dtype, target)
    _check_map(device_map)
    if source.local:
        check_texts(source, Path(source.place))
    config = _config(source)
    family = _family(source, config)
    if not family.pictures:
        raise TypeError(
            f"{source.label} cannot be used: {family.model_class} takes no pictures, and avl.load takes {supported()}: load it with "
            "transformers and pass it to avl.attach"
        )
    _check_sizes(source, config, device, target, dtype, kind, device_map)
    processor = _processor(source, config)
    return _whole(source, family, target, kind, device_map, progress), processor


def load_language(
    name: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", revision: str | None = None
) -> tuple[Any, Any] | None:
    """Load a language model that takes no pictures, and its tokenizer, with left padding; None where the model does take pictures.

    Args:
        name: as in :func:`load`, for which the short names are.
        device: as in :func:`load`.
        dtype: as in :func:`load`.
        revision: as in :func:`load`.

    Returns:
        (model, tokenizer), or None.

    Raises:
        OSError, TypeError, ValueError: as in :func:`load`.
    """
    import transformers

    source = find_source(name, revision)
    target = _device(device)
    kind = _dtype(dtype, target)
    config = _config(source)
    family = _family(source, config)
    if family.pictures:
        return None
    _check_sizes(source, config, device, target, dtype, kind, None)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.place, revision=source.revision, padding_side="left")
    except Exception as error:
        raise source.broken(f"has a tokenizer that cannot be read ({source.quoted(error)})") from error
    return _whole(source, family, target, kind, None, None), tokenizer


def _family(source: Source, config: Any) -> Family:
    try:
        return family_of(config)
    except TypeError as error:
        raise TypeError(f"{source.label} cannot be used: {error}") from None


def _check_sizes(source: Source, config: Any, device: Any, target: torch.device, dtype: Any, kind: torch.dtype, device_map: Any) -> None:
    """Refuse what is quantized and what does not fit, before weights are fetched."""
    if getattr(config, "quantization_config", None) is not None:
        raise TypeError(f"{source.label} is a quantized checkpoint: pass one in float32, bfloat16 or float16")
    check_memory(source, config, device, target, dtype, kind, device_map)


def _whole(source: Source, family: Family, target: torch.device, kind: torch.dtype, device_map: Any, progress: Report | None) -> Any:
    """Return the model on its device, checked."""
    import transformers

    if source.local:
        check_weights(source, Path(source.place))
    with reported(progress) as hooked:
        model = _model(source, getattr(transformers, family.model_class), kind, device_map or _straight_to(target), hooked)
    _check_offload(source, model)
    if device_map is None:
        model = model.to(target)
    _check_finite(source, model)
    describe(model)
    if not source.local and source.folder is not None:
        set_commit_hash(model.config, source.folder.name)
    return model.eval()


def _config(source: Source) -> Any:
    import transformers

    try:
        foreign = remote(transformers.PreTrainedConfig.get_config_dict(source.place, revision=source.revision)[0])
        if foreign is None:
            return transformers.AutoConfig.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)
    except Exception as error:
        if _unknown(error):
            raise TypeError(
                f"{source.label} is not a model that transformers knows ({source.quoted(error)}); supported are {supported()}"
            ) from None
        if source.folder is not None:
            check_texts(source, source.folder)
            raise source.broken(f"has a config.json that cannot be used ({source.quoted(error)})") from error
        raise _unreachable(source, error) from error
    raise TypeError(f"{source.label} cannot be used: {foreign}")


def _unknown(error: Exception) -> bool:
    """Return whether AutoConfig found a config of no class that it has."""
    return isinstance(error, ValueError) and ("nrecognized model" in str(error) or "does not recognize" in str(error))


def _unreachable(source: Source, error: Exception) -> OSError:
    return OSError(
        f"{source.label} cannot be loaded ({source.quoted(error)}): download it first where there is a network (hf download "
        f"{source.place}), or pass a local folder"
    )


def _processor(source: Source, config: Any) -> Any:
    if source.local:
        check_present(source, Path(source.place))
    try:
        processor = read_processor(source.place, source.revision, source.folder, config)
    except Exception as error:
        what = _absent_package(source, error)
        if what is not None:
            raise OSError(f"{source.label} has a processor that needs {what}: install it in the release that fits this torch") from error
        if source.local:
            raise source.broken(f"has a processor or tokenizer that cannot be read ({_reader(source)}{source.quoted(error)})") from error
        if source.folder is not None:
            check_texts(source, source.folder)
        raise _unreachable(source, error) from error
    if not source.local and source.folder is not None:
        check_texts(source, source.folder)
        check_present(source, source.folder)
    complete(processor, config)
    check_processor(source, processor, config)
    return processor


def _absent_package(source: Source, error: Exception) -> str | None:
    """Return which package transformers misses, in words; None where an error says nothing of that."""
    named = re.search(r"requires the (\S+) library|[Pp]ackage `(\w+)` is required|[Mm]issing optional dependencies: (\w+)", str(error))
    if named is not None:
        return f"{next(filter(None, named.groups())).lower()}, which is not installed"
    return f"what is not installed ({source.quoted(error)})" if isinstance(error, ImportError) else None


def _reader(source: Source) -> str:
    """Return "tokenizer.json: " where that file is the one that cannot be read."""
    import tokenizers

    file = Path(source.place) / "tokenizer.json"
    try:
        tokenizers.Tokenizer.from_file(str(file))
    except Exception:  # the library raises plain Exception
        return "tokenizer.json: "
    return ""


def _straight_to(target: torch.device) -> dict[str, Any] | None:
    """Return the device map that loads weights onto a GPU without a copy in main memory, which may be smaller.

    None for a CPU, and on ZeroGPU, whose library moves a whole model later.
    """
    return {"": target} if target.type == "cuda" and not os.environ.get("SPACES_ZERO_GPU") else None


def _model(source: Source, cls: Any, dtype: torch.dtype, device_map: str | dict[str, Any] | None, hooked: dict[str, Any]) -> Any:
    """Return the model, loaded whole."""
    from transformers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()  # its report is a table; ours is a sentence
    try:
        model, report = cls.from_pretrained(
            source.place,
            revision=source.revision,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            output_loading_info=True,
            **hooked,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise ValueError(f"{source.label} does not fit into the memory: pass a smaller dtype, another device, or a device_map") from None
    except Exception as error:
        if not source.local and source.folder is not None:
            check_weights(source, source.folder)
        if source.local:
            raise source.broken(f"cannot be loaded ({source.quoted(error)})") from error
        raise _unreachable(source, error) from error
    finally:
        logging.set_verbosity(said)
    check_report(source, report)
    if not source.local and source.folder is not None:
        check_weights(source, source.folder)
    return model


def _check_offload(source: Source, model: Any) -> None:
    """Refuse weights that accelerate moved to the CPU or the disk and fetches for each use: the engine reads them itself."""
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        modules = sorted({name.rpartition(".")[0] for name in away})
        raise ValueError(
            f"{source.label} does not fit: device_map leaves {len(modules)} of its modules off the device ({modules[0]} is the first): "
            "pass more or larger GPUs, a smaller dtype, or device='cpu' without device_map"
        )


def _check_finite(source: Source, model: Any) -> None:
    """Refuse weights that are not finite. One pass over them: NaN or infinity is the least or the greatest value of its tensor."""
    found: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            found.setdefault(parameter.device, []).append((name, torch.stack(torch.aminmax(parameter))))
        for extremes in found.values():
            finite = torch.stack([pair for _, pair in extremes]).isfinite().all(1).tolist()
            if not all(finite):
                name, kind = extremes[finite.index(False)][0], str(model.dtype).removeprefix("torch.")
                raise OSError(
                    f"{source.label} has weights that are not finite in {kind} ({name}): pass another dtype, bfloat16 holds what float16 "
                    f"cannot, or {source.advice}"
                )


def _check_map(device_map: Any) -> None:
    known = ("auto", "balanced", "balanced_low_0", "sequential")
    if device_map is None or isinstance(device_map, dict) or device_map in known:
        return
    if not isinstance(device_map, str):
        raise TypeError(f"device_map={device_map!r} is none: pass {', '.join(known)}, a device, or a dict of modules and devices")
    try:
        torch.device(device_map)
    except RuntimeError:
        raise ValueError(f"device_map={device_map!r} is unknown: use {', '.join(known)} or a device") from None
    _device(device_map, "device_map")


def _device(device: str | torch.device, argument: str = "device") -> torch.device:
    if device == "auto":
        if (trouble := gpu_trouble()) is not None:
            log.warning("torch is a CUDA build, but no GPU can be used (%s): the CPU is used", trouble)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"{argument}={device!r} is unknown: use auto, cpu, cuda or cuda:N") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        trouble = gpu_trouble()
        if trouble is not None:
            raise ValueError(f"{argument}={device!r} cannot be used, though torch is a CUDA build ({trouble}): use device='cpu'")
        raise ValueError(f"{argument}={device!r} needs an NVIDIA GPU and a CUDA build of torch, neither is found here: use device='cpu'")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{argument}={device!r} is not there: this machine has {torch.cuda.device_count()} GPUs, numbered from 0")
    if target.type == "meta":
        raise ValueError(f"{argument}={device!r} holds no weights: use auto, cpu, cuda or cuda:N")
    return target


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        return dtype  # type: ignore[return-value]
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def model_name(model: Any) -> str:
    """Return a name to show: "tiny" for the bundled model, a Hub id, or the folder's name (never its path)."""
    path = name_or_path(model.config)
    if path == str(TINY):
        return "tiny"
    return Path(path).name if Path(path).exists() else path or type(model).__name__
