"""The self-check of the Triton kernels: do they give on this device what their specifications give?

`avl.kernels` runs it once per device, dtype and head size before "auto" uses them: kernels must not be trusted on a GPU because they
compile. The shapes are small: what depends on them is tested in tests/kernels; what depends on the device, its compiler and its dtypes
shows here too.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from avl.kernels.core import reference as core_reference
from avl.kernels.layer import reference as layer_reference
from avl.kernels.layer.types import HeadNorms
from avl.kernels.window import reference as window_reference
from avl.kernels.window.types import FREE, Window

ROWS, SLOTS, STEPS = 2, 150, 3


def find_trouble(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """Return in one line what goes wrong with the Triton kernels on `device`, or None. Waits for the device."""
    try:
        with torch.inference_mode():
            from avl.kernels.core import triton as core_triton

            for heads, kv_heads in ((4, 4), (4, 2)):
                _attention(functools.partial(core_triton.attend, splits=2), device, dtype, head_size, heads, kv_heads)
                _new_token(device, dtype, head_size, heads, kv_heads)
            _layer(device, dtype, head_size)
            _window(device)
    except Exception as error:  # a compiler, a driver, a launch: each raises its own kind
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def find_numba_trouble(dtype: torch.dtype) -> str | None:
    """Return in one line what goes wrong with the kernels that numba compiles, or None."""
    device = torch.device("cpu")
    try:
        with torch.inference_mode():
            from avl.kernels.core import numba as core_numba

            for heads, kv_heads in ((4, 4), (4, 2)):
                _attention(core_numba.attend, device, dtype, 40, heads, kv_heads)
    except Exception as error:  # a compiler, a linker, a thread: each raises its own kind
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


def _near(name: str, actual: Tensor, exact: Tensor) -> None:
    """Raise unless `actual` is `exact` but for some roundings of its dtype."""
    error = float((actual.double() - exact.double()).norm() / exact.double().norm())
    limit = 4 * torch.finfo(actual.dtype).eps + 1e-5  # sums and exponentials are in float32
    if not error <= limit:
        raise ArithmeticError(f"{name} is off by {error:.1e}, more than {limit:.1e}")


def _normal(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(device)


def _attention(
    attend: Callable[..., tuple[Tensor, Tensor | None]], device: torch.device, dtype: torch.dtype, size: int, heads: int, kv_heads: int
) -> None:
    query = _normal(device, ROWS, heads, size).to(dtype)
    key, value = (_normal(device, rows, SLOTS, kv_heads, size)[:ROWS].to(dtype).transpose(1, 2) for rows in (ROWS, ROWS + 1))
    index = torch.stack([torch.arange(SLOTS - 1, 9, -1), torch.arange(10, SLOTS)]).int().to(device)  # as the engine has it
    length = torch.tensor([index.shape[1], 77], device=device)
    sums = torch.ones(ROWS, 20, device=device)
    arguments = (index, length, size**-0.5, (0, index.shape[1]), False)
    out, scores = attend(query, key, value, *arguments, sums)
    exact, exact_scores = core_reference.attend(query.double(), key.double(), value.double(), *arguments)
    _near("attention", out, exact)
    assert scores is not None
    assert exact_scores is not None
    # a weight is a power of its logit, whose error grows with the head size
    if not torch.allclose(scores.double(), exact_scores, rtol=1e-3, atol=1e-6):
        raise ArithmeticError("the attention's scores are off")
    if not torch.allclose(sums, 1 + scores[:, -20:], rtol=1e-5, atol=1e-6):
        raise ArithmeticError("the sums of the attention's scores are off")


def _new_token(device: torch.device, dtype: torch.dtype, size: int, heads: int, kv_heads: int) -> None:
    from avl.kernels.core import triton as core_triton

    qkv = _normal(device, ROWS, (heads + 2 * kv_heads) * size).to(dtype)
    cos, sin = _normal(device, ROWS, size).to(dtype), _normal(device, ROWS + 1, size)[:ROWS].to(dtype)
    weights = (1 + _normal(device, 2, size) / 4).to(dtype)
    norms = HeadNorms(weights[0], weights[1], 1e-3) if heads > kv_heads else None
    slot, image, read = torch.tensor([[30], [4]], device=device), SLOTS - 40, 90
    # image slots in any order, then the window's
    index = torch.cat([torch.arange(read - 1, -1, -1), torch.arange(image, SLOTS)]).int().to(device).expand(ROWS, -1)
    length = torch.tensor([index.shape[1], read + 5], device=device)
    arguments = (index, length, size**-0.5, (0, index.shape[1]), False)
    states = [_normal(device, rows, SLOTS, kv_heads, size)[:ROWS].to(dtype) for rows in (ROWS, ROWS + 1)]
    key, value = (state.clone() for state in states)
    query = layer_reference.rotate_and_store(qkv, cos, sin, key, value, slot, image, norms).double()
    exact, exact_scores = core_reference.attend(query, key.double().transpose(1, 2), value.double().transpose(1, 2), *arguments)
    sums = torch.ones(ROWS, 40, device=device)
    new = core_triton.NewToken(cos, sin, norms, slot, read, image)
    by_head = [state.transpose(1, 2) for state in states]
    out, scores = core_triton.attend_new(qkv, new, *by_head, *arguments, sums, splits=2)
    _near("a new token's attention", out, exact)
    _near("a new token's key as it is stored", states[0], key)
    _near("a new token's value as it is stored", states[1], value)
    assert scores is not None
    assert exact_scores is not None
    if not torch.allclose(scores.double(), exact_scores, rtol=5 * torch.finfo(dtype).eps + 1e-3, atol=1e-6):
        raise ArithmeticError("the scores of a new token's attention are off")
    if not torch.allclose(sums, 1 + scores[:, -40:], rtol=1e-5, atol=1e-6):
        raise ArithmeticError("the sums of the scores of a new token's attention are off")


def _layer(device: torch.device, dtype: torch.dtype, size: int) -> None:
    from avl.kernels.layer import triton as layer_triton

    embedding, rotary = _normal(device, 50, 300).to(dtype), _normal(device, 9, 2, size).to(dtype)
    begun = []
    for ops in (layer_triton, layer_reference):
        tokens, positions = torch.tensor([49, 0], device=device), torch.tensor([[8], [3]], device=device)
        found = torch.zeros(ROWS, 300, dtype=dtype, device=device), torch.zeros(ROWS, 2, size, dtype=dtype, device=device)
        ops.begin_step(tokens, positions, embedding, rotary, *found)
        begun.append((*found, positions))
    for one, two in zip(*begun, strict=True):
        if not torch.equal(one, two):
            raise ArithmeticError("what a step begins with is off")
    residual, delta, weight = (_normal(device, rows, 300)[:ROWS].to(dtype) for rows in (2, 3, 4))
    first, second = residual.clone(), residual.clone()
    _near(
        "the norm",
        layer_triton.add_rms_norm(first, delta, weight[0], 1e-5),
        layer_reference.add_rms_norm(second, delta, weight[0], 1e-5),
    )
    _near("the residual", first, second)
    gate_up = _normal(device, ROWS, 3000).to(dtype)
    _near("the activation", layer_triton.silu_product(gate_up), layer_reference.silu_product(gate_up.clone()))
    heads, kv_heads = 4, 2
    qkv = _normal(device, ROWS, (heads + 2 * kv_heads) * size).to(dtype)
    cos, sin = _normal(device, ROWS, size).to(dtype), _normal(device, ROWS + 1, size)[:ROWS].to(dtype)
    slot = torch.tensor([[3], [5]], device=device)
    weights = (1 + _normal(device, 2, size) / 4).to(dtype)
    for name, norms in (("the rotation", None), ("the norm of heads", HeadNorms(weights[0], weights[1], 1e-3))):
        stored = [[torch.zeros(ROWS, 9, kv_heads, size, dtype=dtype, device=device) for _ in range(2)] for _ in range(2)]
        queries = [
            ops.rotate_and_store(qkv, cos, sin, *storages, slot, 2, norms)
            for ops, storages in zip((layer_triton, layer_reference), stored, strict=True)
        ]
        _near(name, *queries)
        for one, two in zip(*stored, strict=True):
            _near("what is stored", one, two)


def _window(device: torch.device) -> None:
    from avl.kernels.window import triton as window_triton

    window = Window(prompt=30, start=16, size=16, recent=6, sinks=2)
    states = []
    for ops in (window_triton, window_reference):
        token_idx = torch.full((2, ROWS, 1, 17), FREE, device=device)
        token_idx[..., :16] = torch.arange(16, device=device)
        sums = _normal(device, 2, ROWS, 1, 17).abs().float()
        slot = torch.full((2, ROWS, 1), 16, device=device)
        entered, length = torch.zeros_like(slot), torch.zeros(ROWS, dtype=torch.long, device=device)
        for _ in range(STEPS):
            ops.enter_window(window, token_idx, sums, slot, entered, ((40, length),))
            ops.leave_window(window, token_idx, sums, slot, entered)
        states.append((token_idx, sums, slot, entered, length))
    for one, two in zip(*states, strict=True):
        if not torch.equal(one, two):
            raise ArithmeticError("the window's bookkeeping is off")
