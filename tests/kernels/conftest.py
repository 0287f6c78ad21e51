"""Set-up of the kernel tests: the implementations under test, and NaN in fresh memory."""

import sys
from typing import Any

import pytest
import torch
from triton_here import COMPILED, why_no_triton


@pytest.fixture(params=["reference", pytest.param("triton", marks=COMPILED)])
def impl(request: pytest.FixtureRequest) -> str:
    """Every implementation has to pass the same tests."""
    if request.param == "triton" and (reason := why_no_triton()):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def device(impl: str) -> torch.device:
    return torch.device("cuda" if impl == "triton" and torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that our code allocates and does not write reads as NaN."""

    def poisoned(function: Any) -> Any:
        def allocate(*args: Any, **kwargs: Any) -> Any:
            tensor = function(*args, **kwargs)
            ours = sys._getframe(1).f_globals.get("__name__", "").startswith("avl.")
            return tensor.fill_(torch.nan) if ours and tensor.is_floating_point() else tensor

        return allocate

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
