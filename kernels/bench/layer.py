"""Times of what lies between a step's products: norm, rotation, activation, and the window's bookkeeping of all layers.

Part of `python -m avl.kernels.bench`. A step of a 7B model runs the first three 64 to 65 times or 32 times, the last two once. Activations
are small and stay in the L2 cache, as they do in a step.
"""

import statistics
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from avl.kernels import Impl, layer_ops, window_ops
from avl.kernels.bench.cases import Shape
from avl.kernels.bench.timing import Call, Timer, alternate, one_line
from avl.kernels.layer import reference as layer_reference
from avl.kernels.window import reference as window_reference
from avl.kernels.window.types import FREE, Window

LAYERS = 32
INTERMEDIATE = {32: 11008, 8: 14336}  # by KV heads: Vicuna-7B, Mistral-7B


def pieces(shape: Shape, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[ModuleType, ModuleType], Call]]:
    """Return name -> a call of that piece, given the implementation of the layer's and of the window's operations."""
    make = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=make, device=device).to(dtype)

    hidden, heads = shape.heads * shape.size, shape.heads + 2 * shape.kv_heads
    residual, delta, weight = normal(batch, hidden), normal(batch, hidden) * 1e-3, normal(hidden)
    gate_up = normal(batch, 2 * INTERMEDIATE.get(shape.kv_heads, 4 * hidden))
    qkv, cos, sin = normal(batch, heads * shape.size), normal(batch, shape.size), normal(batch, shape.size)
    key, value = normal(batch, 8, shape.kv_heads, shape.size), normal(batch, 8, shape.kv_heads, shape.size)
    slot = torch.full((batch, 1), 3, device=device)
    embedding, rotary = normal(32000, hidden), normal(64, 2, shape.size)
    tokens, start = torch.arange(batch, device=device), torch.zeros(batch, 1, dtype=torch.long, device=device)
    first_hidden, rotation = torch.empty_like(residual), normal(batch, 2, shape.size)
    window = Window(prompt=shape.text, start=shape.text, size=shape.text, recent=shape.text // 2, sinks=0)
    token_idx = torch.full((LAYERS, batch, 1, shape.text + 1), FREE, device=device)
    token_idx[..., : shape.text] = torch.arange(shape.text, device=device)
    sums = torch.rand(token_idx.shape, generator=make, device=device)
    place = torch.full((LAYERS, batch, 1), shape.text, device=device)
    entered, length = torch.zeros_like(place), torch.zeros(batch, dtype=torch.long, device=device)

    def bookkeeping(ops: ModuleType) -> Tensor:
        ops.enter_window(window, token_idx, sums, place, entered, ((0, length),))
        ops.leave_window(window, token_idx, sums, place, entered)
        return token_idx

    def begin(ops: ModuleType) -> Tensor:
        start.zero_()  # positions of a table have an end
        ops.begin_step(tokens, start, embedding, rotary, first_hidden, rotation)
        return first_hidden

    return {
        "begin a step": lambda layer, _: lambda: begin(layer),
        "add and norm": lambda layer, _: lambda: layer.add_rms_norm(residual, delta, weight, 1e-5),
        "rotate and store": lambda layer, _: lambda: layer.rotate_and_store(qkv, cos, sin, key, value, slot, 0),
        "SiLU product": lambda layer, _: lambda: layer.silu_product(gate_up),
        f"window, {LAYERS} layers": lambda _, window_of: lambda: bookkeeping(window_of),
    }


def bench_layer(
    shape: Shape, batch: int, device: torch.device, dtype: torch.dtype, impl: Impl, repeats: int, target_s: float
) -> list[dict[str, object]]:
    """Return one row per piece: microseconds of ours and of the same in torch's own operations."""
    impl = "reference" if impl == "numba" else impl  # numba has no kernels of these alone
    chosen = {"us": (layer_ops(device, impl), window_ops(device, impl)), "torch_us": (layer_reference, window_reference)}
    rows: list[dict[str, object]] = []
    for name, build in pieces(shape, batch, device, dtype).items():
        row: dict[str, object] = {"shape": shape.name, "batch": batch, "name": name}
        try:
            timers = {which: Timer([build(*ops)], device, target_s) for which, ops in chosen.items()}
            rows.append(row | {which: statistics.median(times) for which, times in alternate(timers, repeats).items()})
        except Exception as error:  # one piece that fails must not end the run
            rows.append(row | {"us": None, "torch_us": None, "note": one_line(error)})
    return rows


def show_layer(rows: list[dict[str, object]]) -> None:
    """Print the rows of one shape and batch."""
    print(f"  {'between the products':34}{'us':>10}{'torch us':>12}")
    for row in rows:
        if row["us"] is None:
            print(f"  {row['name']:34}{row['note']}")
        else:
            print(f"  {row['name']:34}{row['us']:10.1f}{row['torch_us']:12.1f}")
