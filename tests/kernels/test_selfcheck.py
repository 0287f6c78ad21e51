"""The self-check of the Triton kernels: right kernels pass, and each wrong one is found and named."""

import pytest
import torch
from triton_here import COMPILED, why_no_triton

REASON = why_no_triton()
pytestmark = [pytest.mark.skipif(REASON is not None, reason=REASON or ""), *COMPILED]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def trouble(dtype: torch.dtype = torch.float32, head_size: int = 32) -> str | None:
    from avl.kernels.selfcheck import find_trouble

    return find_trouble(DEVICE, dtype, head_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available(), ids=str)
@pytest.mark.parametrize("head_size", [16, 80, 128])
def test_find_trouble_right_triton_kernels_pass(dtype, head_size):
    assert trouble(dtype, head_size) is None


def twice(function):
    return lambda *args, **kwargs: 1.01 * function(*args, **kwargs)


def twice_first(function):
    def attend_new(*args, **kwargs):
        out, scores = function(*args, **kwargs)
        return 1.01 * out, scores

    return attend_new


def wrong_scores(function):
    def attend(*args, **kwargs):
        out, scores = function(*args, **kwargs)
        return out, scores.roll(1, -1)

    return attend


def forgetful(function):
    return lambda window, order, sums, slot, entered, lengths: function(window, order, None, slot, entered, lengths)


def standing(function):
    return lambda tokens, positions, *tensors: function(tokens, positions.clone(), *tensors)


def unnormed(function):
    return lambda qkv, cos, sin, key, value, slot, first, norms: function(qkv, cos, sin, key, value, slot, first)


def misplaced(function):
    return lambda qkv, new, *rest, **how: function(qkv, new._replace(first_slot=new.first_slot + 1), *rest, **how)


def unrotated(function):
    return lambda qkv, new, *rest, **how: function(qkv, new._replace(sin=-new.sin), *rest, **how)


def other_norm(function):
    def attend_new(qkv, new, *rest, **how):
        norms = None if new.norms is None else new.norms._replace(key=new.norms.query)
        return function(qkv, new._replace(norms=norms), *rest, **how)

    return attend_new


def unscored(function):
    def attend_new(*args, **kwargs):
        out, scores = function(*args, **kwargs)
        return out, scores.scatter(1, torch.full((len(scores), 1), 120, device=DEVICE), 0.0)

    return attend_new


def refused(function):
    def launch(*args, **kwargs):
        raise ValueError("no kernel image is available\nfor execution")

    return launch


@pytest.mark.parametrize(
    ("file", "function", "change", "words"),
    [
        ("core.triton", "attend", wrong_scores, "the attention's scores are off"),
        ("core.triton", "attend", refused, "^ValueError: no kernel image is available$"),
        ("core.triton", "attend_new", twice_first, "a new token's attention is off by"),
        ("core.triton", "attend_new", misplaced, "a new token's"),
        ("core.triton", "attend_new", unrotated, "a new token's attention is off by"),
        ("core.triton", "attend_new", other_norm, "a new token's attention is off by"),
        ("core.triton", "attend_new", unscored, "the scores of a new token's attention are off"),
        ("layer.triton", "add_rms_norm", twice, "the norm is off by"),
        ("layer.triton", "begin_step", standing, "what a step begins with is off"),
        ("layer.triton", "silu_product", twice, "the activation is off by"),
        ("layer.triton", "rotate_and_store", twice, "the rotation is off by"),
        ("layer.triton", "rotate_and_store", unnormed, "the norm of heads is off by"),
        ("window.triton", "enter_window", forgetful, "the window's bookkeeping is off"),
    ],
)
def test_find_trouble_wrong_triton_kernel_is_named(file, function, change, words, monkeypatch):
    import importlib
    import re

    from avl.kernels import selfcheck as checks

    if not file.startswith("core"):  # what comes before passes: the test above
        monkeypatch.setattr(checks, "_attention", lambda *args: None)
        monkeypatch.setattr(checks, "_new_token", lambda *args: None)
    module = importlib.import_module(f"avl.kernels.{file}")
    monkeypatch.setattr(module, function, change(getattr(module, function)))
    assert re.search(words, trouble())
