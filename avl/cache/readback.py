"""Asynchronous copies of small tensors from a device to the host."""

from __future__ import annotations

import torch


class Readback:
    """A copy of ``tensor`` in its current state; reading it does not wait for work queued later.

    On a GPU the copy goes to pinned memory and an event marks its end; on a CPU it is immediate.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._copy = tensor.clone()

    def get(self) -> torch.Tensor:
        """Return the copy on the host; waits for nothing but the copy."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy
