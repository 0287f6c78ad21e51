"""Import rules: layering and ownership of heavy dependencies (contracts in pyproject.toml), and that nothing happens at import."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of ``root/avl``."""
    found = {}
    for path in sorted((root / "avl").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


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
        ("avl/engine/runner.py", "import gradio as gr", "The page has gradio and plotly to itself"),
        ("avl/policies/avl.py", "import torch, transformers", "Policies are plain Python"),
        ("avl/kernels/__init__.py", "def f():\n    import triton.language as tl", "Triton lives in kernels/"),
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


def test_no_module_is_called_utils():
    for module in modules(ROOT):
        assert not FORBIDDEN_NAMES & set(module.split(".")), f"{module}: name a module by what it holds"


def test_nothing_imports_the_bare_name_kernels():
    for folder in ("avl", "kernels", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not [name for name in names if name.partition(".")[0] == "kernels"], f"{path}: the name kernels is Hugging Face's"


def test_kernels_is_no_package():
    """An ordinary package of that name would shadow the library that transformers looks for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_app_only_starts_the_page():
    tree = ast.parse((ROOT / "app.py").read_text(encoding="utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not {name.partition(".")[0] for name in imported} & {"transformers", "triton", "pynvml", "kernels"}


def fresh(source: str, **environment: str) -> str:
    """Run ``source`` in a new interpreter at the checkout's root; what it prints."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HIDE = """
    import importlib.machinery

    find_spec = importlib.machinery.PathFinder.find_spec

    def hide(name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else find_spec(name, path, target)

    importlib.machinery.PathFinder.find_spec = staticmethod(hide)
"""


def test_runs_without_triton_gradio_and_torchvision():
    """Import and a whole A-VL generation in a fresh interpreter that does not find those libraries."""
    source = HIDE.format(names=("triton", "gradio", "torchvision", "pynvml", "plotly", "lmms_eval")) + """
    import avl
    from random_models import RAGGED, build_model, build_processor, encode
    model, processor = build_model("llava-llama"), build_processor("llava-llama")
    avl.attach(model)
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30), max_new_tokens=5)
    print(model.generate(**inputs, past_key_values=cache, max_new_tokens=5, do_sample=False).shape[0])
    """
    assert fresh(source).strip() == "3"


def test_importing_avl_loads_nothing_heavy():
    source = """
    import sys
    import avl
    print([name for name in ("transformers", "gradio", "triton", "pynvml", "plotly", "lmms_eval") if name in sys.modules])
    """
    assert fresh(source).strip() == "[]"


def test_nothing_happens_at_import():
    """No registration in transformers, no CUDA call, no thread, no change of torch's global settings; not even in the rooms that run."""
    source = """
    import sys, threading
    import torch
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface
    import transformers.models.llava.modeling_llava

    def state():
        return (
            sorted(AttentionInterface().keys()), sorted(AttentionMaskInterface().keys()), threading.active_count(), torch.is_grad_enabled(),
            torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state().tolist(), torch.backends.cuda.matmul.allow_tf32,
            torch.cuda.is_initialized(),
        )

    before = state()
    import avl
    avl.attach, avl.detach, avl.make_cache, avl.stream, avl.load, avl.AVL, avl.PRESETS
    assert state() == before, "importing avl changed something global"
    print("clean")
    """
    assert fresh(source).strip() == "clean"


def test_import_reads_no_environment():
    for module, path in modules(ROOT).items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_import = [node for statement in tree.body for node in _executed(statement)]
        for node in at_import:
            text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Call) else ""
            assert "environ" not in text, f"{module} reads the environment at import"
            assert "getenv" not in text, f"{module} reads the environment at import"


def _executed(statement: ast.stmt):
    """Nodes of a module-level statement that run at import: function bodies are left out."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    yield statement
    for child in ast.iter_child_nodes(statement):
        yield from _executed(child)


def test_public_names():
    import avl

    for name in ("load", "attach", "detach", "make_cache", "stream", "AVL", "Full", "H2O", "FastV", "StreamingLLM", "PRESETS"):
        assert hasattr(avl, name), f"avl.{name} is missing"
    assert "llava-1.5-7b" in avl.PRESETS
    preset = avl.PRESETS["llava-1.5-7b"]
    assert preset == avl.AVL(S=preset.S, C=preset.C, K=preset.K, P=preset.P, T=preset.T, update=preset.update)


def test_policies_are_frozen_values():
    import dataclasses

    import avl

    for policy in (avl.AVL(S=45, C=30), avl.Full(), avl.H2O(), avl.FastV(), avl.StreamingLLM()):
        assert dataclasses.is_dataclass(policy)
        assert policy == dataclasses.replace(policy)
        assert hash(policy) == hash(dataclasses.replace(policy))
        for field in dataclasses.fields(policy):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(policy, field.name, 1)
    assert avl.AVL(45, 30, 3, 90, 60, "every") == avl.AVL(S=45, C=30, K=3, P=90, T=60)
    assert avl.AVL(S=45) == avl.AVL(S=45, C=None, P=None, T=None)
    assert avl.H2O() == avl.H2O(keep=50, recent=75)
    assert avl.FastV() == avl.FastV(layer=2, keep=50)
    assert avl.StreamingLLM() == avl.StreamingLLM(keep=50, sinks=4)


def test_a_fake_library_named_kernels_does_not_break_llava(tmp_path):
    """With the checkout first on the path, the bare name ``kernels`` still finds the other library, and avl.kernels finds ours."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("MARK = 'theirs'\n")
    source = f"""
    import sys
    sys.path.append({str(tmp_path)!r})
    import avl, avl.kernels
    import transformers.models.llava.modeling_llava
    from avl.kernels import core_attention
    import kernels
    print(getattr(kernels, "MARK", "ours"), callable(core_attention))
    """.replace("import kernels\n", "kernels = __import__('kernels')\n")
    assert fresh(source).strip() == "theirs True"


def test_no_public_name_is_a_modules_name():
    """Importing ``avl/x.py`` binds ``avl.x`` to the module, so a function of that name would be lost after the first import."""
    import avl

    files = {path.stem for path in (ROOT / "avl").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not files & set(avl.__all__)
