"""Stand-ins for several GPUs: tensors that say they are on another device, compute on the CPU, and refuse to meet those of a third.

``with Devices():`` makes ``privateuseone:0`` and ``privateuseone:1`` usable, torch's device type for backends in Python. For a process of
its own: torch takes that backend for an accelerator of the machine from then on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FIRST, SECOND = "privateuseone:0", "privateuseone:1"
_ACROSS = ("aten::copy_", "aten::_to_copy")
"""Operations that may move values between devices."""
_BY_INDEX = ("aten::index.Tensor", "aten::index_put_", "aten::index_put")
"""Operations whose indices may be on the host, as on a GPU."""


backend_registration._setup_privateuseone_for_python_backend()


class Placed(torch.Tensor):
    """A tensor on one of those devices."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> Placed:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=device
        )

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Placed({self.inner!r}, device={self.device})"

    def tolist(self) -> Any:
        return self.inner.tolist()  # torch's own knows no subclasses

    def numpy(self) -> Any:
        return self.inner.numpy()  # avl/cache/readback.py copies from a device that is called cuda

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Devices(TorchDispatchMode):
    """Sends what is made on those devices, or computed there, to the CPU."""

    _depth = 0

    def __enter__(self) -> Devices:
        self._depth += 1
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) then copies from the CPU, which is seen here
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._depth -= 1
        torch._C._set_only_lift_cpu_tensors(self._depth > 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(leaf, Placed) or _elsewhere(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        with self:
            found = func.decompose(*args, **kwargs)
        return compute(func, args, kwargs) if found is NotImplemented else found


def _elsewhere(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == "privateuseone"


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU and say that the result is where the arguments are.

    Raises:
        RuntimeError: they are on several devices.
    """
    name = func.name()
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    placed = {id(one.inner): one for one in tensors if isinstance(one, Placed)}
    if not name.startswith(_ACROSS):
        met = {one.device for one in tensors if isinstance(one, Placed) or (one.dim() and not name.startswith(_BY_INDEX))}
        if len(met) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} has {sorted(map(str, met))}")
    target = kwargs.get("device")
    if target is None and placed:
        target = args[0].device if name.startswith(_ACROSS) else next(iter(placed.values())).device
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu") if _elsewhere(kwargs["device"]) else kwargs["device"]}
    inside = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Placed) else leaf, (args, kwargs))
    out = func(*inside[0], **inside[1])

    def outside(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not _elsewhere(target):
            return leaf
        with torch.inference_mode(False):  # a view of a weight is one of no inference tensor
            return placed[id(leaf)] if id(leaf) in placed else Placed(leaf, target)

    return tree_map(outside, out)
