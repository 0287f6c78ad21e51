"""The page's scripts: unit tests of what draws nothing, types, linter, and how the modules are joined."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from avl.ui import components

ROOT = Path(__file__).resolve().parents[1]
PLAYER = ROOT / "assets" / "player"


def stop(reason: str) -> None:
    """Skip with a reason; in CI a skip of these would hide what they check."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def node() -> str:
    found = shutil.which("node")
    if found is None:
        stop("node is not installed: apt-get install nodejs")
    assert found is not None
    return found


def test_unit_tests_of_the_player():
    files = sorted(str(path) for path in (ROOT / "tests" / "player").glob("*.test.js"))
    assert files
    done = subprocess.run([node(), "--test", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("command", ["typescript/bin/tsc -p tsconfig.json", "eslint/bin/eslint.js ."])
def test_tool_finds_nothing_in_the_player(command: str):
    script, *arguments = command.split()
    path = PLAYER / "node_modules" / script
    if not path.is_file():
        stop("the tools are not installed: npm install --prefix assets/player --no-package-lock")
    done = subprocess.run([node(), str(path), *arguments], cwd=PLAYER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", components.ENTRIES)
def test_a_component_is_one_script_without_modules(name: str):
    script = components.script(name)
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)
    assert "const STYLE = " in script


def test_the_page_has_its_style_and_every_module_once():
    script = components.page_script()
    assert script.count("const STYLE = ") == 1
    for file in {file for entry in components.ENTRIES.values() for file in components.modules(entry)}:
        assert script.count(f"// {file.name}\n") == len(
            [one for one in components.FOLDER.rglob(file.name) if "node_modules" not in one.parts]
        ), file.name
    for name in components.ENTRIES:
        assert len(components.component(name).js_on_load) < 100, "the script itself is served once"


def modules(tmp_path: Path, **sources: str) -> None:
    for name, source in sources.items():
        (tmp_path / f"{name}.js").write_text(source, "utf-8")


def test_modules_are_joined_in_order_each_in_its_own_scope(tmp_path, monkeypatch):
    monkeypatch.setattr(components, "FOLDER", tmp_path)
    modules(
        tmp_path,
        a='import { two as deux, Three } from "./b.js";\nimport { one } from "./c.js";\n'
        "const own = one + deux();\nconsole.log(own, new Three().name);\n",
        b='import { one } from "./c.js";\nconst own = 1;\nexport function two() { return one + own; }\n'
        'export class Three { name = "three"; }\n',
        c="// a comment\nexport const one = 1; // stays\n",
    )
    joined = components.join("a.js")
    assert "a comment" not in joined
    (tmp_path / "joined.js").write_text(joined, "utf-8")
    done = subprocess.run([node(), str(tmp_path / "joined.js")], capture_output=True, text=True, check=True)
    assert done.stdout == "3 three\n"


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"a": 'import { x } from "./b.js";\n', "b": "const x = 1;\n"}, "a.js imports x, which b.js does not export"),
        ({"a": 'import { x } from "./b.js";\n', "b": 'import { y } from "./a.js";\nexport const x = 1;\n'}, "imports itself"),
        ({"a": 'import x from "./b.js";\n'}, "cannot join"),
        ({"a": "const x = 1;\nexport { x };\n"}, "cannot join"),
        ({"a": 'import { x } from "./b.js";\n'}, "there is no module"),
    ],
    ids=["not-exported", "circle", "default", "list", "missing"],
)
def test_what_cannot_be_joined_is_told(tmp_path, monkeypatch, sources, words):
    monkeypatch.setattr(components, "FOLDER", tmp_path)
    modules(tmp_path, **sources)
    with pytest.raises(ValueError, match=re.escape(words)):
        components.join("a.js")


def test_the_style_sheet_is_whole():
    """A merge that loses a brace loses every rule behind it."""
    css = re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", (PLAYER / "style.css").read_text("utf-8"), flags=re.DOTALL)
    depth = 0
    for number, line in enumerate(css.splitlines(), 1):
        depth += line.count("{") - line.count("}")
        assert 0 <= depth <= 1 or line.startswith("  "), f"line {number} of the style sheet opens a rule within another"
    assert depth == 0
