"""What the Dockerfile and the README's lines promise, read from them: most of all of the CUDA variant, which no test builds."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from tools import ROOT

TEXT = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
LINES = [line for line in re.sub(r"\\\n", " ", TEXT).splitlines() if line]
"""Instructions, a line each."""
RUN_LINES = re.findall(r"docker run .*", (ROOT / "README.md").read_text(encoding="utf-8"))
CACHE = Path("/cache")


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{name} ")]


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for words in instructions("ENV") for word in shlex.split(words))


def test_the_driver_is_asked_for_and_not_refused() -> None:
    """An image of CUDA's sets NVIDIA_REQUIRE_CUDA: it does not start on an older driver, which torch's wheels still take."""
    assert instructions("ARG")[0] == "PYTHON=python:3.12-slim-trixie"
    assert {line.partition(" AS ")[0] for line in instructions("FROM")} == {"${PYTHON}"}
    env = environment()
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert set(env["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}


def test_what_is_to_last_is_in_the_volume_and_uploads_are_not() -> None:
    env = environment()
    assert instructions("VOLUME") == [str(CACHE)]
    assert Path(env["HOME"]) == CACHE
    for name in ("HF_HOME", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH"):
        assert CACHE in Path(env[name]).parents, name
    assert Path(env["GRADIO_TEMP_DIR"]).parent == Path("/tmp")
    assert "install -d -m 1777 /cache" in " ".join(instructions("RUN")), "a new volume has the mode of what it covers"


def test_a_gpu_s_image_can_compile_triton_s_launcher() -> None:
    assert instructions("ARG").count("VARIANT=cuda") == 2, "the default, in both stages that ask"
    (setup,) = (line for line in instructions("RUN") if "apt-get install" in line)
    assert 'if [ "${VARIANT}" = cuda ]; then launcher="gcc libc6-dev"; fi' in setup
    assert {"tini", "${launcher}"} <= set(setup.split())


def test_it_is_stopped_and_asked_for_its_health() -> None:
    assert instructions("USER") == ["1000:1000"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("ENTRYPOINT") == ['["tini", "--", "python", "app.py"]']
    (health,) = instructions("HEALTHCHECK")
    assert health.endswith('CMD ["python", "health.py"]')
    assert instructions("EXPOSE") == [environment()["GRADIO_SERVER_PORT"]]


def test_it_holds_the_assets_of_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} >= {*wheel["only-include"], ".docker", "LICENSE", "app.py"}
    left_out = {line for line in lines if line.startswith("assets/")} | {"assets/player/node_modules"}
    assert left_out == {line[1:] for line in wheel["exclude"]}


@pytest.mark.parametrize("line", RUN_LINES, ids=lambda line: "gpu" if "--gpus" in line else "cpu")
def test_the_readme_s_line_gives_up_what_is_not_needed(line: str) -> None:
    """tests/packaging/test_image.py runs the image like this."""
    assert len(RUN_LINES) == 2
    for words in (
        "--read-only",
        "--tmpfs /tmp",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        f"-v avl:{CACHE}",
        "-p 127.0.0.1:7860:7860",
    ):
        assert f" {words} " in line, words
