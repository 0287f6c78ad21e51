"""What every implementation of the work between a layer's products must do, against transformers' formulas in float64."""

import pytest
import torch
from tolerance import assert_near_oracle
from torch import Tensor

from avl.kernels import layer_ops
from avl.kernels.layer.types import HeadNorms

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


def head_norms(qkv: Tensor, heads: int, kv_heads: int, norms: HeadNorms | None) -> Tensor:
    """Queries and keys [B, H + G, D] as Qwen3 has them before RoPE: float64 exactly, other dtypes with the modules' roundings."""
    query, key = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
    if norms is not None:
        query, key = (eager_norm(x, weight.to(x.dtype), norms.eps) for x, weight in ((query, norms.query), (key, norms.key)))
    return torch.cat([query, key], dim=1)


def eager_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def signed(sin: Tensor) -> Tensor:
    one, two = sin.chunk(2, dim=-1)
    return torch.cat([-one, two], dim=-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "size", "head"), [(1, 64, 16), (3, 100, 80), (5, 33, 96), (2, 3000, 128)])
def test_begin_step_looks_up_what_is_asked_for_and_advances(
    rows: int, size: int, head: int, dtype: torch.dtype, impl: str, device: torch.device
) -> None:
    embedding, rotary = normal(20, size + 3)[:, :size].to(device, dtype), normal(11, 2, head, seed=1).to(device, dtype)
    draw = torch.Generator().manual_seed(2)
    tokens, positions = torch.randint(20, (2 * rows,), generator=draw)[::2], torch.randint(11, (rows, 1), generator=draw)
    tokens[0], positions[0, 0] = 19, 10
    tokens, positions = tokens.to(device), positions.to(device)
    before = positions.clone()
    # larger by a row, which nobody may touch
    hidden, rotation = torch.full((rows + 1, size), 7.0).to(device, dtype), torch.full((rows + 1, 2, head), 7.0).to(device, dtype)
    layer_ops(device, impl).begin_step(tokens, positions, embedding, rotary, hidden[:rows], rotation[:rows])
    assert torch.equal(hidden[:rows], embedding[tokens])
    assert torch.equal(rotation[:rows], rotary[before[:, 0]])
    assert torch.equal(positions, before + 1)
    assert bool((hidden[rows:] == 7).all())
    assert bool((rotation[rows:] == 7).all())


@pytest.mark.parametrize("token", [-1, 20])
def test_begin_step_a_token_that_is_none_is_not_looked_up(token: int, impl: str, device: torch.device) -> None:
    tokens, positions = torch.tensor([3, token], device=device), torch.zeros(2, 1, dtype=torch.long, device=device)
    embedding, rotary = normal(20, 8).float().to(device), normal(4, 2, 16).float().to(device)
    hidden, rotation = embedding.new_zeros(2, 8), rotary.new_zeros(2, 2, 16)
    arguments = (tokens, positions, embedding, rotary, hidden, rotation)
    if impl == "reference":
        with pytest.raises(IndexError):
            layer_ops(device, impl).begin_step(*arguments)
        return
    layer_ops(device, impl).begin_step(*arguments)
    assert torch.equal(hidden[0], embedding[3])
    assert bool(hidden[1].isnan().all())


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
    assert_near_oracle(out, exact, eager_norm(total, weight, 1e-5), (size,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "size"), [(1, 4, 4, 32), (3, 6, 2, 80), (2, 5, 1, 128), (2, 3, 3, 96)])
@pytest.mark.parametrize(("kind", "normed"), [("number", False), ("rows", False), ("heads", False), ("rows", True), ("number", True)])
def test_rotate_and_store_equals_the_formula_and_writes_nothing_else(
    rows: int, heads: int, kv_heads: int, size: int, kind: str, normed: bool, dtype: torch.dtype, impl: str, device: torch.device
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
    norms = HeadNorms(*(1 + 0.3 * normal(size, seed=seed).to(device, dtype) for seed in (3, 4)), 1e-3) if normed else None
    query = layer_ops(device, impl).rotate_and_store(qkv.flatten(1), cos, signed(sin), key, value, slot, first, norms)
    exact = rotate(head_norms(qkv.double(), heads, kv_heads, norms), cos.double(), sin.double())
    eager = rotate(head_norms(qkv, heads, kv_heads, norms), cos, sin)
    assert_near_oracle(query, exact[:, :heads], eager[:, :heads], (size, 2) if normed else (2,))
    expected = [torch.full_like(storage, 7.0) for storage in storages]
    for b in range(rows):
        for g in range(kv_heads):
            place = first + (slot if isinstance(slot, int) else int(slot[b, g if kind == "heads" else 0]))
            assert_near_oracle(key[b, place, g], exact[b, heads + g], eager[b, heads + g], (size, 2) if normed else (2,))
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
