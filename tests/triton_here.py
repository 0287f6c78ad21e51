"""Where the Triton kernels run in this process: compiled on a GPU, interpreted without one, or not at all."""

import os
import sys

import pytest
import torch

# Triton reads the variable when it is first imported, by whichever test that is
if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

COMPILED = (pytest.mark.gpu,) if torch.cuda.is_available() else ()
IMPORTED_TOO_EARLY = "triton was imported without TRITON_INTERPRET=1 before these tests: test_kernel_processes.py runs them"


def why_no_triton() -> str | None:
    """Why the Triton kernels cannot run in this process, or None."""
    if torch.cuda.is_available():
        return None
    try:
        import triton.language as tl
        from triton.runtime import JITFunction
    except ImportError as error:
        return f"triton is not installed ({error})"
    return IMPORTED_TOO_EARLY if isinstance(tl.sum, JITFunction) else None
