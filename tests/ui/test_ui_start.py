"""What keeps the server from starting is one sentence on stderr and status 1, never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import free_port
from fake import Fake, about
from programs import Program, news

import avl
from avl import telemetry
from avl.cli import main
from avl.ui import address, components, front, gallery, logs, serve, starting
from avl.ui.progress import Progress
from avl.ui.zero import ZeroGPU

ASSETS = gallery.ASSETS
ABOUT = starting._about


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """``begin("--port", "1")`` -> what is said on stderr instead of a start; the model is made up."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(logs, "set_up", lambda _: None)
    monkeypatch.setattr(starting, "load", lambda *_, **__: (SimpleNamespace(device="cpu"), None))
    monkeypatch.setattr(starting.scheduler, "run", lambda _, __, *asked: Fake(pace=0, prefill=0)(*asked))
    monkeypatch.setattr(starting, "_about", lambda *_, **__: about())
    monkeypatch.setattr(starting, "idle", lambda _: {})
    monkeypatch.setattr(serve.shutdown.Signals, "wait", lambda *_: None)
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def run(*arguments: str, status: int = 1) -> str:
        gallery.examples.cache_clear()
        components.page_script.cache_clear()
        assert main(arguments, only="page", program="app.py") == status
        told = capsys.readouterr().err.strip()
        assert "Traceback" not in told
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert not list((tmp_path / "uploads").glob("*")), "temporary files stayed"
        if status == 1:
            assert told.startswith("app.py: ")
            assert "\n" not in told
        return told

    yield run
    gallery.examples.cache_clear()


@pytest.fixture
def assets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the page's assets, to break."""
    copy = tmp_path / "assets"
    for name in ("gallery", "traces", "player"):
        shutil.copytree(ASSETS / name, copy / name)
    monkeypatch.setattr(gallery, "ASSETS", copy)
    monkeypatch.setattr(gallery, "FOLDER", copy / "gallery")
    monkeypatch.setattr(components, "FOLDER", copy / "player")
    return copy


def test_it_starts_and_ends_where_nothing_is_broken(begin: Any, assets: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin("--port", str(port), status=0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--port", "-1"], "out of range"),
        (["--port", "0"], "out of range"),
        (["--port", "99999"], "out of range"),
        (["--host", "nowhere.invalid"], "no address of this machine"),
        (["--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
        (["--host", "a" * 300], "no address of this machine"),
        (["--host", "1.2.3.4.5"], "no address of this machine"),
    ],
)
def test_a_bad_address(begin: Any, arguments: list[str], word: str) -> None:
    assert word in begin(*arguments)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_port_in_use(begin: Any, host: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        try:
            taken.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in begin("--port", str(port), "--host", host)


def test_the_next_free_port_is_taken_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_SERVER_PORT", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(address, "FIRST_PORT", taken.getsockname()[1])
        _, port, sockets = address.listen("127.0.0.1", None)
        assert port > taken.getsockname()[1]
        assert [one.getsockname()[1] for one in sockets] == [port]
        sockets[0].close()
        monkeypatch.setattr(address, "PORTS", 1)
        with pytest.raises(OSError, match="no port from"):
            address.listen("127.0.0.1", None)


@pytest.mark.parametrize("value", ["x", "-1", "7860.0", "99999", " "])
def test_a_bad_port_in_the_environment(begin: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", value)
    assert "port" in begin()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-seconds", "0"],
        ["--max-waiting", "0"],
        ["--max-tokens-per-run", "x"],
        ["--upload-mb", "1"],
        ["--nothing"],
        ["--stuck-after", "-1"],
    ],
)
def test_a_bad_flag(begin: Any, arguments: list[str]) -> None:
    assert "Error" in begin(*arguments, status=2)


ERRORS = [
    ValueError("the model is unknown"),
    OSError("no such model"),
    FileNotFoundError(2, "No such file", "config.json"),
    json.JSONDecodeError("Expecting value", "", 0),
    RuntimeError("Error(s) in loading state_dict:\n\tsize mismatch"),
    type("SafetensorError", (Exception,), {})("Error while deserializing header: incomplete metadata"),
    KeyError("llava"),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13 GiB"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    PermissionError(13, "Permission denied", "model.safetensors"),
    AttributeError("'NoneType' object has no attribute 'x'"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["load", "_about", "_warm_up"])
def test_a_model_that_cannot_be_loaded_or_run(begin: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, place: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(starting, place, fail)
    assert len(begin("--model", "llava-1.5-7b", "--port", "17863")) > 15


def test_those_who_watch_a_start_hear_why_it_failed(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the sentence that stderr has; the process ends with 1 all the same."""
    port, watched = free_port(), threading.Event()

    def fail(*_: Any, **__: Any) -> None:
        watched.wait(20)
        raise ValueError("llava-1.5-7b does not fit: 26.3 GiB are needed")

    def watch() -> None:
        while not told:
            with contextlib.suppress(ConnectionRefusedError):  # it does not listen yet
                for one in news(Program(f"http://127.0.0.1:{port}/")):
                    told.append(one)
                    watched.set()

    told: list[dict[str, Any]] = []
    threading.Thread(target=watch, daemon=True).start()
    monkeypatch.setattr(starting, "load", fail)
    monkeypatch.setattr(front, "TOLD_SECONDS", 0.6)
    assert begin("--port", str(port)) == "app.py: llava-1.5-7b does not fit: 26.3 GiB are needed"
    assert told[0]["state"] == "loading"
    assert (told[-1]["state"], told[-1]["reason"]) == ("failed", "llava-1.5-7b does not fit: 26.3 GiB are needed")


def test_a_model_that_loads_but_has_no_room_to_run(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from avl import trace

    monkeypatch.undo()
    with pytest.raises(OSError, match="cannot run here: no memory"):
        starting._warm_up(lambda *_: iter([trace.Error("no memory")]), "tiny", Progress("tiny"), threading.Event())


def test_the_model_is_warmed_up_in_the_thread_that_serves(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries keep handles, and some plans, for each thread."""
    where = []
    monkeypatch.setattr(starting, "_warm_up", lambda *_: where.append(threading.current_thread().name))
    begin("--port", str(free_port()), status=0)
    assert where == ["avl-device"]


def test_the_page_warns_of_what_makes_the_model_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA build without a usable GPU, and layers on several devices."""
    model, processor = avl.load("tiny")
    assert not any("CUDA build" in note or "spread" in note for note in ABOUT(model, processor, "tiny").notes)
    monkeypatch.setattr(starting, "gpu_trouble", lambda: "the driver is too old")
    monkeypatch.setattr(starting, "devices", lambda _: [torch.device("cuda", 0), torch.device("cuda", 1)])
    monkeypatch.setattr(starting, "placement", lambda _: "cuda:0 (layers 0–3), cuda:1 (layers 4–7)")
    shown = ABOUT(model, processor, "tiny")
    assert shown.device == "cuda:0 (layers 0–3), cuda:1 (layers 4–7)"
    assert "spread over 2 devices" in shown.notes[0]
    assert "without fused steps and CUDA graphs" in shown.notes[0]
    assert "no GPU can be used here (the driver is too old)" in shown.notes[1]


def no_cuda(*_: Any, **__: Any) -> None:
    raise RuntimeError("CUDA must not be touched in this process")


def test_on_zero_gpu_the_process_that_serves_leaves_cuda_alone(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its children own the GPU. What the page says comes from the model's config and its processor."""
    spaces = SimpleNamespace(GPU=lambda duration: lambda function: function, disable_gradio_auto_wrap=lambda: None)
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    monkeypatch.setattr(serve.shutdown, "leave", lambda ended: None)
    model, processor = avl.load("tiny")
    monkeypatch.setattr(type(model), "device", torch.device("cuda", 0))
    monkeypatch.setattr(starting, "load", lambda *_, **__: (model, processor))
    monkeypatch.setattr(starting.scheduler, "run", no_cuda)
    monkeypatch.setattr(starting, "idle", telemetry.idle)
    monkeypatch.setattr(starting, "_about", ABOUT)
    for name in (
        "_lazy_init",
        "current_device",
        "device_count",
        "get_device_properties",
        "mem_get_info",
        "is_available",
        "Event",
        "Stream",
    ):
        monkeypatch.setattr(torch.cuda, name, no_cuda)
    pages = []
    build = starting._page_modules()[1].build
    monkeypatch.setattr("avl.ui.page.build", lambda *args, **options: pages.append((args[1], build(*args, **options))) or pages[-1][1])
    begin("--port", str(free_port()), status=0)
    ((about, built),) = pages
    assert isinstance(built.transport._race, ZeroGPU)
    assert (about.layers, about.n_image, about.device, about.dtype) == (8, 576, "cuda:0", "float32")
    assert about.machine.startswith("ZeroGPU, torch ")


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda assets: (assets / name).write_text(text)  # type: ignore[return-value]


TRACE = sorted((ASSETS / "traces").glob("*.json"))[0]
BROKEN: dict[str, Callable[[Path], Any]] = {
    "events null": _write(f"traces/{TRACE.name}", '{"schema": 1, "events": null}'),
    "no events": _write(f"traces/{TRACE.name}", '{"schema": 1, "events": []}'),
    "events of numbers": _write(f"traces/{TRACE.name}", '{"schema": 1, "events": [7]}'),
    "old schema": _write(f"traces/{TRACE.name}", '{"schema": 0}'),
    "trace cut off": lambda assets: (assets / "traces" / TRACE.name).write_text(TRACE.read_text()[:5000]),
    "deep trace": _write(f"traces/{TRACE.name}", "[" * 100_000),
    "examples cut off": _write("gallery/examples.json", "{"),
    "examples null": _write("gallery/examples.json", "null"),
    "examples without keys": _write("gallery/examples.json", '{"bundled": [{}], "real": [{}]}'),
    "examples of numbers": _write("gallery/examples.json", '{"bundled": [7], "real": 7}'),
    "bad picture": lambda assets: [path.write_bytes(b"junk") for path in (assets / "gallery").glob("*.png")],
    "cut picture": lambda assets: [path.write_bytes(path.read_bytes()[:90]) for path in (assets / "gallery").glob("*.png")],
    "missing script": lambda assets: (assets / "player" / "player.js").unlink(),
    "missing style": lambda assets: (assets / "player" / "style.css").unlink(),
    "binary script": lambda assets: (assets / "player" / "core" / "dom.js").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_asset(begin: Any, assets: Path, what: str) -> None:
    BROKEN[what](assets)
    told = begin("--port", "17864")
    assert "restore the file" in told or "cannot build the page" in told
    assert any(name in told for name in (TRACE.name, "examples.json", ".png", ".js", ".css", "utf-8"))
