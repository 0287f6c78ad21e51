"""Scores of the prompt: a few columns by unit vectors, against the definition written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from avl.attention import exact, scores
from avl.attention.exact import attend_exactly
from avl.attention.scores import accumulated_columns, accumulated_scores, last_query_scores


def states(b: int, h: int, g: int, length: int, d: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(length)
    return tuple(torch.randn(b, heads, length, d, generator=draw, dtype=torch.float64).to(dtype) for heads in (h, g))  # type: ignore[return-value]


def definition(query: torch.Tensor, key: torch.Tensor, scale: float, pads: list[int]) -> torch.Tensor:
    """``A[b, j] = sum over queries i >= j of the mean over heads of softmax(scale q_i k)_j``, padding left out: ``[B, L]``."""
    query, key = query.double(), key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    total = torch.zeros(query.shape[0], query.shape[2], dtype=torch.float64)
    for b, pad in enumerate(pads):
        for i in range(pad, query.shape[2]):
            weights = torch.softmax(scale * (key[b, :, pad : i + 1] @ query[b, :, i, :, None])[..., 0], dim=-1)
            total[b, pad : i + 1] += weights.mean(dim=0)
    return total


@pytest.mark.parametrize("pads", [[0, 0], [0, 5]])
@pytest.mark.parametrize(("h", "g", "d"), [(4, 4, 16), (6, 2, 8), (3, 1, 32)])
@pytest.mark.parametrize("width", [1, 11, 20])
def test_columns_are_those_of_the_definition(width, h, g, d, pads, monkeypatch):
    length = 31
    query, key = states(2, h, g, length, d, torch.float32)
    draw = torch.Generator().manual_seed(width)
    columns = torch.stack([pad + torch.randperm(length - pad, generator=draw)[:width] for pad in pads])
    valid = mask = None
    positions = torch.arange(length)
    if any(pads):
        valid = positions >= torch.tensor(pads)[:, None]
        mask = ((positions <= positions[:, None]) & valid[:, None] | (positions == positions[:, None]))[:, None]
        query[1, :, : pads[1]] = 50.0  # what padding asks counts for nothing
    wanted = definition(query, key, d**-0.5, pads)
    found = [accumulated_columns(query, key, columns, d**-0.5, None, mask, valid)]
    out, lse = attend_exactly(query, key, key, mask, d**-0.5, with_lse=True)
    plain, none = attend_exactly(query, key, key, mask, d**-0.5)
    assert none is None
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-6)
    assert (lse is None) == any(pads)
    if lse is not None:
        found.append(accumulated_columns(query, key, columns, d**-0.5, lse))
        monkeypatch.setattr("avl.attention.scores._CHUNK_ELEMENTS", 2 * h * d * 7)
        found.append(accumulated_columns(query, key, columns, d**-0.5, lse))
    for sums in found:
        assert sums.dtype == torch.float32
        torch.testing.assert_close(sums.double(), wanted.gather(1, columns), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(accumulated_scores(query, key, d**-0.5, valid).mean(dim=1).double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_weights_and_not_their_sums(dtype):
    """Each weight is off by one rounding at most, at random, and sums are float32: far closer than a sum in the dtype could be."""
    query, key = states(1, 4, 4, 400, 16, dtype)
    columns = torch.arange(0, 400, 9)[None]
    wanted = definition(query, key, 0.25, [0]).gather(1, columns)
    found = accumulated_columns(query, key, columns, 0.25)
    assert found.dtype == torch.float32
    off = ((found.double() - wanted) / wanted).abs().max()
    assert off <= torch.finfo(dtype).eps / 2
    _, lse = attend_exactly(query, key, key, None, 0.25, with_lse=True)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(accumulated_columns(query, key, columns, 0.25, lse).double(), wanted, rtol=1e-4, atol=1e-6)


def test_operators_that_changed_are_not_used(monkeypatch):
    """What torch may change under its private names is noticed: an error, or another number, and the public function serves."""
    query, key = states(1, 4, 2, 40, 8, torch.float32)
    right = exact._attend_with_lse
    changes = {
        "gone": lambda *_: (_ for _ in ()).throw(AttributeError("no such operator")),
        "base 2": lambda *arguments: (right(*arguments)[0], right(*arguments)[1] * 1.4427),
        "another output": lambda *arguments: (right(*arguments)[0] * 1.1, right(*arguments)[1]),
    }
    assert exact.lse_backend(query.device, query.dtype, 8, 2) is not None
    for change in changes.values():
        exact.lse_backend.cache_clear()
        monkeypatch.setattr(exact, "_attend_with_lse", change)
        assert exact.lse_backend(query.device, query.dtype, 8, 2) is None
        out, lse = attend_exactly(query, key, key, None, 0.3, with_lse=True)
        assert lse is None
        torch.testing.assert_close(out, attend_exactly(query, key, key, None, 0.3)[0])
    monkeypatch.undo()
    exact.lse_backend.cache_clear()
    # a backend that was not tried serves without
    tried = exact.lse_backend(query.device, query.dtype, 8, 2)
    monkeypatch.setattr(exact, "sdpa_backend", lambda *_: tried + 1)
    assert attend_exactly(query, key, key, None, 0.3, with_lse=True)[1] is None
    monkeypatch.undo()
    exact.lse_backend.cache_clear()


class Widened(TorchDispatchMode):
    """Notes how large the tensors are that are made in float32 or float64 from 16-bit ones, and how many products there are."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bmm.dtype:  # which exists on a GPU only
            self.products += 1
            left, right, dtype = args
            return torch.bmm(left.double(), right.double()).to(dtype)
        found = func(*args, **(kwargs or {}))
        narrow = any(isinstance(one, torch.Tensor) and one.dtype.itemsize == 2 for one in args)
        if narrow and isinstance(found, torch.Tensor) and found.dtype in (torch.float32, torch.float64):
            self.largest = max(self.largest, found.numel())
        return found


@pytest.fixture
def as_on_gpu(monkeypatch):
    """The path of a GPU, whose products widen, on a CPU."""
    monkeypatch.setattr(scores, "_on_gpu", lambda _: True)
    monkeypatch.setattr(scores, "widens", lambda device, dtype: dtype.itemsize == 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("h", "g"), [(4, 4), (6, 2)])
def test_a_gpu_reads_16_bits_and_few_times(dtype, h, g, as_on_gpu):
    """No copy of the states in float32, one product for all queries, and the numbers of the definition."""
    b, length, d, scale = 2, 200, 32, 0.2
    query, key = states(b, h, g, length, d, dtype)
    columns = torch.arange(0, length, 9).expand(b, -1)
    wanted = definition(query, key, scale, [0, 0])
    _, lse = attend_exactly(query, key, key, None, scale, with_lse=True)
    calls = {
        "columns": lambda: (accumulated_columns(query, key, columns, scale, lse), wanted.gather(1, columns), 1),
        "all": lambda: (accumulated_scores(query, key, scale).mean(dim=1), wanted, 4),
        "observed": lambda: (accumulated_scores(query, key, scale, queries=8)[:, 0, :0], wanted[:, :0], 1),
    }
    for name, call in calls.items():
        with Widened() as seen:
            found, right, products = call()
        torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5)
        if dtype.itemsize == 2:
            assert (name, seen.largest, seen.products) == (name, 0, products)


@pytest.mark.parametrize("pads", [[0, 0], [0, 37]])
@pytest.mark.parametrize(("h", "g"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_scores_the_last_query_by_the_kernel(dtype, h, g, pads, as_on_gpu, monkeypatch):
    """One pass over the keys where they are, however a row is padded."""
    length, scale = 90, 0.3
    query, key = states(2, h, g, length, 16, dtype)
    valid = torch.arange(length) >= torch.tensor(pads)[:, None]
    asked = []
    kernel = scores.core_attention
    monkeypatch.setattr(scores, "core_attention", lambda *args, **options: asked.append(args) or kernel(*args, **options))
    found = last_query_scores(query, key, scale, valid if any(pads) else None)
    ((_, keys, values, index, _),) = [(*args, None)[:5] for args in asked]
    assert keys is key
    assert values is key
    assert (index is None) == (not any(pads))
    logits = scale * (key.double().repeat_interleave(h // g, dim=1) @ query[:, :, -1:].double().transpose(2, 3))[..., 0]
    wanted = logits.masked_fill(~valid[:, None], -torch.inf).softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
    monkeypatch.undo()
    torch.testing.assert_close(last_query_scores(query, key, scale, valid if any(pads) else None), found, rtol=1e-4, atol=1e-6)
