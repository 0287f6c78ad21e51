"""The machine that this runs on, measured now."""

from __future__ import annotations

import torch

from avl.bench.hardware import Machine
from avl.bench.measure import matrix_flops
from avl.kernels.bench.timing import measure_bandwidth
from avl.kernels.launch import on_device
from avl.telemetry import machine_card

HERE = "here"
"""Name of this machine among GPUs."""


@torch.inference_mode()
def this_machine() -> Machine:
    """Return the current GPU, or this CPU, with its rates as measured within a second or two."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    card = machine_card(device)
    with on_device(device):
        copy = measure_bandwidth(device, 2, 0.02, None if cuda else 1 << 28)["copy"]
        flops = matrix_flops(device, torch.bfloat16 if cuda else torch.float32)
    memory = card["gpu_memory_bytes"] if cuda else card["memory_bytes"]
    return Machine(HERE, f"{card['gpu'] or card['cpu']}, measured", copy * 1e9, flops, memory, "measured now: copy and matrix product")
