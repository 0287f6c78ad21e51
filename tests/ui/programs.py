"""Programs that talk to a page by plain HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image


def data_uri(width: int = 48, height: int = 48, *, noise: bool = False) -> str:
    """A picture as a data URI; of noise, it takes three bytes a pixel."""
    pixels = (
        np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8) if noise else np.zeros((height, width, 3), np.uint8)
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0 if noise else 6)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass
class Answer:
    """``status`` and ``body`` of the request itself, or the events of the call that it started."""

    status: int
    body: str
    events: list[tuple[str, Any]]

    @property
    def value(self) -> Any:
        """The last value of a call that ended well."""
        kind, data = self.events[-1]
        assert kind == "complete", self.events[-1]
        return data[0]

    @property
    def error(self) -> str | None:
        """The sentence of a call that failed, or of a request that was refused; None after success."""
        if self.status != 200:
            told = json.loads(self.body)
            return told.get("error") or told["detail"] if isinstance(told, dict) else self.body
        kind, data = self.events[-1]
        return None if kind == "complete" else data["error"]


class Program:
    """A program that uses ``/compare``."""

    def __init__(self, url: str, **headers: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host, self.port = parts.hostname, parts.port
        self.headers = headers

    def request(self, method: str, path: str, body: Any = None, seconds: float = 60, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        try:
            connection.request(method, path, body, {**self.headers, **headers})
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, data: Any, path: str = "/gradio_api/call/compare") -> tuple[int, str]:
        """Start a call; ``data`` is JSON text or what becomes it."""
        body = data if isinstance(data, str | bytes) else json.dumps({"data": data})
        status, _, text = self.request("POST", path, body, **{"content-type": "application/json"})
        return status, text.decode()

    def read(self, event: str, seconds: float = 60, name: str = "compare") -> list[tuple[str, Any]]:
        _, _, text = self.request("GET", f"/gradio_api/call/{name}/{event}", seconds=seconds)
        blocks = [block.split("\n", 1) for block in text.decode().strip().split("\n\n")]
        pairs = [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]
        return [pair for pair in pairs if pair[0] != "heartbeat"]

    def call(self, data: Any, seconds: float = 60, name: str = "compare") -> Answer:
        """Start a call and read it to its end."""
        status, text = self.post(data, f"/gradio_api/call/{name}")
        started = json.loads(text) if status == 200 else {}
        return Answer(status, text, self.read(started["event_id"], seconds, name) if started else [])

    def health(self) -> tuple[int, dict[str, Any]]:
        status, _, text = self.request("GET", "/healthz")
        return status, json.loads(text)

    def metrics(self) -> dict[str, float]:
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def wait_idle(self, seconds: float = 20) -> None:
        limit = time.monotonic() + seconds
        while (state := self.health()[1])["running"] or state["waiting"]:
            assert time.monotonic() < limit, state
            time.sleep(0.05)


def resident_mb(process: int) -> float:
    """Memory of a process in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextlib.contextmanager
def serving(fake: Any, **options: Any) -> Iterator[Program]:
    """A page over a made-up engine in this process, and a program that uses it; ``options`` as of ``page.build``."""
    from conftest import free_port
    from fake import about

    from avl.ui import page

    built = page.build(fake, about(), **options)
    port = free_port()
    built.launch(server_port=port, prevent_thread_lock=True, quiet=True)
    yield Program(f"http://127.0.0.1:{port}/")
    built.transport.close()
    built.blocks.close(verbose=False)


def news(program: Program) -> Iterator[dict[str, Any]]:
    """What a page that watches a start is told."""
    connection = http.client.HTTPConnection(program.host, program.port, timeout=10)
    connection.request("GET", "/loading")
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    for line in answer:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
    connection.close()
