"""The recipes of CONTRIBUTING.md, walked: their code is put where they say into a copy of the tree, and the copy must work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```\w+ file=(\S+)(?: (after|before|replace)=\"([^\n]*)\")?\n(.*?)^```$", re.M | re.S)


def recipe(name: str) -> list[tuple[str, str, str, str]]:
    """The code blocks of one section: (file, where, anchor, code); ``where`` is empty for a new file."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
    found = [(file, where, anchor, code) for file, where, anchor, code in BLOCK.findall(section)]
    assert found, f"CONTRIBUTING.md has no section {name!r} with code"
    return found


def walk(name: str, tree: Path) -> None:
    """Copy the project to ``tree`` and do what the recipe says."""
    for folder in ("avl", "kernels", "tests", "assets"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "screenshots", "node_modules"))
    for file in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "app.py", "requirements.txt"):
        shutil.copy(ROOT / file, tree / file)
    for file, where, anchor, code in recipe(name):
        path = tree / file
        if not where:
            assert not path.exists(), f"{file} is there already: the recipe's example needs another name"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
            continue
        text = path.read_text(encoding="utf-8")
        assert text.count(anchor) == 1, f"the recipe {name!r} looks for one {anchor!r} in {file} and finds {text.count(anchor)}"
        if where == "after":
            line_end = text.index("\n", text.index(anchor) + len(anchor)) + 1
            text = text[:line_end] + code + text[line_end:]
        elif where == "before":
            text = text.replace(anchor, code + anchor)
        else:
            text = text.replace(anchor, code.rstrip("\n"))
        path.write_text(text, encoding="utf-8")


def run(tree: Path, *command: str) -> str:
    """Run Python in the copy; what it prints."""
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def check_types(tree: Path) -> None:
    """Run mypy in the copy, with what it knows of the same files here: of torch and transformers above all."""
    known = ROOT / ".mypy_cache"
    if known.exists():
        shutil.copytree(known, tree / known.name)
    run(tree, "-m", "mypy")


def test_a_recipe_whose_anchor_is_gone_fails(tmp_path, monkeypatch):
    """The walk itself can fail."""
    monkeypatch.setattr(sys.modules[__name__], "recipe", lambda name: [("README.md", "after", "no such line in any readme", "code\n")])
    with pytest.raises(AssertionError, match=r"looks for one 'no such line in any readme' in README.md and finds 0"):
        walk("anything", tmp_path)


@pytest.mark.slow
def test_add_a_policy(tmp_path):
    """In the registry, on the command line and on the page; counted as the cost model says and equal to the oracle; linted and typed."""
    walk("Add a policy", tmp_path)
    tests = ["tests/policies", "tests/invariants/test_oracle.py", "tests/invariants/test_full.py", "tests/engine/test_fused.py"]
    out = run(tmp_path, "-m", "pytest", "-q", "-n", "0", *tests, "-k", "newest or Newest or registry")
    assert int(re.search(r"(\d+) passed", out)[1]) > 20
    assert "newest" in run(tmp_path, "-m", "avl", "compare", "--help")
    said = run(
        tmp_path,
        "-c",
        textwrap.dedent("""
        import json
        import avl
        from avl.ui import settings
        print(json.dumps([avl.Newest(keep=30).label, "Newest" in str(settings.catalog())]))
        """),
    )
    assert said.strip() == '["Newest keep=30", true]'
    run(tmp_path, "-m", "ruff", "check", "avl", "tests/oracle.py", "tests/policy_cases.py")
    check_types(tmp_path)


@pytest.mark.slow
def test_add_a_model_family(tmp_path):
    """Every law of the families holds for it, its rectangles are where its tokens look, and it loads from a folder."""
    walk("Add a model family", tmp_path)
    tests = ["tests/invariants/test_families.py", "tests/models/test_family_grids.py", "tests/models/test_round_trip.py"]
    out = run(tmp_path, "-m", "pytest", "-q", "-n", "0", *tests, "-k", "vipllava")
    assert int(re.search(r"(\d+) passed", out)[1]) > 15
    assert "VipLlava" in run(tmp_path, "-c", "from avl.models.families import supported; print(supported())")
    run(tmp_path, "-m", "ruff", "check", "avl", "tests/tiny_families")
    check_types(tmp_path)


@pytest.mark.slow
def test_add_a_kernel(tmp_path, monkeypatch):
    """In Triton's interpreter it gives what its equation gives, and it keeps the rules of the folder."""
    walk("Add a kernel", tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    out = run(tmp_path, "-m", "pytest", "-q", "-n", "0", "tests/kernels/test_gate.py", "tests/kernels/test_kernel_files.py")
    assert int(re.search(r"(\d+) passed", out)[1]) > 9
    run(tmp_path, "-m", "ruff", "check", "kernels", "avl", "tests/kernels/test_gate.py")
