"""Linter, formatter, type checker and import contracts (in pyproject.toml), so that the one test command says whether the tree is clean."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy", "codespell_lib"])
def test_tool_finds_nothing(command: str) -> None:
    name, *arguments = command.split()
    pytest.importorskip(name, reason=f"{name} is not installed (tests/requirements.txt names it)")
    result = subprocess.run([sys.executable, "-m", name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def linter(root: Path) -> tuple[bool, str]:
    """Whether every import contract of pyproject.toml holds for the package in ``root``, and what the linter says."""
    pytest.importorskip("importlinter", reason="import-linter is not installed (tests/requirements.txt names it)")
    start = "from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-c", start, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def test_imports_keep_the_contracts():
    kept, said = linter(ROOT)
    assert kept, said


@pytest.mark.parametrize(
    ("file", "source", "contract"),
    [
        ("avl/cache/cache.py", "from avl.engine.scheduler import stream", "Imports point down"),
        ("avl/policies/avl.py", "def f():\n    from avl.cache.cache import AdaptiveCache", "Imports point down"),
        ("avl/trace/events.py", "import avl.policies", "Imports point down"),
        ("avl/newfolder.py", "", "Imports point down"),
        ("avl/engine/runner.py", "import gradio as gr", "The page has gradio, plotly and prometheus_client to itself"),
        ("avl/policies/avl.py", "import torch, transformers", "Policies are plain Python"),
        ("avl/kernels/__init__.py", "def f():\n    import triton.language as tl", "Triton and numba live in kernels/"),
        ("avl/bench/measure.py", "import pynvml", "Only telemetry reads NVML"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, source, contract):
    shutil.copytree(ROOT / "avl", tmp_path / "avl", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a") as planted:
        planted.write(f"\n{source}\n")
    kept, said = linter(tmp_path)
    assert not kept, "the planted import was not found"
    assert f"{contract} BROKEN" in said or "not listed as layers" in said, said
