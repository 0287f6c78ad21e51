"""What depends on the order of imports, tried in fresh processes."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_here import IMPORTED_TOO_EARLY, why_no_triton

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *paths: Path, **env: str) -> str:
    """Standard output of `code` in a new interpreter that finds modules in `paths`."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), **env}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


CALL = """
import torch
from avl.kernels import core_attention, resolve_impl
out, _ = core_attention(torch.ones(1, 2, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), torch.tensor([[2, 0]]))
assert torch.equal(out, torch.ones(1, 2, 4))
"""


def test_pytorch_path_runs_where_triton_cannot_be_imported() -> None:
    code = (
        "import sys; sys.modules['triton'] = None"
        + CALL
        + """
assert resolve_impl("cuda") == "reference"
try:
    resolve_impl("cpu", "triton")
except RuntimeError as error:
    print(error)
"""
    )
    assert "Triton cannot be imported" in run(code, ROOT)


def test_pytorch_path_does_not_import_triton() -> None:
    assert run(CALL + "import sys; print('triton' in sys.modules)", ROOT) == "False"


# enough of the library for transformers to import: classes to construct, and functions that return a decorator
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


def test_llava_imports_beside_the_kernels_library(tmp_path: Path) -> None:
    """Hugging Face's `kernels`, behind our checkout on the path, must still be what `import kernels` finds, and LLaVA import."""
    fake = tmp_path / "kernels"
    (fake / "layer").mkdir(parents=True)
    (fake / "__init__.py").write_text(FAKE_KERNELS)
    (fake / "layer" / "__init__.py").write_text("")
    (fake / "layer" / "mode.py").write_text("from kernels import Mode")
    code = (
        "from transformers import LlavaForConditionalGeneration\n"
        "from transformers.utils import is_kernels_available\n"
        "assert is_kernels_available()" + CALL + "import kernels; print(kernels.__file__)"
    )
    assert run(code, ROOT, tmp_path) == str(fake / "__init__.py")


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
