"""AdamW on float32 master weights of a model that computes in the faster dtype; the schedule follows the finished part of the stage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch


def faster_dtype(device: str) -> torch.dtype:
    """Return the dtype with the faster matrix product: bfloat16 on GPUs and CPUs with AMX, often float32 elsewhere."""
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(8192, 192, dtype=dtype, device=device), torch.ones(192, 512, dtype=dtype, device=device)
        times = []
        for _ in range(6):
            began = time.perf_counter()
            (a @ b).sum().item()  # item() waits for the result
            times.append(time.perf_counter() - began)
        took[dtype] = min(times)
    return min(took, key=lambda dtype: took[dtype])


class Optimizer:
    """AdamW with float32 master weights for modules that compute in `dtype`.

    Args:
        modules: modules to train, converted to `dtype` in place; parameters without gradients are left out.
        peak: highest learning rate.
        dtype: torch.float32 or torch.bfloat16.
        slow: modules to train at a twelfth of the rate, because an earlier stage trained them fully.
        warmup: fraction of the stage with a rising rate; a half cosine then falls to `floor * peak`.
        floor: final rate as a fraction of `peak`.
    """

    def __init__(
        self,
        modules: Iterable[torch.nn.Module],
        peak: float,
        dtype: torch.dtype,
        slow: Iterable[torch.nn.Module] = (),
        warmup: float = 0.03,
        floor: float = 0.01,
    ) -> None:
        self.peak, self.warmup, self.floor = peak, warmup, floor
        slow = list(slow)
        modules = [*modules, *slow]
        for module in modules:
            module.float()
        late = {id(p) for module in slow for p in module.parameters()}
        self.live = [p for p in dict.fromkeys(p for m in modules for p in m.parameters()) if p.requires_grad]
        self.master = [torch.nn.Parameter(p.detach().clone()) for p in self.live]
        for module in modules:
            module.to(dtype)
        groups = []
        for part, factor in ((False, 1.0), (True, 1 / 12)):
            own = [m for m, p in zip(self.master, self.live, strict=True) if (id(p) in late) is part]
            for matrix, decay in ((True, 0.02), (False, 0.0)):
                groups.append({"params": [m for m in own if (m.dim() > 1) is matrix], "weight_decay": decay, "factor": factor})
        groups = [g for g in groups if g["params"]]
        self.adam = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), eps=1e-7, fused=True)

    def rate(self, done: float) -> float:
        """Return the learning rate at the fraction `done` of the stage."""
        if done < self.warmup:
            return self.peak * (0.05 + 0.95 * done / self.warmup)
        t = min(1.0, (done - self.warmup) / (1 - self.warmup))
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * t)))

    def step(self, done: float) -> float:
        """Apply the gradients of the computing weights to the master weights, and return the gradient's norm."""
        for master, live in zip(self.master, self.live, strict=True):
            master.grad = None if live.grad is None else live.grad.float()
            live.grad = None
        norm = 0.0
        for group in self.adam.param_groups:
            group["lr"] = self.rate(done) * group["factor"]
            norm = max(norm, torch.nn.utils.clip_grad_norm_(group["params"], 1.0).item())
        if math.isfinite(norm):
            self.adam.step()
        self.publish()
        return norm

    def publish(self) -> None:
        """Copy the master weights into the computing model."""
        with torch.no_grad():
            for master, live in zip(self.master, self.live, strict=True):
                live.copy_(master)

    def state(self) -> dict:
        """Return the state for a checkpoint."""
        return {"master": [m.detach() for m in self.master], "adam": self.adam.state_dict()}

    def load(self, state: dict) -> None:
        """Restore the state from a checkpoint."""
        with torch.no_grad():
            for master, saved in zip(self.master, state["master"], strict=True):
                master.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        self.publish()
