"""The end of the server: signals, and what is left afterwards."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Process, Server, free_port
from fake import Fake
from programs import Program, data_uri

from avl.ui import shutdown

ARMS = [{"policy": "Full"}, {"policy": "AVL"}]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], tuple[Process, int]]]:
    """``start(kind)`` -> the process of tests/ui/serve_signals.py, whose temporary files are in ``tmp_path/tmp``, and its port."""
    (tmp_path / "tmp").mkdir()
    processes: list[Process] = []

    def begin(kind: str) -> tuple[Process, int]:
        port = free_port()
        processes.append(Process(["tests/ui/serve_signals.py", str(port), kind], tmp_path / "log.txt", TMPDIR=str(tmp_path / "tmp")))
        return processes[-1], port

    yield begin
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith(("avl-", "gradio")))


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, "quick"), (signal.SIGTERM, "launching")],
    ids=["SIGINT", "SIGTERM-while-launching"],
)
def test_a_run_ends_and_is_told_why(start: Any, tmp_path: Path, number: signal.Signals, kind: str) -> None:
    process, port = start(kind)
    server = Server(process, port)
    program = Program(server.url)
    assert [name.startswith("avl-uploads-") for name in left(tmp_path)] == [True]
    told: list[Any] = []
    threads = [
        threading.Thread(target=lambda: told.append(program.call([{"url": data_uri()}, "What?", ARMS, 256]).error)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + 10
    while program.health()[1]["waiting"] < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    began = time.monotonic()
    process.popen.send_signal(number)
    assert process.popen.wait(20) == 0
    assert time.monotonic() - began < 10
    for thread in threads:
        thread.join(5)
    assert told == [shutdown.REASON] * 3
    assert left(tmp_path) == []
    log = process.log.read_text()
    assert "Traceback" not in log
    assert "terminate called" not in log


def test_a_device_that_hears_nothing_does_not_hold_the_end_up(start: Any, tmp_path: Path) -> None:
    process, port = start("stuck")
    program = Program(Server(process, port).url)
    status, text = program.post([{"url": data_uri()}, "What?", ARMS, 256])
    assert (status, "event_id" in json.loads(text)) == (200, True)
    while not program.health()[1]["running"]:
        time.sleep(0.05)
    began = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    time.sleep(1)
    status, text = program.post([{"url": data_uri()}, "What?", ARMS, 2])
    assert (status, json.loads(text)["error"]) == (503, shutdown.REASON)
    assert program.health()[1]["state"] == "stopping"
    assert process.popen.wait(20) == 0
    assert time.monotonic() - began < 10
    assert left(tmp_path) == []


def test_a_second_signal_ends_it_at_once(start: Any) -> None:
    process, port = start("stuck")
    program = Program(Server(process, port).url)
    program.post([{"url": data_uri()}, "What?", ARMS, 256])
    while not program.health()[1]["running"]:
        time.sleep(0.05)
    process.popen.send_signal(signal.SIGINT)
    time.sleep(0.7)
    began = time.monotonic()
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(20) == -signal.SIGINT
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(("kind", "number"), [("loading", signal.SIGINT), ("warming", signal.SIGTERM)])
def test_a_signal_while_the_model_loads_leaves_nothing(start: Any, tmp_path: Path, number: signal.Signals, kind: str) -> None:
    process, port = start(kind)
    limit = time.monotonic() + 60
    while kind not in process.log.read_text() and time.monotonic() < limit:
        time.sleep(0.1)
    status, state = Program(f"http://127.0.0.1:{port}/").health()
    assert (status, state["state"], state["model"]) == (503, "loading", "tiny")
    process.popen.send_signal(number)
    began = time.monotonic()
    assert process.popen.wait(10) == 0
    assert time.monotonic() - began < 5
    assert left(tmp_path) == []
    assert "Traceback" not in process.log.read_text()


def test_what_would_start_something_is_refused_while_it_closes(here: Any) -> None:
    built, program = here(Fake(pace=0, prefill=0))
    built.application.closing = shutdown.REASON
    for path in ("/gradio_api/call/compare", "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/component_server"):
        status, headers, text = program.request("POST", path, b"{}")
        assert (status, json.loads(text)["detail"]) == (503, shutdown.REASON)
        assert headers["retry-after"]
    assert program.request("GET", "/")[0] == 200
