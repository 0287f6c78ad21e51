"""``avl paper`` before it loads anything: what it lists, what it needs, what it refuses."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from avl import cli
from avl.evaluation.paper import evaluator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(evaluator, "version", version)


@pytest.mark.usefixtures("without_evaluator")
def test_it_lists_without_evaluator_and_model(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["paper", "--list", "--model", "llava-1.6-7b"]) == 0
    shown = capsys.readouterr().out
    assert "  nocaps_val      NoCaps, CIDEr\n" in shown
    assert "FastV: FastV layer=2 keep=50, set to store 50% of a full cache" in shown
    assert "    A-VL S=40 K=3 on nocaps_val, flickr30k_test" in shown
    assert "paper: docvqa_val 74.46" in shown
    assert cli.main(["paper", "--list", "--model", "llava-1.6-7b", "--policies", "table3"]) == 0
    assert "flickr30k" not in capsys.readouterr().out, "it is not in Table 3"


@pytest.mark.usefixtures("without_evaluator")
def test_without_evaluator_the_lines_that_install_it_are_told(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["paper", "--model", "llava-1.5-7b"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("paper: the paper's tables need lmms-eval, which is not installed: run\n")
    assert all(f"  {line}\n" in told for line in evaluator.INSTALL)


def test_what_is_told_to_install_is_what_ci_and_the_extra_install():
    first, second, third = evaluator.INSTALL
    packages = [word.strip('"') for word in first.removeprefix("pip install ").split()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert packages == project["optional-dependencies"]["paper"]
    script = (ROOT / ".ci" / "install_lmms_eval.sh").read_text(encoding="utf-8")
    assert second.split()[-1] in script
    for name in re.findall(r"[\w-]+", " ".join(packages + third.split()[3:])):
        assert re.search(rf"\b{name}\b", script) or name.isdecimal(), f"{name} is not installed in CI"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--policies", "best"], 2, "there is no policy 'best'"),
        (["--policies", "avl:S=400"], 1, "S=400 is out of range"),
        (["--limit", "0"], 2, "--limit"),
        (["--include-path", "nowhere"], 1, "--include-path names a folder with task files, and nowhere is none"),
    ],
    ids=["policy", "parameter", "limit", "folder"],
)
def test_bad_input_is_refused_first(arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["paper", *arguments]) == status
    assert said in capsys.readouterr().err
