"""The image's health check: where it asks, and what it makes of the answer."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType

import pytest
from tools import ROOT


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_health", ROOT / ".docker" / "health.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "variables", "where"),
    [
        ("tini -- python app.py", {}, "127.0.0.1:7860"),
        ("tini -- python app.py", {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "80"}, "127.0.0.1:80"),
        ("init -- tini -- python app.py --port 81 --model tiny", {"GRADIO_SERVER_PORT": "80"}, "127.0.0.1:81"),
        ("tini -- python app.py", {"AVL_PORT": "82", "GRADIO_SERVER_PORT": "80", "AVL_HOST": "172.17.0.2"}, "172.17.0.2:82"),
        ("python app.py --port=80 --port=81 --host ::", {"AVL_PORT": "82"}, "[::1]:81"),
        ("python app.py --host 172.17.0.2", {"GRADIO_SERVER_NAME": "0.0.0.0"}, "172.17.0.2:7860"),
    ],
)
def test_where_it_asks(check: ModuleType, words: str, variables: dict[str, str], where: str) -> None:
    assert check.address([*words.split(), ""], variables) == f"http://{where}/healthz"


class Answer(BaseHTTPRequestHandler):
    status, body = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/healthz"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "healthy", "said"),
    [
        (200, {"state": "ready", "model": "tiny"}, True, "ready"),
        (503, {"state": "loading", "what": "load x", "detail": "1 of 14 GB", "reason": "Try again."}, False, "loading: load x: 1 of 14 GB"),
        (503, {"state": "failed", "what": "load x", "reason": "There is no x."}, False, "failed: There is no x."),
        (503, "plain text", False, "plain text"),
        (404, [], False, "[]"),
    ],
)
def test_what_it_makes_of_the_answer(
    check: ModuleType, url: str, monkeypatch: pytest.MonkeyPatch, status: int, body: object, healthy: bool, said: str
) -> None:
    """Only 200 is healthy. A proxy of the environment is not asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(Answer, "status", status)
    monkeypatch.setattr(Answer, "body", body.encode() if isinstance(body, str) else json.dumps(body).encode())
    assert check.health(url) == (healthy, said)


def test_no_answer_is_not_healthy(check: ModuleType) -> None:
    healthy, said = check.health("http://127.0.0.1:9/healthz")
    assert not healthy
    assert said.startswith("no answer from http://127.0.0.1:9/healthz: ")
