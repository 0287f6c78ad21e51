"""The house keeps its rules: imports follow the arrows of the design, heavy libraries have one room each, nothing happens at import.

The rules are read from the source (an AST walk, imports inside functions included), so an import that no test executes counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    ("trace", "pictures"),
    ("partition", "scoring", "spans", "prompt", "architectures", "recorder", "readback"),
    ("policies", "kernels"),
    ("attention", "exact", "cache", "layer", "bank"),
    ("decode", "fused", "prefill", "models", "attachment"),
    ("engine", "runner", "analysis", "telemetry", "graphs", "tiny", "measure", "roofline", "plots", "random_weights"),
    ("ui", "cli", "bench", "evaluation", "doctor", "compare", "record", "figures", "__main__"),
]
"""Bottom to top. A room imports from its own floor or below; what is not listed here has no place yet."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

OWNERS = {
    # the recipe of the bundled model builds an unmodified transformers model, so it counts as one of the rooms that may
    "transformers": {"models", "attention", "cache", "layer", "prefill", "decode", "random_weights", "tiny"},
    "gradio": {"ui"},
    "plotly": {"ui"},
    "triton": set(),  # kernels/ at the top level, never avl/
    "pynvml": {"telemetry"},
    "lmms_eval": {"evaluation"},
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of ``root/avl``."""
    found = {}
    for path in sorted((root / "avl").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The unit that the arrows speak of: ``avl.ui.page`` -> ``ui``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(module: str, path: Path, known: set[str]) -> set[str]:
    """Absolute names that a file imports; ``from avl import x`` counts as ``avl.x`` where that is a module, else as ``avl``."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                names.add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base)
    return names


def violations(root: Path) -> list[str]:
    known = modules(root)
    found = []
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        here = room(module)
        where = path.relative_to(root)
        if FORBIDDEN_NAMES & set(module.split(".")):
            found.append(f"{where}: no module is called {module.rpartition('.')[2]}")
        if here and here not in FLOOR:
            found.append(f"{where}: {here} has no floor in this test: give it one")
            continue
        for name in sorted(imports(module, path, set(known))):
            top = name.partition(".")[0]
            if top in OWNERS and here not in OWNERS[top]:
                found.append(f"{where}: imports {name}, which belongs to {', '.join(sorted(OWNERS[top])) or 'kernels/'}")
            if top == "kernels":
                found.append(f"{where}: imports the bare name kernels, which belongs to another library")
            if top != "avl" or not here:
                continue
            there = room(name)
            if not there:
                if FLOOR[here] < len(FLOORS) - 1:
                    found.append(f"{where}: imports the package avl, only the top floor may")
            elif there in FLOOR:
                if FLOOR[there] > FLOOR[here]:
                    found.append(f"{where}: {here} imports {there}, an upward arrow")
                elif there != here:
                    edges.setdefault(here, set()).add(there)
    found.extend(f"rooms import each other: {' -> '.join(cycle)}" for cycle in cycles(edges))
    return found


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    found = []
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> None:
        if node in trail:
            found.append([*trail[trail.index(node) :], node])
            return
        if node not in done:
            for other in sorted(edges.get(node, ())):
                visit(other, [*trail, node])
            done.add(node)

    for node in sorted(edges):
        visit(node, [])
    return found


def test_imports_follow_the_arrows():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("avl/cache.py", "from avl.engine import stream", "cache imports engine, an upward arrow"),
        ("avl/cache.py", "from avl import engine", "cache imports engine, an upward arrow"),
        ("avl/spans.py", "def f():\n    from .policies import AVL", "spans imports policies, an upward arrow"),
        ("avl/policies/avl.py", "from ..cache import Cache", "policies imports cache, an upward arrow"),
        ("avl/engine.py", "import avl", "imports the package avl"),
        ("avl/policies/avl.py", "import torch, transformers", "imports transformers"),
        ("avl/engine.py", "from transformers.cache_utils import Cache", "imports transformers.cache_utils"),
        ("avl/engine.py", "import gradio as gr", "imports gradio"),
        ("avl/kernels.py", "def f():\n    import triton.language as tl", "imports triton.language"),
        ("avl/bench.py", "import pynvml", "imports pynvml"),
        ("avl/attention.py", "import kernels", "bare name kernels"),
        ("avl/utils.py", "", "no module is called utils"),
        ("avl/ui/helpers.py", "", "no module is called helpers"),
        ("avl/newroom.py", "", "newroom has no floor"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, source, complaint):
    for existing in ("avl/__init__.py", "avl/engine.py", "avl/cache.py", "avl/policies/__init__.py", "avl/ui/__init__.py"):
        (tmp_path / existing).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / existing).write_text("")
    assert violations(tmp_path) == []
    (tmp_path / file).write_text(source)
    assert any(complaint in found for found in violations(tmp_path)), violations(tmp_path)


def test_a_planted_cycle_is_found(tmp_path):
    (tmp_path / "avl").mkdir()
    (tmp_path / "avl/decode.py").write_text("from avl.prefill import prefill")
    assert violations(tmp_path) == []
    (tmp_path / "avl/prefill.py").write_text("def f():\n    from avl.decode import step")
    (tmp_path / "avl/decode.py").write_text("from avl.prefill import prefill")
    assert violations(tmp_path) == ["rooms import each other: decode -> prefill -> decode"]


def test_kernels_is_no_package():
    """An ordinary package of that name would shadow the library that transformers looks for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_app_only_starts_the_page():
    app = ROOT / "app.py"
    if not app.exists():
        pytest.skip("app.py is not there yet")
    tops = {name.partition(".")[0] for name in imports("app", app, set(modules(ROOT)))}
    assert not tops & {"transformers", "triton", "pynvml", "kernels"}


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
