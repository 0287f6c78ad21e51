"""Calls that make the host wait for a GPU, told by their kind on a CPU."""

from __future__ import annotations

import contextlib
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from avl.models.families import language_model

aten = torch.ops.aten
ALWAYS = {
    aten.lift_fresh.default: "a tensor of Python numbers, or a list as an index: a copy from pageable memory",
    aten.nonzero.default: "a result whose size the host must know",
    aten.masked_select.default: "a result whose size the host must know",
}
READ = ("__bool__", "__float__", "__index__", "__int__", "cpu", "item", "numpy", "tolist")
MADE = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "scalar_tensor", "tensor", "zeros")


class Operators(TorchDispatchMode):
    """Notes operators that would wait."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in ALWAYS:
            self.waits.note(ALWAYS[func])
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            kinds = [index.dtype for index in args[1] if index is not None]
            if torch.bool in kinds or torch.uint8 in kinds:
                self.waits.note("a mask as an index: its size must be known")
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Notes what operators do not show on a CPU: reads, and tensors that lie in host memory and would be copied to the device.

    A tensor made without a device lies there, and so does what follows from such tensors alone; ``to`` moves it, if not within a layer.
    """

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits
        self.on_host: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [one for one in _flat((args, kwargs)) if isinstance(one, torch.Tensor)]
        hosted = [one for one in given if id(one) in self.on_host]
        if name in READ and not hosted:
            self.waits.note(f"{name}: what the device holds is read by the host")
        if hosted and (name in ("to", "copy_") or any(one.dim() and id(one) not in self.on_host for one in given)):
            self.waits.note(f"{name} of a tensor in host memory: a copy from pageable memory")
        found = func(*args, **kwargs)
        if name == "to":
            self.on_host.pop(id(found), None)
        elif (name in MADE and kwargs.get("device") is None and not given) or (given and len(hosted) == len(given)):
            for one in _flat(found):
                if isinstance(one, torch.Tensor):
                    self.on_host[id(one)] = one  # kept, so that no other tensor takes its id
        return found


class Waits:
    """What would wait, by layer, while ``active``."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.active = False

    def note(self, what: str) -> None:
        if self.active:
            self.found[what] += 1

    @contextlib.contextmanager
    def watch(self, model):
        """Watch from here on, and count from the first decoder layer to behind the last."""
        text = language_model(model)
        hooks = [
            text.layers[0].register_forward_pre_hook(lambda *_: setattr(self, "active", True), prepend=True),
            text.norm.register_forward_pre_hook(lambda *_: setattr(self, "active", False)),
        ]
        try:
            with Calls(self), Operators(self):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def _flat(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in _flat(part)]
    return [value]
