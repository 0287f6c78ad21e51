"""What a failure of the device means: out of memory, or lost until the process ends."""

from __future__ import annotations

import torch

OUT_OF_MEMORY = "the device ran out of memory: lower the batch, S, or max new tokens, or use a smaller image"

# torch's CPU allocator and the libraries below it raise a plain RuntimeError
_NO_MEMORY = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

# after these every further CUDA call of the process fails
_LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "launch timed out",
    "uncorrectable ECC",
    "fallen off the bus",
    "no CUDA-capable device",
    "device lost",
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether a device, or this machine, had too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "OutOfMemory" in type(error).__name__:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def device_lost(error: BaseException) -> bool:
    """Return whether the device cannot be used again before the process is restarted."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
