"""What runs on a GPU, told without one: no plans of cuDNN, our kernel in every step, no backend that builds the matrix of weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from random_models import build_model
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

import avl
from avl.attention import decode, exact, scores
from avl.attention.exact import attend_exactly, lse_backend, spare_plans
from avl.attention.scores import accumulated_columns
from avl.cache.slots import StepView

GPU = torch.device("cuda", 1)


@pytest.fixture
def with_cudnn():
    """The setting is one of the process."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_plans_are_spared_where_a_model_is_on_a_gpu(with_cudnn, monkeypatch):
    model = build_model("llava-llama")
    avl.attach(model)
    assert torch.backends.cuda.cudnn_sdp_enabled(), "on a CPU nothing of the process changes"
    places = [SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(device=GPU)]
    monkeypatch.setattr(model, "parameters", lambda: iter(places))
    avl.attach(model)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells by the refusal of a GPU that is not there")
def test_plans_are_spared_where_a_model_moved_after_it_was_attached(with_cudnn):
    """The first to ask which backend serves is the decoder, before any prompt."""
    lse_backend.cache_clear()
    with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|NVIDIA"):
        lse_backend(GPU, torch.float16, 64, 1)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    spare_plans([])
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_every_step_runs_our_kernel(kind, monkeypatch):
    """On a GPU torch's attention would meet another number of keys at every step."""
    called = []
    monkeypatch.setattr(decode, "core_attention", lambda *args, **_: called.append(args) or (None, None))
    query = SimpleNamespace(device=torch.device(kind), shape=(1, 4, 1, 16))
    keys = torch.zeros(1, 4, 9, 16)
    decode._attend(StepView(keys, keys, None, None, None, None, False), query, 0.25)
    ((_, found, _, index, length),) = called
    assert found is keys
    assert index is None
    assert length is None


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("g", [2, 4])
def test_grouped_heads_never_build_the_matrix_of_weights(g, masked, backend, monkeypatch):
    """Where torch would take its plain backend for grouped heads (float32, a T4), keys and values are repeated first."""
    h, length = 4, 40
    draw = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, length, 16, generator=draw) for heads in (h, g, g))
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None] if masked else None
    columns, scale = torch.arange(0, length, 3)[None], 0.25
    wanted = attend_exactly(query, key, value, mask, scale)[0], accumulated_columns(query, key, columns, scale, None, mask)
    heads = []

    def note(query, key, *args, **options):
        heads.append((key.shape[1], options["enable_gqa"]))
        return scaled_dot_product_attention(query, key, *args, **options)

    monkeypatch.setattr(exact, "sdpa_backend", lambda *_: backend.value)
    for module in (exact, scores):
        monkeypatch.setattr(module, "scaled_dot_product_attention", note)
    found = attend_exactly(query, key, value, mask, scale)[0], accumulated_columns(query, key, columns, scale, None, mask)
    alike = g == h or masked or backend is SDPBackend.MATH
    assert set(heads) == {(h, False) if alike else (g, True)}
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
