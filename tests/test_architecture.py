"""Names of modules and of what is public, and what runs at import."""

from __future__ import annotations

import ast
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


def test_modules_import_where_a_name_is_defined():
    """``import avl`` inside the package would point up and down at once; the import contracts cannot see it."""
    for module, path in modules(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and module != "avl":
                assert not [alias for alias in node.names if alias.name == "avl"], f"{module} imports the whole package"
            if isinstance(node, ast.ImportFrom) and node.module == "avl" and module != "avl":
                names = {alias.name for alias in node.names}
                assert names <= {name.partition(".")[2] for name in modules(ROOT)}, f"{module} takes {names} from the whole package"


def test_kernels_is_no_package():
    """An ordinary package of that name would shadow the library that transformers looks for."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_app_only_starts_the_page():
    tree = ast.parse((ROOT / "app.py").read_text(encoding="utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not {name.partition(".")[0] for name in imported} & {"transformers", "triton", "pynvml", "kernels"}


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


def test_no_public_name_is_a_modules_name():
    """Importing ``avl/x.py`` binds ``avl.x`` to the module, so a function of that name would be lost after the first import."""
    import avl

    files = {path.stem for path in (ROOT / "avl").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not files & set(avl.__all__)
