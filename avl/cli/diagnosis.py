"""What is installed on this machine and what will run where: versions, GPU and NVML, Triton, model files, disk."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from avl._paths import ASSETS
from avl.kernels import resolve_impl, triton_trouble
from avl.models.checkpoints import CHECKPOINTS
from avl.models.source import TINY
from avl.telemetry import device_power_watts, device_used_bytes, machine_card, package_version

NEEDED = ("torch", "transformers", "accelerate", "triton", "nvidia-ml-py", "psutil", "pillow", "numpy", "rich", "typer")
OPTIONAL = {"gradio": "page", "plotly": "page", "matplotlib": "bench"}
"""Package -> the extra that brings it."""


def findings() -> list[tuple[str, str, str]]:
    """Everything looked at, as (state, what, detail); state is "ok", "note" or "missing"."""
    card = machine_card()
    rows = [("ok" if sys.version_info >= (3, 11) else "missing", "python", card["python"])]
    for name in NEEDED:
        found = package_version(name)
        if found is None and name == "triton":
            rows.append(("note", name, "absent: on a GPU the torch reference runs instead of our kernel"))
        else:
            rows.append(("ok" if found else "missing", name, found or "absent: install this package together with what it depends on"))
    for name, extra in OPTIONAL.items():
        found = package_version(name)
        rows.append(("ok" if found else "note", name, found or f"absent: the extra [{extra}] of this package brings it"))
    rows.append(("ok", "cpu", f"{card['cpu']}, {card['cores']} cores, {card['memory_bytes'] / 2**30:.0f} GiB"))
    rows += _devices()
    rows += _files()
    return rows


def _devices() -> list[tuple[str, str, str]]:
    rows = []
    if not torch.cuda.is_available():
        reason = "torch is a CPU build" if torch.version.cuda is None else "torch finds no NVIDIA GPU or driver"
        rows.append(("note", "gpu", f"none ({reason}): everything runs on the CPU, device memory reads n/a"))
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        properties = torch.cuda.get_device_properties(number)
        used, watts = device_used_bytes(device), device_power_watts(device)
        nvml = "no NVML reading" if used is None else f"NVML: {used / 2**30:.1f} GiB in use" + ("" if watts is None else f", {watts:.0f} W")
        rows.append(("ok", f"gpu {number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {nvml}"))
    kind = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    words = {"triton": "our Triton kernel", "reference": "the torch reference of our kernel"}
    how = "replayed as CUDA graphs" if kind.type == "cuda" else "eager"
    for number in range(torch.cuda.device_count()):
        if (trouble := triton_trouble(torch.device("cuda", number))) is not None:
            rows.append(("note", f"kernels, gpu {number}", f"our Triton kernels are not used: {trouble}"))
    rows.append(("ok", "attention", f"prompt: torch SDPA; decode steps on {kind.type}: {words[resolve_impl(kind)]}, {how}"))
    return rows


def _files() -> list[tuple[str, str, str]]:
    rows = []
    shards = sorted(TINY.glob("*.safetensors"))
    size = sum(shard.stat().st_size for shard in shards)
    complete = bool(shards) and (TINY / "config.json").exists()
    detail = f"{size / 2**20:.1f} MiB, bundled" if complete else f"absent from {TINY}"
    rows.append(("ok" if complete else "missing", "model tiny", detail))
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub")
    folders = {name: hub / f"models--{repository.replace('/', '--')}" for name, repository in CHECKPOINTS.items()}
    there = [name for name, folder in folders.items() if any(folder.glob("snapshots/*/*.safetensors"))]
    rows += [("ok", f"model {name}", f"downloaded ({CHECKPOINTS[name]})") for name in there]
    others = [name for name in CHECKPOINTS if name not in there]
    rows += [("note", "other models", f"not downloaded: {', '.join(others)}")] if others else []
    free = shutil.disk_usage(hub if hub.exists() else ASSETS).free
    rows.append(("ok" if free > 30 * 2**30 else "note", "disk", f"{free / 2**30:.0f} GiB free for models; a 7B model takes 14"))
    return rows
