"""What GPUs could reach at most, by their makers' data sheets, and what committed benchmarks measured on their machines."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl._paths import ASSETS

BENCHES = ASSETS / "bench"


@dataclass(frozen=True)
class Machine:
    """What something computes on.

    Attributes:
        name: for command lines and programs.
        label: for people.
        bytes_per_s: of its memory.
        flops: 16-bit operations per second of its matrix units, dense, sums in float32.
        memory_bytes: of it, 10^9 for each GB of the data sheet: a driver shows a little more, which libraries then take.
        source: where the numbers are from.
        pattern: regular expression that finds it in the name that its driver gives.
    """

    name: str
    label: str
    bytes_per_s: float
    flops: float
    memory_bytes: float
    source: str
    pattern: str = ""


def _gpu(name: str, label: str, gb_per_s: float, tflops: float, gb: float, source: str, pattern: str) -> Machine:
    return Machine(name, label, gb_per_s * 1e9, tflops * 1e12, gb * 1e9, source, pattern)


GPUS: dict[str, Machine] = {
    gpu.name: gpu
    for gpu in (
        # FLOPS in data sheets are often those "with sparsity"; here are the dense ones, half of these
        _gpu("t4", "T4 16 GB", 320, 65, 16, "NVIDIA T4 data sheet; float16 only", r"\bT4\b"),
        _gpu("l4", "L4 24 GB", 300, 121, 24, "NVIDIA L4 data sheet: 242 TFLOPS with sparsity", r"\bL4\b"),
        _gpu("a10g", "A10G 24 GB", 600, 70, 24, "NVIDIA A10G data sheet: 140 TFLOPS with sparsity", r"\bA10G\b"),
        _gpu("a40", "A40 48 GB", 696, 149.7, 48, "NVIDIA A40 data sheet; the A-VL paper's GPU", r"\bA40\b"),
        _gpu("l40s", "L40S 48 GB", 864, 362, 48, "NVIDIA L40S data sheet: 733 TFLOPS with sparsity", r"\bL40S\b"),
        _gpu("rtx-4090", "RTX 4090 24 GB", 1008, 165.2, 24, "NVIDIA Ada white paper, sums in float32", r"RTX 4090\b(?! Laptop)"),
        _gpu("a100-40", "A100 40 GB", 1555, 312, 40, "NVIDIA A100 data sheet", r"A100.*40GB"),
        _gpu("a100-80", "A100 80 GB", 2039, 312, 80, "NVIDIA A100 80GB SXM data sheet", r"A100.*80GB"),
        _gpu("h100", "H100 80 GB", 3350, 989, 80, "NVIDIA H100 SXM data sheet: 1979 TFLOPS with sparsity", r"H100 80GB HBM3"),
        _gpu("h200", "H200 141 GB", 4800, 989, 141, "NVIDIA H200 SXM data sheet: 1979 TFLOPS with sparsity", r"\bH200\b"),
    )
}


def gpu_called(driver_name: str) -> Machine | None:
    """Return the GPU that a driver names, such as "NVIDIA H100 80GB HBM3"; None where it is none of these."""
    return next((gpu for gpu in GPUS.values() if re.search(gpu.pattern, driver_name)), None)


@dataclass(frozen=True)
class Measured:
    """A committed result of ``avl bench``: its machine with measured rates, and the time of a step at each batch under each policy."""

    machine: Machine
    hardware: str
    model: str
    date: str
    n_image: int
    n_text: int
    new_tokens: int
    points: tuple[dict[str, Any], ...]


def measured(folder: Path = BENCHES) -> list[Measured]:
    """Return the committed results in a folder; none where there is no such folder, as in a wheel."""
    found = []
    for file in sorted(folder.glob("*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(document, dict) and str(document.get("schema", "")).startswith("avl.bench/") and document.get("rows"):
            found.append(_measured(file.stem, document))
    return found


def _measured(name: str, result: dict[str, Any]) -> Measured:
    card, request, rates = result["machine"], result["request"], result["bandwidth"]
    hardware = card["gpu"] or card["cpu"]
    memory = card.get("gpu_memory_bytes") or card["memory_bytes"]
    date = result["date"][:10]
    points = tuple(
        {
            "batch": row["batch"],
            "label": result["arms"][row["arm"]]["label"],
            "policy": result["arms"][row["arm"]]["policy"],
            "ms": row["tpot_ms"]["median"],
            "low": row["tpot_ms"]["q1"],
            "high": row["tpot_ms"]["q3"],
        }
        for row in result["rows"]
    )
    cores = "" if card["gpu"] else f", {card['threads']} thread{'s' if card['threads'] != 1 else ''}"
    machine = Machine(
        *(name, f"{hardware}{cores}, measured", rates["copy"] * 1e9, rates["tflops"] * 1e12, memory),
        f"avl bench of {date}: copy and matrix product",
    )
    return Measured(machine, hardware, result["model"]["name"], date, request["n_image"], request["n_text"], request["new_tokens"], points)
