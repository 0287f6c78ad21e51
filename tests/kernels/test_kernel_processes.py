"""Kernels in processes of their own: compiled without a GPU, and interpreted where this process cannot."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_here import IMPORTED_TOO_EARLY, why_no_triton

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None or sys.platform != "linux", reason="triton is not installed")
def test_kernels_compile_for_hopper(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not; compiling needs no GPU."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("compile_kernels.py"))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 14, done.stdout


@pytest.mark.skipif(why_no_triton() != IMPORTED_TOO_EARLY, reason="the Triton tests run in this process")
def test_interpreted_kernels() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(Path(__file__).parent), "-k", "triton"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
