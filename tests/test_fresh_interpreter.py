"""What depends on the order of imports and on what is installed: two fresh interpreters tell, each once, and the tests compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# enough of Hugging Face's library for transformers to import: classes to construct, and functions that return a decorator
FAKE_KERNELS = """
__version__ = "0.18.2"


class Mode:
    INFERENCE = TRAINING = 0


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    if name[0].isupper():
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})
    return lambda *args, **kwargs: lambda decorated: decorated
"""


def fresh(script: str, *paths: Path) -> dict[str, Any]:
    """Run ``tests/<script>`` in a new interpreter that finds the checkout, the tests and then ``paths``; return what it tells."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, TESTS, *paths)))
    command = [sys.executable, "-P", str(TESTS / script)]  # -P: the script's folder does not come first
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fake_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library named kernels, as a package on disk."""
    package = tmp_path_factory.mktemp("site") / "kernels"
    (package / "layer").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_KERNELS)
    (package / "layer" / "__init__.py").write_text("")
    (package / "layer" / "mode.py").write_text("from kernels import Mode")
    return package


@pytest.fixture(scope="module")
def whole(fake_kernels: Path) -> dict[str, Any]:
    return fresh("probe_whole.py", fake_kernels.parent)


@pytest.fixture(scope="module")
def bare() -> dict[str, Any]:
    return fresh("probe_bare.py")


def test_importing_avl_loads_nothing_heavy(whole):
    assert whole["loaded by avl"] == []


def test_importing_avl_starts_no_thread(whole):
    assert whole["threads before torch is used"] == whole["threads at start"]


def test_public_names_change_nothing_global(whole):
    """No registration in transformers, no CUDA call, no thread, no change of torch's settings; not even where the library runs."""
    assert whole["changed by avl"] == []


def test_kernels_change_nothing_global(whole):
    assert whole["changed by avl.kernels"] == []


def test_the_registries_that_are_compared_hold_something(whole):
    assert {"sdpa", "eager"} <= set(whole["registries"])


def test_the_reference_does_not_import_triton(whole):
    assert whole["triton after a call"] is False
    assert whole["attention"] == [[[1.0] * 4] * 2]


def test_the_bare_name_kernels_is_the_other_library(whole, fake_kernels):
    """Hugging Face's kernels, behind our checkout on the path, is what the name finds, and LLaVA imports beside it."""
    assert whole["kernels"] == str(fake_kernels / "__init__.py")
    assert whole["transformers sees kernels"]
    assert whole["llava"]


def test_optional_libraries_are_hidden(bare):
    assert bare["found"] == []


def test_a_generation_needs_no_optional_library(bare):
    assert bare["new tokens"] == [3, 5]


def test_without_triton_the_reference_serves(bare):
    assert bare["on a GPU"] == "reference"
    assert bare["attention"] == [[[1.0] * 4] * 2]


def test_without_triton_asking_for_it_is_refused(bare):
    assert "Triton cannot be imported" in bare["refusal"]
