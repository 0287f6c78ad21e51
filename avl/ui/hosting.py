"""Where the page runs: on a machine of one's own, or on a Hugging Face Space with a CPU, a GPU, or ZeroGPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

TRUE = ("1", "t", "true")
"""What the library ``spaces`` takes for true."""

ZERO = (
    "ZeroGPU: every question gets a GPU for some seconds of its visitor's daily quota. A question after a pause also pays for a new "
    "process, which is told beside its answer."
)
CPU = "This Space has no GPU. Times are those of its CPU."
GPU = "This Space has a GPU of its own, which visitors share one run at a time."


def on_zero_gpu() -> bool:
    """Return whether this is a Space on ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in TRUE


def zero_gpu() -> Callable[..., Any] | None:
    """Return ZeroGPU's decorator on a Space that has it, else None. Call it before CUDA is touched and before Gradio is imported.

    Raises:
        OSError: its library is missing; one sentence.
    """
    if not on_zero_gpu():
        return None
    try:
        import spaces
    except ImportError as error:
        raise OSError(
            f"SPACES_ZERO_GPU is set, but the package spaces cannot be imported ({error}): install it, or unset the variable"
        ) from None
    spaces.disable_gradio_auto_wrap()  # it would take every handler of the page for a function that needs a GPU
    decorator: Callable[..., Any] = spaces.GPU
    return decorator


def notes(device: str) -> tuple[str, ...]:
    """Return what a visitor of a Space should know of its hardware; nothing elsewhere.

    Args:
        device: the model's.
    """
    if on_zero_gpu():
        return (ZERO,)
    if not os.environ.get("SPACE_ID"):
        return ()
    return (GPU if device.startswith("cuda") else CPU,)
