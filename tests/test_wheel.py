"""The wheel: what it holds, and that it works installed outside the checkout. Its dependencies are those of the running interpreter."""

from __future__ import annotations

import email
import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEVELOPMENT = {"draw.py", "train_log.jsonl", "package.json", "tsconfig.json", "eslint.config.js", "globals.d.ts"}
LIMIT = 20 * 2**20
"""Bytes that a wheel may have; 13 million are the bundled model."""


def requirements(path: Path) -> set[str]:
    """The lines of a requirements file, spelled alike, without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {line.replace('"', "'") for line in lines if line}


def test_requirements_are_those_of_the_project():
    """requirements.txt is for checkouts, Docker and Spaces: what pip would install for the library and its page."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert requirements(ROOT / "requirements.txt") == {*project["dependencies"], *extras["page"]}
    assert requirements(ROOT / "tests" / "requirements.txt") == set(extras["dev"])
    assert set(extras["bench"]) <= set(extras["dev"])
    assert "torch>=2.11,<=2.13.0" in project["dependencies"]
    assert not [line for line in project["dependencies"] if re.match("gradio|plotly|prometheus|matplotlib", line)], (
        "a library user needs no page"
    )


def build(source: Path, folder: Path, *targets: str) -> list[Path]:
    """Build with hatchling, which needs no network, and return the files."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), *(part for target in targets for part in ("-t", target))]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel."""
    try:
        import hatchling.build  # noqa: F401
    except ImportError:
        if os.environ.get("CI", "").lower() == "true":
            raise
        pytest.skip("hatchling is not installed (tests/requirements.txt names it)")
    wheel, source = build(ROOT, tmp_path_factory.mktemp("dist"), "sdist", "wheel")
    assert (wheel.suffix, source.suffix) == (".whl", ".gz")
    return source, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel; its folder of programs."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    programs = folder / "bin"
    command = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "-q", "--no-deps", "--no-index", str(built[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # only now, so that pip does not take what lies there for part of the environment
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return programs


def environment() -> dict[str, str]:
    """This process's environment without what could point at the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON"))} | {"OMP_NUM_THREADS": "1"}


def run(command: list[str], cwd: Path) -> str:
    """Run a program of the environment; what it prints."""
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_what_the_wheel_holds(built, capsys):
    _, wheel = built
    names = set(contents(wheel))
    with capsys.disabled():
        print(f"\n{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files")
    assert wheel.stat().st_size < LIMIT
    outside = {name for name in names if not name.startswith(("avl/", "avl-"))}
    assert not outside, "nothing lies at the top: the name kernels is Hugging Face's"
    for folder in ("tests", "screenshots", "bench/bench", "_assets/figures", "__pycache__"):
        assert not [name for name in names if f"/{folder}/" in f"/{name}"], folder
    for name in ("draw.py", "train_log.jsonl", "sweep.json", "app.py"):
        assert not [one for one in names if one.endswith(name)], name
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "avl").rglob("*.py")}
    assert modules <= names
    kernels = {f"avl/_kernels/{path.relative_to(ROOT / 'kernels').as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    assert kernels <= names
    assert "avl/py.typed" in names
    for folder in ("fonts", "gallery", "player", "tiny", "traces"):
        files = [path.relative_to(ROOT / "assets") for path in (ROOT / "assets" / folder).rglob("*") if path.is_file()]
        wanted = {f"avl/_assets/{path.as_posix()}" for path in files if "node_modules" not in path.parts}
        assert {name.rpartition("/")[2] for name in wanted - names} <= DEVELOPMENT, folder


@pytest.mark.slow
def test_what_the_wheel_says_of_itself(built):
    import avl

    files = contents(built[1])
    folder = next(name.partition("/")[0] for name in files if name.endswith("/METADATA"))
    about = email.message_from_bytes(files[f"{folder}/METADATA"])
    assert about["Name"] == "avl"
    assert about["Version"] == avl.__version__
    assert about["License-Expression"] == "Apache-2.0"
    assert {"page", "bench", "dev"} <= set(about.get_all("Provides-Extra"))
    needed = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert [line for line in needed if line.startswith("torch")] == ["torch<=2.13.0,>=2.11"]
    assert "avl = avl.cli:main" in files[f"{folder}/entry_points.txt"].decode()
    assert f"{folder}/licenses/LICENSE" in files


@pytest.mark.slow
def test_a_wheel_of_the_source_distribution_is_the_same(built, tmp_path):
    source, wheel = built
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    (again,) = build(unpacked, tmp_path / "dist", "wheel")
    assert contents(again) == contents(wheel)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), ("gradio", "plotly", "prometheus_client", "matplotlib")], ids=["all", "library-only"])
def test_it_answers_outside_the_checkout(installed, tmp_path, hidden):
    """Attach and generate under A-VL on the bundled model; LLaVA imports; the bare name ``kernels`` is not taken."""
    source = f"""
    import importlib.util
    import json
    import sys

    for name in {hidden!r}:
        sys.modules[name] = None
    import torch
    from transformers import LlavaForConditionalGeneration
    import avl
    from avl.models.images import open_image
    from avl._paths import ASSETS, KERNELS

    model, processor = avl.load("tiny", device="cpu")
    assert isinstance(model, LlavaForConditionalGeneration)
    avl.attach(model)
    picture = open_image(ASSETS / "gallery" / "scene-4.png")
    inputs = processor(images=picture, text="USER: <image>\\nDescribe the picture. ASSISTANT:", return_tensors="pt")
    cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30, K=3, P=90, T=60), max_new_tokens=12)
    out = model.generate(**inputs, past_key_values=cache, max_new_tokens=12, do_sample=False)
    text = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    streamed = avl.stream(model, processor, picture, "Describe the picture.", avl.Full(), max_new_tokens=3)
    events = [type(event).__name__ for event in streamed]
    print(json.dumps([avl.__file__, str(ASSETS), str(KERNELS), text, events, importlib.util.find_spec("kernels") is None]))
    """
    home, assets, kernels, text, events, free = json.loads(run([str(installed / "python"), "-c", textwrap.dedent(source)], tmp_path))
    package = Path(home).parent
    assert package.is_relative_to(installed.parent)
    assert Path(assets) == package / "_assets"
    assert Path(kernels) == package / "_kernels"
    assert len(text.split()) > 3
    assert events[0] == "Start"
    assert events[-1] == "End"
    assert free


@pytest.mark.slow
def test_its_commands_run(installed, tmp_path):
    assert "missing: " not in run([str(installed / "avl"), "doctor"], tmp_path)
    assert "usage: " in run([str(installed / "python"), "-m", "avl.kernels.bench", "--help"], tmp_path)
    assert "Usage: avl" in run([str(installed / "python"), "-m", "avl", "--help"], tmp_path)


@pytest.mark.slow
def test_its_page_starts(installed, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        command = [str(installed / "avl"), "page", "--device", "cpu", "--port", str(port)]
        server = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        limit = time.monotonic() + 300
        while True:
            try:
                health = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10).read())
                break
            except OSError:
                assert server.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < limit, log.read_text()[-3000:]
                time.sleep(0.2)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read().decode()
    finally:
        server.terminate()
        server.wait(30)
    assert health["running"] == health["waiting"] == 0
    assert "avl-player" in page, "the page's markup comes from the assets in the wheel"


@pytest.mark.slow
def test_without_the_extra_the_page_says_what_to_install(installed, tmp_path):
    source = "import sys; sys.modules['gradio'] = None; from avl.cli import main; sys.exit(main(['page', '--device', 'cpu']))"
    done = subprocess.run(
        [str(installed / "python"), "-c", source], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("page: the page needs gradio, which is not installed")
    assert len(done.stderr.splitlines()) == 1
