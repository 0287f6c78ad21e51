"""Kernels in processes of their own: compiled without a GPU, and interpreted where this process cannot."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_here import IMPORTED_TOO_EARLY, why_no_triton

ROOT = Path(__file__).resolve().parents[2]


def triton_kernels() -> set[str]:
    """Names of all functions that are launched: `triton.jit` and a name that ends in `_kernel`."""
    found = set()
    for path in (ROOT / "kernels").rglob("triton.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list):
                found |= {node.name} if node.name.endswith("_kernel") else set()
    return found


@pytest.mark.skipif(importlib.util.find_spec("triton") is None or sys.platform != "linux", reason="triton is not installed")
def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not; compiling needs no GPU."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("compile_kernels.py"))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {"split_vector_kernel", "enter_window_kernel", "silu_product_kernel"} <= triton_kernels()
    assert {name for name, _, _ in compiled} == triton_kernels()
    assert all(int(size) > 0 for _, _, size in compiled)


@pytest.mark.skipif(why_no_triton() != IMPORTED_TOO_EARLY, reason="the Triton tests run in this process")
def test_triton_tests_pass_in_the_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(Path(__file__).parent), "-k", "triton"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
