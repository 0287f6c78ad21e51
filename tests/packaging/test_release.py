"""The release command, in a clone: what it refuses, and what it builds. A stand-in for docker notes how it is called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import ROOT, need

VERSION = re.findall(r'^__version__ = "(.+)"$', (ROOT / "avl" / "__init__.py").read_text(), flags=re.MULTILINE)[0]
DOCKER = """#!/bin/sh
echo "$*" >> "$0.log"
[ "$1" = build ] || echo 1234000000 sha256:0123
"""


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone, with this checkout's release command and packages, whatever is committed."""
    need("git")
    if not (ROOT / ".git").exists():
        pytest.skip("a source distribution has no commits")
    folder = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(ROOT), str(folder))
    changed = git(ROOT, "ls-files", "-z", "--modified", "--others", "--exclude-standard").split("\0")
    for name in filter(None, changed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            (folder / name).write_bytes((ROOT / name).read_bytes())
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "--allow-empty", "-m", "What is not committed yet")
    return folder


def release(clone: Path, *options: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/release.py", *options],
        cwd=clone, env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_what_is_missing_is_told_in_a_sentence_each(clone: Path) -> None:
    changelog = clone / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace(f"## {VERSION} ", "## 99.0.0 "))
    git(clone, "tag", "v99.0.0")
    done = release(clone, "--dry-run", "--no-image")
    assert (done.returncode, done.stdout) == (1, "")
    told = done.stderr.splitlines()
    assert len(told) == 3
    assert told[0].startswith(f"release {VERSION}: 1 files differ from the commit, such as CHANGELOG.md: ")
    assert f"no tag v{VERSION}, as avl.__version__ says, but v99.0.0: " in told[1]
    assert told[2].endswith(f"CHANGELOG.md has no section {VERSION}: write one")
    assert not (clone / "dist").exists()


@pytest.mark.slow
def test_a_tagged_version_becomes_packages_and_images(clone: Path, tmp_path: Path) -> None:
    changelog = clone / "CHANGELOG.md"
    heading = next(line for line in changelog.read_text().splitlines() if line.startswith(f"## {VERSION} "))
    changelog.write_text(changelog.read_text().replace(heading, f"## {VERSION} – unreleased"))
    git(clone, "commit", "-q", "--allow-empty", "-am", "Not yet")
    git(clone, "tag", f"v{VERSION}")
    assert release(clone, "--dry-run", "--no-image").stderr.startswith(
        f"release {VERSION}: CHANGELOG.md dates {VERSION} with 'unreleased': "
    )
    changelog.write_text(changelog.read_text().replace("unreleased", "2026-11-26", 1))
    git(clone, "commit", "-q", "-am", "Release")
    git(clone, "tag", "-f", f"v{VERSION}")

    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    done = release(clone, path=str(docker.parent))
    assert done.returncode == 0, done.stderr
    agreed, source, wheel, doctor, cuda, cpu = done.stdout.splitlines()
    assert agreed == f"release {VERSION}: tag, tree and changelog agree"
    assert (source.split()[0], wheel.split()[0]) == (f"avl-{VERSION}.tar.gz", f"avl-{VERSION}-py3-none-any.whl")
    assert "sha256:" in source
    assert "ready: " in doctor
    assert cuda.startswith(f"avl:{VERSION}  1234 MB  sha256:")
    assert cpu.startswith(f"avl:{VERSION}-cpu  1234 MB  sha256:")
    built = [line for line in (docker.parent / "docker.log").read_text().splitlines() if line.startswith("build")]
    assert [f"VARIANT={variant}" in line for variant, line in zip(("cuda", "cpu"), built, strict=True)] == [True, True]
    assert f"org.opencontainers.image.version={VERSION}" in built[0]
    assert git(clone, "status", "--porcelain") == "", "what it builds is ignored"
