"""``avl space``: the folder of a Hugging Face Space is true. tests/ui/test_ui_spaces.py starts its page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from huggingface_hub import SpaceHardware
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from avl.cli import main, space

ROOT = Path(__file__).resolve().parents[2]
KINDS: tuple[space.Kind, ...] = get_args(space.Kind)
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
ZERO_TORCH = {"2.8.0", "2.9.1", "2.10.0", "2.11.0"}
"""What ZeroGPU took in August 2026, by its documentation."""
KEYS = {
    *(
        "title",
        "emoji",
        "colorFrom",
        "colorTo",
        "sdk",
        "sdk_version",
        "python_version",
        "app_file",
        "license",
        "short_description",
        "header",
    ),
    *("suggested_hardware", "models", "preload_from_hub", "startup_duration_timeout"),
}


def head(text: str) -> dict[str, Any]:
    _, front, _ = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front)


def parsed(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines if not line.startswith("--")]
    return {one.name: one for one in found}


PROJECT = parsed(space.project_requirements())


@pytest.mark.parametrize("kind", KINDS)
def test_the_front_matter_is_true(kind: space.Kind) -> None:
    hub = space.hub_id(space.HARDWARE[kind].model)
    told = head(space.front_matter(kind, hub))
    assert set(told) <= KEYS
    assert PROJECT["gradio"].specifier == SpecifierSet(f"=={told['sdk_version']}")
    assert f"Programming Language :: Python :: {told['python_version']}" in (ROOT / "pyproject.toml").read_text()
    assert {told["colorFrom"], told["colorTo"]} <= COLORS
    assert len(told["short_description"]) <= 60
    assert (told["sdk"], told["app_file"], told["license"]) == ("gradio", "app.py", "apache-2.0")
    assert told.get("suggested_hardware", "cpu-basic") in {one.value for one in SpaceHardware}
    assert told.get("models") == told.get("preload_from_hub") == (None if hub == "tiny" else [hub])
    assert ("startup_duration_timeout" in told) == (hub != "tiny")


def test_the_readme_of_this_project_is_that_of_a_space_without_a_gpu() -> None:
    assert (ROOT / "README.md").read_text("utf-8").startswith(space.front_matter("cpu", "tiny"))


@pytest.mark.parametrize("kind", KINDS)
def test_its_requirements_are_the_projects_with_the_torch_of_its_hardware(kind: space.Kind) -> None:
    lines = space.requirements(kind)
    told = parsed(lines)
    torch = told.pop("torch")
    (version,) = [one.version for one in torch.specifier]
    assert PROJECT["torch"].specifier.contains(version.partition("+")[0])
    if kind == "zero":
        assert version in ZERO_TORCH
        told.pop("spaces")
    else:
        tag = version.partition("+")[2]
        assert [line for line in lines if line.startswith("--")] == [f"--extra-index-url {space.WHEELS}{tag}"]
        assert tag.startswith("cu12" if kind == "gpu" else "cpu"), "drivers of paid GPUs are for CUDA 12"
    assert {name: str(one) for name, one in told.items()} == {
        name: str(one) for name, one in PROJECT.items() if name not in ("torch", "triton")
    }


def test_without_a_checkout_they_come_from_the_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = [f"{str(one).replace(';', ' ;') if one.marker else one}" for one in PROJECT.values() if one.name not in ("gradio", "plotly")]
    said += ["gradio==6.31.0 ; extra == 'page'", "plotly==7.1.0; extra == 'page'", "pytest>=9 ; extra == 'dev'"]
    monkeypatch.setattr(space, "PACKAGE", tmp_path / "avl")
    monkeypatch.setattr(space.metadata, "requires", lambda _: said)
    found = parsed(space.project_requirements())
    assert set(found) == set(PROJECT)
    assert found["gradio"].specifier == SpecifierSet("==6.31.0")
    assert found["gradio"].marker is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "llava-9"], "nothing that a Space could fetch"),
        (["--model", "tests/cli"], "is a folder of this machine"),
        (["--out", "FULL"], "is there and not empty"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(arguments: list[str], words: str, tmp_path: Path, capsys: Any) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    arguments = [str(full) if one == "FULL" else one for one in arguments]
    assert main(["space", "--out", str(tmp_path / "new"), *arguments]) == 1
    told = capsys.readouterr().err.strip()
    assert words in told
    assert "\n" not in told
    assert not (tmp_path / "new").exists()
    assert [path.name for path in full.iterdir()] == ["mine.txt"]


@pytest.fixture
def exported(tmp_path: Path, capsys: Any) -> Path:
    out = tmp_path / "space"
    assert main(["space", "--out", str(out), "--hardware", "cpu"]) == 0
    assert capsys.readouterr().out == f"hf upload USER/SPACE {out} . --repo-type space\n"
    return out


def test_the_folder_is_small_and_holds_nothing_of_the_development(exported: Path) -> None:
    files = [path for path in exported.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20 * 2**20
    assert max(path.stat().st_size for path in files) < 10 * 2**20, "what Hugging Face takes without more"
    names = {path.name for path in files}
    assert not names & {"draw.py", "train_log.jsonl", "package.json", "tsconfig.json", "globals.d.ts", "eslint.config.js"}
    assert {"README.md", "requirements.txt", "app.py", "LICENSE"} <= {path.name for path in exported.iterdir()}
    assert not {"tests", "pyproject.toml"} & {path.name for path in exported.iterdir()}
