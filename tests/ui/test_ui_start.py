"""What keeps the server from starting is one sentence on stderr and status 1, never a traceback."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake import Fake, about

from avl.cli import main
from avl.ui import address, components, gallery, logs, serve

ASSETS = gallery.ASSETS


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """``begin("--port", "1")`` -> what is said on stderr instead of a start; the model is made up."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(logs, "set_up", lambda _: None)
    monkeypatch.setattr(serve, "load", lambda *_, **__: (SimpleNamespace(device="cpu"), None))
    monkeypatch.setattr(serve.scheduler, "run", lambda _, __, *asked: Fake(pace=0, prefill=0)(*asked))
    monkeypatch.setattr(serve, "_about", lambda *_: about())
    monkeypatch.setattr(serve, "idle", lambda _: {})
    monkeypatch.setattr(serve.shutdown.Signals, "wait", lambda *_: None)
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def run(*arguments: str, status: int = 1) -> str:
        gallery.examples.cache_clear()
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
        assert address.check("127.0.0.1", None)[1] > taken.getsockname()[1]
        monkeypatch.setattr(address, "PORTS", 1)
        with pytest.raises(OSError, match="no port from"):
            address.check("127.0.0.1", None)


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
@pytest.mark.parametrize("place", ["load", "_about"])
def test_a_model_that_cannot_be_loaded_or_run(begin: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, place: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(serve, place, fail)
    assert len(begin("--model", "llava-1.5-7b", "--port", "17863")) > 15


def test_a_model_that_loads_but_has_no_room_to_run(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from avl import trace

    monkeypatch.undo()
    with pytest.raises(OSError, match="cannot run here: no memory"):
        serve._about(None, None, lambda *_: iter([trace.Error("no memory")]), "tiny")


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
    "binary script": lambda assets: (assets / "player" / "base.js").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_asset(begin: Any, assets: Path, what: str) -> None:
    BROKEN[what](assets)
    told = begin("--port", "17864")
    assert "restore the file" in told or "cannot build the page" in told
    assert any(name in told for name in (TRACE.name, "examples.json", ".png", ".js", ".css", "utf-8"))
