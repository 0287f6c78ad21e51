"""Scores of the prompt: a few columns by unit vectors, against the definition written out in float64."""

from __future__ import annotations

import pytest
import torch

from avl.attention import exact
from avl.attention.exact import attend_exactly
from avl.attention.scores import accumulated_columns, accumulated_scores


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
