"""Small tensors on their way from a device to the host, while the device goes on with its work."""

from __future__ import annotations

import torch


class Readback:
    """A copy of ``tensor`` as it is now, read when somebody asks for it; what is queued behind it is not waited for.

    On a GPU the copy goes to pinned memory and an event marks its end; on a CPU it is made at once.
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
        """The copy, on the host; waits for it alone."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy
