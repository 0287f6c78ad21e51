"""Telemetry: device memory and power (pynvml), torch's allocator, process memory, and a description of the machine."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")

_nvml_lock = threading.Lock()
_nvml_state: dict[str | int, Any] = {}


def _nvml(device: torch.device) -> tuple[Any, Any] | str:
    """Return pynvml's (module, handle) for a CUDA device, or the reason why there is none."""
    if device.type != "cuda":
        return "n/a (no NVIDIA GPU)"
    with _nvml_lock:
        if "module" not in _nvml_state:
            try:
                import pynvml

                pynvml.nvmlInit()
                _nvml_state["module"] = pynvml
            except Exception as error:  # without driver, permission or library there are no readings; never crash
                _nvml_state["module"] = f"n/a ({type(error).__name__})"
        module = _nvml_state["module"]
        if isinstance(module, str):
            return module
        number = device.index if device.index is not None else torch.cuda.current_device()
        if number not in _nvml_state:
            _nvml_state[number] = _handle(module, number)
        handle = _nvml_state[number]
        return handle if isinstance(handle, str) else (module, handle)


def _handle(module: Any, number: int) -> Any:
    """Return NVML's handle of CUDA device ``number``, or the reason why there is none.

    By UUID alone: CUDA renumbers devices (CUDA_VISIBLE_DEVICES) and shows slices of a GPU (MIG) as devices, so the same index may mean
    another GPU to NVML, and its readings would be another's.
    """
    reason = "n/a (NVML does not know this device)"
    try:
        uuid = torch.cuda.get_device_properties(number).uuid
    except Exception as error:
        return f"n/a ({type(error).__name__})"
    for kind in ("GPU", "MIG"):
        try:
            return module.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}".encode())
        except Exception as error:  # unknown to NVML, or no permission
            reason = f"n/a ({type(error).__name__})"
    return reason


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver (pynvml); None where there is none, or it does not tell."""
    try:
        import pynvml

        pynvml.nvmlInit()
        told = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # no library, no driver, no permission
        return None
    return told.decode() if isinstance(told, bytes) else str(told)


def device_used_bytes(device: torch.device) -> int | None:
    """Return the memory in use on the whole device, by all processes (pynvml); None if unavailable."""
    nvml = _nvml(device)
    if isinstance(nvml, str):
        return None
    try:
        return int(nvml[0].nvmlDeviceGetMemoryInfo(nvml[1]).used)
    except Exception:
        return None


def device_power_watts(device: torch.device) -> float | None:
    """Return the power draw of the device (pynvml); None if unavailable."""
    nvml = _nvml(device)
    if isinstance(nvml, str):
        return None
    try:
        return nvml[0].nvmlDeviceGetPowerUsage(nvml[1]) / 1000
    except Exception:
        return None


def idle(device: torch.device) -> dict[str, Any]:
    """Return readings between runs, for the page's header; None for values that are unavailable.

    Returns:
        ``used_bytes`` and ``total_bytes`` of the device (pynvml, all processes), ``power_watts``, ``rss_bytes`` of this process, and
        ``free_bytes``: memory available to a cache, on the GPU or in main memory.
    """
    nvml = _nvml(device)
    total = None
    if not isinstance(nvml, str):
        try:
            total = int(nvml[0].nvmlDeviceGetMemoryInfo(nvml[1]).total)
        except Exception:
            total = None
    return {
        "used_bytes": device_used_bytes(device),
        "total_bytes": total,
        "power_watts": device_power_watts(device),
        "rss_bytes": psutil.Process().memory_info().rss,
        "free_bytes": free_bytes(device),
    }


def free_bytes(device: torch.device) -> int:
    """Return the memory that a run could take now, on the GPU or in main memory."""
    if device.type != "cuda":
        return main_memory()[0]
    # the driver counts memory that torch's allocator has reserved but does not use; it is free for us
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def main_memory() -> tuple[int, int]:
    """Return the bytes of main memory that this process could still take, and those it could have at most: a container has its own."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for most, used in _container_memory():
        free, total = min(free, max(0, most - used)), min(total, most)
    return free, total


def _container_memory() -> Iterator[tuple[int, int]]:
    """Yield (limit, in use without what can be dropped) of every control group around this process that has a limit."""
    try:
        groups = [line.split(":", 2) for line in (PROC / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return
    for number, controllers, path in groups:
        if number == "0":  # version 2
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inside = root / path.strip("/")
        # a container may see its own group as the root, and the path from outside
        for folder in dict.fromkeys([inside, *inside.parents, root]):
            if folder == root or root in folder.parents:
                try:
                    most, used = ((folder / name).read_text().strip() for name in names[:2])
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    if most != "max":
                        yield int(most), int(used) - int(stat.get(names[2], 0))
                except (OSError, ValueError):
                    continue


def gpu_trouble() -> str | None:
    """Return why a CUDA build of torch has no GPU to use, in the driver's words; None where it has one, and for other builds."""
    if torch.version.cuda is None or torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except Exception as error:
        lines = str(error).strip().splitlines()
        return lines[0].rstrip(".") if lines else type(error).__name__
    return "no GPU is found"


def settle(device: torch.device) -> None:
    """Return torch's cached blocks to the device, so that pynvml next reads only the memory in use."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


class Meter:
    """Memory readings of a run, relative to the level at the meter's creation."""

    def __init__(self, device: torch.device) -> None:
        settle(device)
        self._device = device
        self._base = device_used_bytes(device)
        self._process = psutil.Process()

    def read(self) -> dict[str, Any]:
        """Return current readings as the fields of a ``Reading`` event; None for values that are unavailable."""
        used = device_used_bytes(self._device)
        nvml = _nvml(self._device)
        return {
            "device_bytes": None if used is None or self._base is None else used - self._base,
            "allocated_bytes": torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else None,
            "rss_bytes": self._process.memory_info().rss,
            "power_watts": device_power_watts(self._device),
            "note": nvml if isinstance(nvml, str) else "",
        }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine_card(device: torch.device | None = None) -> dict[str, Any]:
    """Return hardware and versions for traces, reports and benchmarks, without anything that identifies the machine.

    Args:
        device: the GPU to describe, the current one by default.
    """
    card: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in ("transformers", "triton", "accelerate", "gradio", "plotly"):
        card[name] = package_version(name)
    if torch.cuda.is_available():
        number = None if device is None or device.type != "cuda" else device.index
        properties = torch.cuda.get_device_properties(torch.cuda.current_device() if number is None else number)
        card |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
        card |= {"gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
    return card
