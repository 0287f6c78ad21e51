"""Launching Triton kernels on the device that holds the tensors."""

import contextlib

import torch

OPTIONS = {"enable_fp_fusion": True}
"""Of every launch: a product and a sum are one rounding, whatever the default of this version of Triton."""


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which Triton launches on `device`: it takes the current one, which need not be the tensors'."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()
