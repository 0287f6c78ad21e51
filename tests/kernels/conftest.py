"""Set-up of the kernel tests: where Triton runs, NaN in fresh memory, and the implementations under test."""

import os
import sys
from typing import Any

import pytest
import torch

# Without a GPU the kernels are interpreted. Triton reads the variable when it is first imported, by whichever test that is.
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"


def why_no_triton() -> str | None:
    """Why the Triton kernels cannot run in this process, or None."""
    if torch.cuda.is_available():
        return None
    try:
        import triton.language as tl
        from triton.runtime import JITFunction
    except ImportError as error:
        return f"triton is not installed ({error})"
    if isinstance(tl.sum, JITFunction):
        return "triton was imported without TRITON_INTERPRET=1 before these tests: test_fresh_process.py runs them"
    return None


COMPILED = (pytest.mark.gpu,) if torch.cuda.is_available() else ()


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
