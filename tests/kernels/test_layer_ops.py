"""What every implementation of the work between a layer's products must do, against transformers' formulas in float64."""

import pytest
import torch
from tolerance import assert_near_oracle
from torch import Tensor

from avl.kernels import layer_ops

COMPILED = torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if COMPILED else [])  # bfloat16 is wrong in Triton's interpreter


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of [B, heads, D] as transformers writes it, with the plain sine [B, D]."""
    one, two = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-two, one], dim=-1) * sin[:, None]


def signed(sin: Tensor) -> Tensor:
    one, two = sin.chunk(2, dim=-1)
    return torch.cat([-one, two], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize(("rows", "size"), [(1, 64), (3, 100), (2, 5120), (5, 33)])
def test_add_rms_norm_equals_the_formula(rows: int, size: int, adds: bool, dtype: torch.dtype, impl: str, device: torch.device) -> None:
    residual, delta, weight = (
        tensor.to(device, dtype) for tensor in (3 * normal(rows, size), normal(rows, size, seed=1), 1 + 0.3 * normal(size, seed=2))
    )
    total = residual + delta if adds else residual.clone()  # rounded, as the modules keep it
    out = layer_ops(device, impl).add_rms_norm(residual, delta if adds else None, weight, 1e-5)
    assert out.dtype == dtype
    assert torch.equal(residual, total)
    exact = rms_norm(total.double(), weight.double(), 1e-5)
    wide = total.float()
    eager = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype)
    assert_near_oracle(out, exact, eager, (size,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "size"), [(1, 4, 4, 32), (3, 6, 2, 80), (2, 5, 1, 128), (2, 3, 3, 96)])
@pytest.mark.parametrize("kind", ["number", "rows", "heads"])
def test_rotate_and_store_equals_the_formula_and_writes_nothing_else(
    rows: int, heads: int, kv_heads: int, size: int, kind: str, dtype: torch.dtype, impl: str, device: torch.device
) -> None:
    slots, first = 11, 3
    qkv = normal(rows, heads + 2 * kv_heads, size).to(device, dtype)
    angle = normal(rows, size // 2, seed=1).repeat(1, 2)
    cos, sin = angle.cos().to(device, dtype), angle.sin().to(device, dtype)
    draw = torch.Generator().manual_seed(2)
    slot = 5 if kind == "number" else torch.randint(slots - first, (rows, kv_heads if kind == "heads" else 1), generator=draw).to(device)
    # the storage is a part of a larger one, as that of some rows is of its layer's
    storages = [torch.full((rows + 1, slots, kv_heads, size), 7.0, dtype=dtype, device=device) for _ in range(2)]
    key, value = (storage[1:] for storage in storages)
    query = layer_ops(device, impl).rotate_and_store(qkv.flatten(1), cos, signed(sin), key, value, slot, first)
    wide = [tensor.double() for tensor in (qkv, cos, sin)]
    exact, eager = (rotate(states[:, : heads + kv_heads], *turn) for states, *turn in (wide, (qkv, cos, sin)))
    assert_near_oracle(query, exact[:, :heads], eager[:, :heads], (2,))
    expected = [torch.full_like(storage, 7.0) for storage in storages]
    for b in range(rows):
        for g in range(kv_heads):
            place = first + (slot if isinstance(slot, int) else int(slot[b, g if kind == "heads" else 0]))
            assert_near_oracle(key[b, place, g], exact[b, heads + g], eager[b, heads + g], (2,))
            expected[0][b + 1, place, g] = key[b, place, g]
            expected[1][b + 1, place, g] = qkv[b, heads + kv_heads + g]
    for storage, wanted in zip(storages, expected, strict=True):
        assert torch.equal(storage, wanted)  # nothing else was written


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 96), (3, 1500), (2, 33)])
def test_silu_product_equals_the_formula(rows: int, size: int, dtype: torch.dtype, impl: str, device: torch.device) -> None:
    gate_up = (4 * normal(rows, 2 * size)).to(device, dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    low = gate_up.chunk(2, dim=-1)
    eager = torch.nn.functional.silu(low[0]) * low[1]
    out = layer_ops(device, impl).silu_product(gate_up)
    assert_near_oracle(out, gate * gate.sigmoid() * up, eager, (2, 2))
