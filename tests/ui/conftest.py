"""Fixtures of the page's tests: pictures, the made-up engine, real servers, headless Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A page in its own process."""

    def __init__(self, command: list[str], log: Path, seconds: float = 400) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = log
        environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.began = time.monotonic()
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--port", str(self.port)], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        while True:
            try:
                urllib.request.urlopen(self.url + "healthz", timeout=5).read()
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() - self.began > seconds:
                    self.stop()
                    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}") from None
                time.sleep(0.1)
        self.ready_after = time.monotonic() - self.began

    def health(self) -> dict[str, Any]:
        import json

        return json.loads(urllib.request.urlopen(self.url + "healthz", timeout=10).read())

    def wait_idle(self, seconds: float = 10) -> None:
        """Until nothing runs or waits."""
        limit = time.monotonic() + seconds
        while True:
            state = self.health()
            if not state["running"] and not state["waiting"]:
                return
            assert time.monotonic() < limit, f"still busy after {seconds} s: {state}"
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """``serve("--pace", "0.02")`` -> a running page over the made-up engine; one server per set of options."""
    servers: dict[tuple[str, ...], Server] = {}

    def start(*options: str) -> Server:
        if options not in servers:
            log = tmp_path_factory.mktemp("server") / "log.txt"
            servers[options] = Server([str(HERE / "serve_fake.py"), *options], log)
        return servers[options]

    yield start
    for server in servers.values():
        server.stop()


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page as a visitor starts it: ``python app.py`` with the bundled model on the CPU."""
    server = Server(["app.py", "--device", "cpu"], tmp_path_factory.mktemp("real") / "log.txt")
    yield server
    server.stop()


def chromium() -> str | None:
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


# per module: while it is open, Playwright's synchronous API keeps an event loop running in this thread, and asyncio.run refuses
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium. Without one, browser tests are skipped on a desk and fail in CI."""
    in_ci = os.environ.get("CI", "").lower() == "true"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if in_ci:
            raise
        pytest.skip("playwright is not installed")
    path = chromium()
    if path is None:
        if in_ci:
            pytest.fail("CI has no Chromium: the browser tests must run there")
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


class Tab:
    """A browser tab on the page that remembers everything it should not have seen."""

    def __init__(self, browser: Any, url: str, width: int = 1280, height: int = 900, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
        self.url = url
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._request)
        self.page.set_default_timeout(120_000)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.outside.append(request.url)

    def open(self, query: str = "") -> Tab:
        self.page.goto(self.url + query)
        self.page.wait_for_selector("#avl-player .avl-player[data-ready]")
        self.page.wait_for_selector("#avl-controls .avl-choice", state="attached")
        self.page.wait_for_selector("#avl-question textarea", state="attached")
        return self

    def state(self) -> str:
        return self.page.evaluate("document.querySelector('#avl-player .avl-player').dataset.state")

    def wait(self, state: str, timeout: float = 120_000) -> None:
        self.page.wait_for_selector(f"#avl-player .avl-player[data-state={state}]", timeout=timeout)

    def until(self, condition: str, arg: Any = None) -> None:
        """Wait for a condition, asked a few times a second: once per animation frame would eat the processor that the page needs."""
        self.page.wait_for_function(condition, arg=arg, polling=150)

    def text(self, name: str) -> str:
        """Text of a part of the player by its data-id."""
        return self.page.locator(f"#avl-player [data-id={name}]").inner_text()

    def tokens(self) -> list[int]:
        """Tokens received per arm."""
        return self.page.evaluate("(window.avlPlayer.view.run ? window.avlPlayer.view.run.arms : []).map((arm) => arm.tokens.length)")

    def set(self, selector: str, value: float) -> None:
        """Move a slider."""
        self.page.locator(selector).evaluate(
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', {bubbles: true})); }", value
        )

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    tabs: list[Tab] = []

    def make(url: str, **options: Any) -> Tab:
        tabs.append(Tab(browser, url, **options))
        return tabs[-1]

    yield make
    for one in tabs:
        one.close()
