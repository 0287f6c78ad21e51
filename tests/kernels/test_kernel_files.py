"""The folder kernels/: implementations of one operator never meet, so each can be read alone; and README.md names every file."""

import ast
import re
from pathlib import Path

import pytest

from avl._paths import KERNELS

OPERATORS = ("core", "layer", "window")
IMPLEMENTATIONS = ("reference", "cpu", "triton")


def imported(source: str, package: str) -> set[str]:
    """Dotted names of all that a module of `package` imports, inside of functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def met(source: str, operator: str) -> set[str]:
    """The implementations, of any operator, that a module of `operator` imports."""
    modules = {f"avl.kernels.{folder}.{name}" for folder in OPERATORS for name in IMPLEMENTATIONS}
    return modules & imported(source, f"avl.kernels.{operator}")


def files() -> list[Path]:
    return [path for operator in OPERATORS for path in sorted((KERNELS / operator).glob("*.py"))]


def test_operators_all_have_a_specification_and_a_triton_implementation() -> None:
    for operator in OPERATORS:
        names = {path.stem for path in (KERNELS / operator).glob("*.py")}
        assert {"reference", "triton"} <= names, operator


@pytest.mark.parametrize("path", files(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_module_of_an_operator_imports_no_implementation(path: Path) -> None:
    assert met(path.read_text(encoding="utf-8"), path.parent.name) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import avl.kernels.core.reference",
        "from avl.kernels.core import reference as exact",
        "from avl.kernels.core.reference import attend",
        "def f():\n    from avl.kernels.core.reference import attend",
        "from . import reference",
        "from .reference import attend",
        "from ..core.reference import attend",
    ],
)
def test_planted_import_of_an_implementation_is_found(source: str) -> None:
    assert met(source, "core") == {"avl.kernels.core.reference"}


def test_readme_names_every_file_and_no_other() -> None:
    table = (KERNELS / "README.md").read_text(encoding="utf-8").partition("| file |")[2].partition("\n\n")[0]
    named, folder = set(), ""
    for name in re.findall(r"`([\w./]+(?:/|\.py))`", table):
        if name.endswith("/"):
            folder = name  # the names that follow are its files
        else:
            named.add(name if "/" in name or not folder else folder + name)
    there = {path.relative_to(KERNELS).as_posix() for path in KERNELS.rglob("*.py") if path.name != "__init__.py"}
    assert {name for name in named if not name.startswith("../")} == there
    for name in named:
        assert (KERNELS / name).exists(), name
