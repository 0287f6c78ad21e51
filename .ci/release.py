"""Build a release from the tagged commit that is checked out: source distribution, wheel, and both variants of the image.

    .venv/bin/python .ci/release.py

Refuses where the commit is not that of the version: its tag, the changelog and the tree must agree. Needs what tests/requirements.txt
names, and docker or podman. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
VARIANTS = {"cuda": "", "cpu": "-cpu"}
"""Variant of the image -> what its tag ends with."""


def output(*command: str | Path) -> str:
    """Return what a command prints.

    Raises:
        SystemExit: it failed; with what it said.
    """
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def read_version() -> str:
    """Return ``avl.__version__`` without importing it."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "avl" / "__init__.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return str(version)


def faults(version: str) -> list[str]:
    """Return what keeps the checked-out commit from being the release of a version, a sentence each."""
    found = []
    changed = output("git", "status", "--porcelain").splitlines()
    if changed:
        found.append(
            f"{len(changed)} files differ from the commit, such as {changed[0].split(maxsplit=1)[1]}: commit them, or put them away"
        )
    tags = output("git", "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        others = f", but {', '.join(tags)}" if tags else ""
        found.append(f"the commit has no tag v{version}, as avl.__version__ says{others}: git tag -a v{version} -m v{version}")
    heading = re.search(rf"^## {re.escape(version)}\b[ –-]*(.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    if heading is None:
        found.append(f"CHANGELOG.md has no section {version}: write one")
    else:
        try:
            datetime.date.fromisoformat(heading[1])
        except ValueError:
            found.append(f"CHANGELOG.md dates {version} with {heading[1]!r}: give the day, as in ## {version} – {datetime.date.today()}")
    return found


def build_packages(version: str) -> list[Path]:
    """Build the source distribution and the wheel into ``dist/``, and return them."""
    shutil.rmtree(DIST, ignore_errors=True)
    output(sys.executable, "-m", "hatchling", "build", "-d", DIST, "-t", "sdist", "-t", "wheel")
    files = [DIST / f"avl-{version}.tar.gz", DIST / f"avl-{version}-py3-none-any.whl"]
    absent = [path.name for path in files if not path.exists()]
    if absent:
        sys.exit(f"the build made no {', '.join(absent)}")
    return files


def check_wheel(wheel: Path, version: str) -> str:
    """Install the wheel into an empty environment with this one's dependencies; return the last line of its ``avl doctor``."""
    with tempfile.TemporaryDirectory() as folder:
        programs = Path(folder) / "bin"
        output(sys.executable, "-m", "venv", "--without-pip", folder)
        output(sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--no-deps", "--no-index", wheel)
        site = next(Path(folder).glob("lib/python*/site-packages"))
        (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        found = output(programs / "python", "-I", "-c", "import avl; print(avl.__version__)")
        if found != version:
            sys.exit(f"the installed wheel is version {found}, not {version}")
        return output(programs / "avl", "doctor").splitlines()[-1]


def build_image(engine: str, version: str, variant: str) -> tuple[str, int, str]:
    """Build a variant of the image; return its tag, its bytes and its id."""
    tag = f"avl:{version}{VARIANTS[variant]}"
    labels = {"version": version, "revision": output("git", "rev-parse", "HEAD"), "licenses": "Apache-2.0"}
    words = [word for name, value in labels.items() for word in ("--label", f"org.opencontainers.image.{name}={value}")]
    subprocess.run([engine, "build", "--build-arg", f"VARIANT={variant}", *words, "--tag", tag, "."], cwd=ROOT, check=True)
    size, identity = output(engine, "image", "inspect", "--format", "{{.Size}} {{.Id}}", tag).split()
    return tag, int(size), identity


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, build, and print sizes and digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only check")
    parser.add_argument("--no-image", action="store_true", help="build the packages alone")
    options = parser.parse_args(arguments)
    version = read_version()
    engine = next((name for name in ("docker", "podman") if shutil.which(name)), None)
    found = faults(version)
    if engine is None and not options.no_image:
        found.append("neither docker nor podman is on PATH: install one, or leave the image out with --no-image")
    if found:
        sys.exit("\n".join(f"release {version}: {fault}" for fault in found))
    print(f"release {version}: tag, tree and changelog agree")
    if options.dry_run:
        return
    source, wheel = build_packages(version)
    for path in (source, wheel):
        print(f"{path.name}  {path.stat().st_size / 1e6:.1f} MB  sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    print(f"avl doctor, from the wheel: {check_wheel(wheel, version)}")
    if engine is None or options.no_image:
        return
    for variant in VARIANTS:
        tag, size, identity = build_image(engine, version, variant)
        print(f"{tag}  {size / 1e6:.0f} MB  {identity}")


if __name__ == "__main__":
    main()
