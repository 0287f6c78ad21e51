"""What the kernels' host functions launch, recorded without a GPU: a stand-in for the driver says which GPU there is, nothing runs.

For processes that do not interpret (no TRITON_INTERPRET). Tensors may be on "meta": a launch is known by dtypes, strides and alignment.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from avl.kernels.core import triton as core
from avl.kernels.layer import triton as layer
from avl.kernels.layer.types import HeadNorms
from avl.kernels.window import triton as window
from avl.kernels.window.types import Window


class Driver:
    """As much of Triton's driver as choosing and compiling a kernel asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


class Launch(NamedTuple):
    """One launch.

    Attributes:
        name: of the kernel.
        key: what Triton keeps the compiled kernel by: signature, constants, alignment, options.
        numbers: the names and values of the kernel's arguments that are no tensors.
        compile: gives the compiled kernel.
    """

    name: str
    key: tuple[Any, ...]
    numbers: dict[str, Any]
    compile: Callable[[], Any]


@contextlib.contextmanager
def recorded(capability: int) -> Iterator[list[Launch]]:
    """Record all launches as on a GPU of `capability` (90 for 9.0) with 132 multiprocessors. Buffers keep what was in them."""
    found: list[Launch] = []
    run = JITFunction.run

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = dict(kwargs, debug=False)
        binder = self.device_caches[capability][-1]
        bound, specialization, chosen = binder(*args, **options)
        key = (self.fn.__name__, str(specialization), str(sorted((name, str(value)) for name, value in chosen.items())))
        numbers = {name: value for name, value in bound.items() if not isinstance(value, torch.Tensor)}
        found.append(Launch(self.fn.__name__, key, numbers, lambda: run(self, *args, grid=grid, warmup=True, **kwargs)))

    major, minor = divmod(capability, 10)
    patched = (
        (JITFunction, "run", record),
        (core, "_device_tiling", lambda device: core.tiling_for((major, minor))),
        (core, "_multiprocessors", lambda device: 132),
    )
    before = [getattr(owner, name) for owner, name, _ in patched]
    triton.runtime.driver.set_active(Driver(capability))
    try:
        for owner, name, value in patched:
            setattr(owner, name, value)
        yield found
    finally:
        for (owner, name, _), value in zip(patched, before, strict=True):
            setattr(owner, name, value)


class Decoder(NamedTuple):
    """What the kernels see of a language model."""

    heads: int
    kv_heads: int
    hidden: int
    intermediate: int
    biased: bool = False


DECODERS = {
    "7B": Decoder(32, 32, 4096, 11008),  # LLaVA-1.5 and 1.6 with Vicuna
    "13B": Decoder(40, 40, 5120, 13824),
    "mistral-7B": Decoder(32, 8, 4096, 14336),
    "Qwen2.5-VL-7B": Decoder(28, 4, 3584, 18944),
}
SIZE = 128
ATTENTION = ("all slots", "all slots, scores", "core", "core, scores")


def attend(decoder: Decoder, kind: str, dtype: torch.dtype, by_group: bool = False, batch: int = 2, normed: bool = False) -> None:
    """Launch attention as a static step does, with its new token: full or update step, core step without or with sums."""
    slots, capacity, image = 1500, 120, 900
    keys = torch.empty(batch, slots, decoder.kv_heads, SIZE, dtype=dtype, device="meta").transpose(1, 2)
    length = torch.empty(batch, dtype=torch.long, device="meta")
    qkv = torch.empty(batch, (decoder.heads + 2 * decoder.kv_heads) * SIZE, dtype=dtype, device="meta")
    index, columns, sums = None, None, None
    if kind.startswith("core"):
        index = torch.empty(3, batch, image + capacity, dtype=torch.int32, device="meta")[1]
    else:
        keys = keys.narrow(2, 0, image + capacity)
    if kind.endswith("scores"):
        shape = (3, batch, decoder.kv_heads if by_group else 1, capacity)
        sums = torch.empty(shape, device="meta")[1]
        sums = sums if by_group else sums[:, 0]
        columns = (0, image + capacity) if kind == "all slots, scores" and not by_group else None
    cos, sin = torch.empty(batch, 2, SIZE, dtype=dtype, device="meta").unbind(1)
    norms = HeadNorms(*torch.empty(2, SIZE, dtype=dtype, device="meta"), 1e-6) if normed else None
    slot = torch.empty(3, batch, decoder.kv_heads if by_group else 1, dtype=torch.long, device="meta")[1]
    new = core.NewToken(cos, sin, norms, slot, image, image)
    core.attend_new(qkv, new, keys, keys, index, length, SIZE**-0.5, columns, by_group, sums)


def attend_every_way(decoder: Decoder, dtype: torch.dtype) -> None:
    """Launch attention as all policies have it: one row and many, for they differ in whether rows are cut."""
    for kind in ATTENTION:
        for batch in (1, 64):
            attend(decoder, kind, dtype, batch=batch)
    attend(decoder, "all slots, scores", dtype, by_group=True)  # H2O
    if decoder.kv_heads == 8:
        attend(decoder, "core, scores", dtype, normed=True)  # Qwen3-VL-8B


def run_layer(decoder: Decoder, dtype: torch.dtype, batch: int = 2) -> None:
    """Launch what lies between a layer's products."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    hidden = empty(batch, decoder.hidden)
    tokens, positions = (torch.empty(batch, *more, dtype=torch.long, device="meta") for more in ((), (1,)))
    layer.begin_step(tokens, positions, empty(32064, decoder.hidden), empty(2000, 2, SIZE), hidden, empty(batch, 2, SIZE))
    for delta in (None, empty(batch, decoder.hidden)):
        layer.add_rms_norm(hidden, delta, empty(decoder.hidden), 1e-5)
    layer.silu_product(empty(batch, 2 * decoder.intermediate))
    # rows of different layouts, whose slots are those of one storage
    qkv = empty(batch, (decoder.heads + 2 * decoder.kv_heads) * SIZE)
    keys = empty(3000, decoder.kv_heads, SIZE).expand(batch, -1, -1, -1)
    cos, sin = empty(batch, 2, SIZE).unbind(1)
    slot = torch.empty(3, batch, 1, dtype=torch.long, device="meta")[1]
    layer.rotate_and_store(qkv, cos, sin, keys, keys, slot, 0)


def keep_windows() -> None:
    """Launch the windows' bookkeeping of every policy."""
    for size, summed, cores in ((60, True, 2), (None, False, 2), (None, False, 1), (60, True, 1), (60, False, 1)):
        token_idx = torch.empty(3, 2, 1, 120, dtype=torch.long, device="meta")
        sums = torch.empty(3, 2, 1, 120, device="meta") if summed else None
        slot, entered = (torch.empty(3, 2, 1, dtype=torch.long, device="meta") for _ in range(2))
        lengths = tuple((900, torch.empty(2, dtype=torch.long, device="meta")) for _ in range(cores))
        what = Window(prompt=60, start=60, size=size, recent=30, sinks=0)
        window.enter_window(what, token_idx, sums, slot, entered, lengths)
        window.leave_window(what, token_idx, sums, slot, entered)
