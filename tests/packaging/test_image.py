"""The image's CPU variant, built and run without a daemon: its root is read-only, it has no capability, and it answers one question."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container import Container, Store
from tools import ROOT, need

WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
IN_IMAGE = ("LICENSE", "app.py", *WHEEL["only-include"])
DEVELOPMENT = {"draw.py", "train_log.jsonl", "eslint.config.js", "globals.d.ts", "package.json", "tsconfig.json"}
ASK = """
import json
import sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
for update in client.submit(handle_file(sys.argv[2]), "Describe the picture.", api_name="/compare"):
    pass
print(json.dumps([*update["answers"], update["state"]]))
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The built image; CI has begun to build it, in TEST_IMAGE_FOLDER."""
    need("buildah", "crun", "mmdebstrap")
    folder = Path(os.environ.get("TEST_IMAGE_FOLDER") or tmp_path / "image")
    folder.mkdir(exist_ok=True)
    store = Store(folder)
    try:
        log = folder / "log.txt"
        with log.open("a") as out:
            done = subprocess.run([str(ROOT / "tests/packaging/build_image.sh"), str(folder)], stdout=out, stderr=subprocess.STDOUT)
        assert done.returncode == 0, log.read_text()[-4000:]
        yield store
    finally:
        store.remove()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_it_holds_what_it_needs_and_answers(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, because what it costs is the image: two starts, the second by another user who finds the first one's volume."""
    files, image = store.unpack("localhost/avl:cpu")
    check_contents(files)
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(stat.S_IMODE((files / "cache").stat().st_mode))  # as Docker makes a new volume: with the mode of what it covers

    port = free_port()
    container = Container(files, image, tmp_path / "first", cache, GRADIO_SERVER_PORT=str(port))
    try:
        said = check_answer(container, port)
        check_confinement(container)
        assert container.signal(container.image["StopSignal"].removeprefix("SIG")) == 0
    finally:
        container.remove()
    check_end(container)

    container = Container(files, image, tmp_path / "second", cache, "--port", str(free_port()), user=4321)
    try:
        again = container.wait_healthy()
        assert container.signal("INT") == 0
    finally:
        container.remove()
    check_end(container)
    with capsys.disabled():
        print(f"\n{store.buildah('images', '--format', '{{.Name}} {{.Size}}')}\n{said}; started again, after {again:.1f} s")


def check_contents(files: Path) -> None:
    """Nothing else of the checkout, so that editing that rebuilds no layer; nothing that the image's user could rewrite."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *IN_IMAGE], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    app = files / "app"
    found = {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert found == {name for name in listed if Path(name).name not in DEVELOPMENT} | {"health.py"}
    rewritable = ["(", "!", "-uid", "0", "-o", "-perm", "/022", ")", "!", "-type", "l"]
    found_so = subprocess.run(["find", str(app), str(files / "opt"), *rewritable], check=True, capture_output=True, text=True).stdout
    assert found_so == ""
    packages = {path.name.partition("-")[0] for path in files.glob("opt/venv/lib/python3*/site-packages/*.dist-info")}
    assert "torch" in packages
    assert not [name for name in packages if name == "triton" or (name.startswith("nvidia") and name != "nvidia_ml_py")]
    assert list((files / "cache").iterdir()) == []


def check_answer(container: Container, port: int) -> str:
    """It is healthy once it answers, and not before; a program gets both answers. Returns what that took."""
    status, said = container.health()
    assert (status, said.partition(": ")[0]) == (1, f"no answer from http://127.0.0.1:{port}/healthz"), "nothing is loaded yet"
    seconds = container.wait_healthy()
    assert container.health() == (0, "ready")
    command = [sys.executable, "-c", ASK, f"http://127.0.0.1:{port}", str(ROOT / "assets" / "gallery" / "scene-4.png")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:] + container.log.read_text()[-3000:]
    *answers, state = json.loads(answer.stdout)
    assert (state, len(answers), all(len(text.split()) > 3 for text in answers)) == ("done", 2, True), answers
    memory = [int(line.split()[1]) for line in container.run("sh", "-c", "grep -h VmHWM: /proc/[0-9]*/status")[1].splitlines()]
    return f"healthy after {seconds:.1f} s, {max(memory) / 1e6:.2f} GB of memory at most"


def check_confinement(container: Container) -> None:
    """It runs as the image's user with nothing that it was not given, and knows of nothing missing."""
    about: dict[str, Any] = dict(line.split(":\t", 1) for line in container.run("cat", "/proc/1/status")[1].splitlines() if ":\t" in line)
    assert about["Uid"].split() == ["1000"] * 4
    assert int(about["CapEff"], 16) == int(about["CapBnd"], 16) == 0
    assert about["NoNewPrivs"] == "1"
    root = container.run("cat", "/proc/mounts")[1].splitlines()[0].split()
    assert (root[1], root[3].split(",")[0]) == ("/", "ro")
    status, said = container.run("python", "-m", "avl", "doctor")
    assert status == 0, said


def check_end(container: Container) -> None:
    """Its log tells of an end in order."""
    log = container.log.read_text()
    assert "Shutting down" in log
    assert "Traceback" not in log
