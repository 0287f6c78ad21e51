"""Kernels in processes of their own: compiled without a GPU, and interpreted where this process cannot."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_here import IMPORTED_TOO_EARLY, why_no_triton

ROOT = Path(__file__).resolve().parents[2]
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None or sys.platform != "linux", reason="triton is not installed")


def triton_kernels() -> set[str]:
    """Names of all functions that are launched: `triton.jit` and a name that ends in `_kernel`."""
    found = set()
    for path in (ROOT / "kernels").rglob("triton.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list):
                found |= {node.name} if node.name.endswith("_kernel") else set()
    return found


@NEEDS_TRITON
def test_every_kernel_compiles_for_hopper(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler does not; compiling needs no GPU."""
    compiled = [line.split() for line in run_compiling("compile_kernels.py", TRITON_CACHE_DIR=str(tmp_path)).splitlines()]
    assert {"split_vector_kernel", "enter_window_kernel", "silu_product_kernel"} <= triton_kernels()
    assert {name for name, _, _ in compiled} == triton_kernels()
    assert all(int(size) > 0 for _, _, size in compiled)


def run_compiling(script: str, *arguments: str, **variables: str) -> str:
    """What a script of this folder prints in a process that does not interpret."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@NEEDS_TRITON
def test_other_questions_compile_no_kernel() -> None:
    """Twenty lengths of question after one another; and the kernel benchmark times what the engine runs."""
    said = run_compiling("count_variants.py").splitlines()
    counted, unknown, timed = (json.loads(line) for line in said[-3:])
    assert len(counted["added"]) >= 5
    for case, added in counted["added"].items():
        assert len(added) == 20
        assert 7 <= added[0] <= 12, case
        assert not any(added[1:]), (case, added)
    assert sum(low < high for low, high in counted["splits"].values()) >= 4, "the number of splits should have changed"
    assert unknown == []
    assert timed == ["combine_kernel", "split_vector_kernel"]


@pytest.mark.skipif(why_no_triton() != IMPORTED_TOO_EARLY, reason="the Triton tests run in this process")
def test_triton_tests_pass_in_the_interpreter() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(Path(__file__).parent), "-k", "triton"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
