"""The image's lock files: every package pinned and hashed, and what requirements.txt asks for is in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from tools import ROOT

FOLDER = ROOT / ".docker"
VARIANTS = {"cpu": ("lock.txt", "lock-cpu.txt"), "cuda": ("lock.txt", "lock-cuda.txt")}
MACHINES = [
    {**default_environment(), "sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine}
    | {"python_version": python, "python_full_version": f"{python}.7"}
    for python, machine in [("3.12", "x86_64"), ("3.12", "aarch64"), ("3.11", "x86_64")]
]
"""The image's base, the same on ARM, and what the tests build it on."""


def entries(path: Path) -> list[tuple[Requirement, list[str]]]:
    """What a lock file pins, with the hashes of each."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    found = []
    for entry in re.split(r"\n(?=\S)", text.strip()):
        requirement, *hashes = (part.strip() for part in entry.split("\\\n"))
        found.append((Requirement(requirement), hashes))
    return found


def pinned(variant: str, machine: dict[str, str]) -> dict[str, str]:
    """Package -> version that a variant installs."""
    versions: dict[str, str] = {}
    for name in VARIANTS[variant]:
        for requirement, _ in entries(FOLDER / name):
            if requirement.marker is None or requirement.marker.evaluate(machine):
                assert requirement.name not in versions, f"{requirement.name} is pinned twice"
                versions[requirement.name] = next(iter(requirement.specifier)).version
    return versions


def asked() -> list[Requirement]:
    lines = (line.partition(" #")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("lock*.txt")), ids=lambda path: path.stem)
def test_every_package_is_pinned_and_hashed(path: Path) -> None:
    for requirement, hashes in entries(path):
        (specifier,) = requirement.specifier
        assert (specifier.operator, "*" in specifier.version, requirement.url) == ("==", False, None), requirement
        assert hashes, f"{requirement.name} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes), requirement.name


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: f"{machine['python_version']}-{machine['platform_machine']}")
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_requirements_ask_for_is_pinned(variant: str, machine: dict[str, str]) -> None:
    """Where this fails after an edit of requirements.txt: ``python .docker/lock.py`` makes the files anew."""
    versions = pinned(variant, machine)
    for requirement in asked():
        if requirement.name == "triton" and variant == "cpu":
            assert "triton" not in versions
            continue
        assert requirement.specifier.contains(versions[requirement.name], prereleases=True), requirement
    nvidia = {name for name in versions if name.startswith(("nvidia-", "cuda-", "triton"))} - {"nvidia-ml-py"}
    assert bool(nvidia) == (variant == "cuda")


def test_both_variants_have_the_same_torch() -> None:
    cpu, cuda = (pinned(variant, MACHINES[0])["torch"] for variant in ("cpu", "cuda"))
    assert cpu == f"{cuda}+cpu"


def test_the_tests_run_on_the_image_s_triton() -> None:
    (bound,) = re.findall(r"^triton.*<=([\d.]+)", (ROOT / "tests" / "requirements.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert pinned("cuda", MACHINES[0])["triton"] == bound


def test_a_lock_names_no_host_but_the_one_that_it_is_from() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("lock*.txt"))
    assert set(re.findall(r"//([^/\s]+)", text)) == {"download.pytorch.org"}
    assert not re.findall(r"^\s*--(?!hash=)\S+", text, flags=re.MULTILINE)
