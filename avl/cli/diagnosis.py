"""What is installed on this machine and what will run where: versions, GPU and NVML, Triton, model files, disk."""

from __future__ import annotations

import importlib
import platform
import shutil
import sys

import torch

from avl._paths import ASSETS, KERNELS
from avl.cli.surroundings import Row, folders, hub_folder, variables
from avl.kernels import numba_trouble, resolve_impl, triton_trouble
from avl.models.checkpoints import CHECKPOINTS
from avl.models.source import TINY
from avl.telemetry import (
    device_power_watts,
    device_used_bytes,
    driver_version,
    gpu_trouble,
    machine_card,
    main_memory,
    package_version,
)

NEEDED = (
    *("torch", "transformers", "accelerate", "triton", "numba", "huggingface-hub", "safetensors", "tokenizers", "nvidia-ml-py", "psutil"),
    *("pillow", "numpy", "rich", "typer"),
)
OPTIONAL = {"gradio": "page", "plotly": "page", "matplotlib": "bench"}
"""Package -> the extra that brings it."""


def findings() -> list[Row]:
    """Everything looked at, as (state, what, detail); state is "ok", "note" or "missing"."""
    card = machine_card()
    place = "a checkout" if KERNELS.parent == ASSETS.parent and KERNELS.name == "kernels" else "installed"
    rows: list[Row] = [("ok", "avl", f"{importlib.import_module('avl').__version__}, {place}")]
    rows.append(("ok" if sys.version_info >= (3, 11) else "missing", "python", f"{card['python']} on {platform.platform()}"))
    for name in NEEDED:
        found = package_version(name)
        if found is None and name in ("triton", "numba"):
            where = {"triton": "a GPU", "numba": "a CPU"}[name]
            rows.append(("note", name, f"absent: on {where} torch's operations run instead of our kernels"))
        else:
            rows.append(("ok" if found else "missing", name, found or "absent: install this package together with what it depends on"))
    for name, extra in OPTIONAL.items():
        found = package_version(name)
        rows.append(("ok" if found else "note", name, found or f"absent: the extra [{extra}] of this package brings it"))
    free, total = main_memory()
    rows.append(("ok", "cpu", f"{card['cpu']}, {card['cores']} cores"))
    rows.append(("ok", "main memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    return [*rows, *_devices(), *_attention(), *_files(), *folders(KERNELS), *variables()]


def _devices() -> list[Row]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda is not None else "CPU only"
    driver, count = driver_version(), torch.cuda.device_count()
    rows: list[Row] = [("ok", "torch build", build)]
    rows.append(("note" if driver is None and torch.version.cuda else "ok", "driver", driver or "no NVIDIA driver answers"))
    trouble = gpu_trouble()
    if trouble is not None:
        rows.append(("note", "gpu", f"torch is a CUDA build, but no GPU can be used ({trouble}): everything runs on the CPU"))
    elif not torch.cuda.is_available():
        rows.append(("note", "gpu", "none (torch is a CPU build): everything runs on the CPU, device memory reads n/a"))
    for number in range(count):
        device = torch.device("cuda", number)
        properties = torch.cuda.get_device_properties(number)
        used, watts = device_used_bytes(device), device_power_watts(device)
        nvml = "no NVML reading" if used is None else f"NVML: {used / 2**30:.1f} GiB in use" + ("" if watts is None else f", {watts:.0f} W")
        capability = f"compute capability {properties.major}.{properties.minor}"
        rows.append(("ok", f"gpu {number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}, {nvml}"))
    spread = f"auto spreads a model over {count} GPUs, layer after layer; steps then run the model's own modules, without CUDA graphs"
    alone = f"one device ({'gpu 0' if count else 'cpu'}), nothing to spread a model over"
    rows.append(("ok", "device map", spread if count > 1 else alone))
    return rows


def _attention() -> list[Row]:
    """Return what runs a decode step here, and why the others do not."""
    rows: list[Row] = []
    kind = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    words = {"triton": "our Triton kernel", "numba": "our kernels, compiled by numba", "reference": "torch's operations"}
    chosen = resolve_impl(kind)
    how = "replayed as CUDA graphs" if kind.type == "cuda" else "whole steps in one call" if chosen == "numba" else "eager"
    for number in range(torch.cuda.device_count()):
        if (trouble := triton_trouble(torch.device("cuda", number))) is not None:
            rows.append(("note", f"kernels, gpu {number}", f"our Triton kernels are not used: {trouble}"))
    if kind.type == "cpu" and (trouble := numba_trouble()) is not None:
        rows.append(("note", "kernels, cpu", f"our kernels for a CPU are not used, torch's operations are, which take longer: {trouble}"))
    rows.append(("ok", "attention", f"prompt: torch SDPA; decode steps on {kind.type}: {words[chosen]}, {how}"))
    others = {"triton": "Triton's kernels need a GPU", "numba": "numba's kernels are for a CPU"}
    why = others["numba" if kind.type == "cuda" else "triton"]
    rows.append(("ok", "not used", why if chosen == "reference" else f"{why}; torch's operations are their specification, and slower"))
    return rows


def _files() -> list[Row]:
    rows: list[Row] = []
    shards = sorted(TINY.glob("*.safetensors"))
    size = sum(shard.stat().st_size for shard in shards)
    complete = bool(shards) and (TINY / "config.json").exists()
    detail = f"{size / 2**20:.1f} MiB, bundled" if complete else f"absent from {TINY}"
    rows.append(("ok" if complete else "missing", "model tiny", detail))
    hub = hub_folder()
    folders = {name: hub / f"models--{repository.replace('/', '--')}" for name, repository in CHECKPOINTS.items()}
    there = [name for name, folder in folders.items() if any(folder.glob("snapshots/*/*.safetensors"))]
    rows += [("ok", f"model {name}", f"downloaded ({CHECKPOINTS[name]})") for name in there]
    others = [name for name in CHECKPOINTS if name not in there]
    rows += [("note", "other models", f"not downloaded: {', '.join(others)}")] if others else []
    free = shutil.disk_usage(next(one for one in (hub, *hub.absolute().parents) if one.exists())).free
    rows.append(("ok" if free > 30 * 2**30 else "note", "disk", f"{free / 2**30:.0f} GiB free for models; a 7B model takes 14"))
    return rows
