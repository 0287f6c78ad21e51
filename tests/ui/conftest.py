"""Fixtures of the page's tests: pictures, the made-up engine, real servers, headless Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from headless import chromium_or_stop
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OPEN_PAGES = 4  # at once: an idle page polls, and a test uses three at most


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A Python program of the checkout with one thread for arithmetic; what it says is in ``log``."""

    def __init__(self, command: list[str], log: Path, **variables: str) -> None:
        self.log = log
        environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}
        with log.open("w") as out:
            self.popen = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def stop(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(10)


class Server:
    """A page that ``process`` serves, or will serve shortly, at ``port``."""

    def __init__(self, process: Process, port: int, seconds: float = 400) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/"
        self.log = process.log
        limit = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(self.url + "healthz", timeout=5).read()
                break
            except OSError:
                if process.popen.poll() is not None or time.monotonic() > limit:
                    process.stop()
                    raise RuntimeError(f"the server did not start:\n{process.log.read_text()[-3000:]}") from None
                time.sleep(0.05)

    def health(self) -> dict[str, Any]:
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


class FakePages:
    """Pages over made-up engines in one process, because each process takes seconds to import Gradio; one page a set of options.

    A page takes over the port of one that is closed: a browser then has its scripts already. None is handed out while a run of an earlier
    test goes on.
    """

    def __init__(self, log: Path) -> None:
        self.process = Process([str(HERE / "serve_fake.py")], log)
        self.pages: dict[tuple[str, ...], Server] = {}

    def __call__(self, *options: str) -> Server:
        if options in self.pages:
            self.pages[options] = self.pages.pop(options)  # the one used last
            self.pages[options].wait_idle()
            return self.pages[options]
        port = self._close_oldest() if len(self.pages) >= OPEN_PAGES else free_port()
        self._tell(["--port", str(port), *options])
        self.pages[options] = Server(self.process, port)
        return self.pages[options]

    def _close_oldest(self) -> int:
        """Close the page that was used longest ago; return its port when nothing listens there."""
        port = self.pages.pop(next(iter(self.pages))).port
        self._tell({"close": port})
        limit = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    return port
            assert time.monotonic() < limit, f"port {port} is still open:\n{self.process.log.read_text()[-3000:]}"
            time.sleep(0.02)

    def _tell(self, what: Any) -> None:
        pipe = self.process.popen.stdin
        assert pipe is not None
        pipe.write(json.dumps(what) + "\n")
        pipe.flush()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """``serve("--pace", "0.02")`` -> a running page over the made-up engine."""
    pages = FakePages(tmp_path_factory.mktemp("fake") / "log.txt")
    yield pages
    pages.process.stop()


@pytest.fixture
def here() -> Iterator[Callable[..., Any]]:
    """``here(fake, limits=…)`` -> a page served by this process, and a program that calls it: for tests that look inside."""
    from programs import Program

    from avl.ui import page

    pages: list[Any] = []

    def start(race: Any, hosts: Any = None, facts: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Program]:
        from fake import about

        built = page.build(race, about(**(facts or {})), **options)
        pages.append(built)
        port = free_port()
        built.launch(hosts, server_port=port, prevent_thread_lock=True, quiet=True)
        return built, Program(f"http://127.0.0.1:{port}/")

    yield start
    for built in pages:
        built.transport.close()
        built.blocks.server.config.timeout_graceful_shutdown = 1
        built.blocks.close(verbose=False)
        built.remove_files()


@pytest.fixture(scope="session")
def real_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Server]]:
    port = free_port()
    process = Process(["app.py", "--device", "cpu", "--port", str(port)], tmp_path_factory.mktemp("real") / "log.txt")
    yield process, Server(process, port)
    process.stop()


@pytest.fixture(scope="session")
def real(real_page: tuple[Process, Server]) -> Server:
    """The page as a visitor starts it: ``python app.py`` with the bundled model on the CPU."""
    return real_page[1]


@pytest.fixture(scope="session")
def real_process(real_page: tuple[Process, Server]) -> Process:
    """The process behind ``real``."""
    return real_page[0]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, one a session."""
    path = chromium_or_stop()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(autouse=True)
def _asyncio_beside_the_browser(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let tests without a browser call ``asyncio.run``: Playwright's synchronous API keeps an event loop running in this thread."""
    if request.node.get_closest_marker("browser"):
        yield
        return
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(running)


class Tab:
    """A browser tab on the page that remembers everything it should not have seen.

    Args:
        browser: where it opens a window of its own, unless ``window`` is given.
        url: of the page.
        width: of the window, in pixels.
        height: likewise.
        window: the page object of a window that other tests had before.
        context: further options of the window.
    """

    def __init__(self, browser: Any, url: str, width: int = 1280, height: int = 900, window: Any = None, **context: Any) -> None:
        size = {"width": width, "height": height}
        self.page = window or browser.new_context(viewport=size, **context).new_page()
        if window:
            window.set_viewport_size(size)
        self.own = bool(context)  # not to be handed on
        self.url = url
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.handlers: list[tuple[str, Any]] = []
        self.page.on, self._listen = self._remembered, self.page.on
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error.stack or error)))
        self.page.on("request", self._request)
        self.page.set_default_timeout(120_000)

    @property
    def context(self) -> Any:
        """The window's settings, cookies and pages: a test that looks at these does not hand the window on."""
        self.own = True
        return self.page.context

    def before_load(self, script: str) -> None:
        """Run a script before any of the page's."""
        self.own = True
        self.page.add_init_script(script)

    def _remembered(self, event: str, handler: Any) -> None:
        self._listen(event, handler)
        self.handlers.append((event, handler))

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

    def run(self, state: str = "done") -> None:
        """Press Run and wait until that run, not an earlier one, is in ``state``: a fast run is over before anybody sees it running."""
        self.page.evaluate("window.runBefore = window.avlPlayer.view.run")
        self.page.click("#avl-run")
        self.until("window.avlPlayer.view.run !== window.runBefore")
        self.wait(state)

    def until(self, condition: str, arg: Any = None) -> None:
        """Wait for a condition, asked a few times a second: once per animation frame would eat the processor that the page needs."""
        self.page.wait_for_function(condition, arg=arg, polling=150)

    def see(self, panel: str) -> None:
        """Scroll to a panel: those far below are drawn only in sight."""
        self.page.locator(f"#avl-player [data-panel={panel}]").scroll_into_view_if_needed()

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

    def leave(self) -> bool:
        """Leave nothing in the window: no storage, cookie, listener or route. Return whether another test may have it."""
        from playwright.sync_api import Error

        if self.own or not self.url.startswith("http"):
            self.close()
            return False
        for event, handler in self.handlers:
            self.page.remove_listener(event, handler)
        del self.page.on
        self.page.unroute_all()
        self.page.mouse.move(0, 0)
        try:
            self.page.goto(self.url + "healthz")  # what a page stores as it is left goes as well
        except Error:  # its server has ended
            self.close()
            return False
        self.page.evaluate("localStorage.clear(); sessionStorage.clear()")
        self.page.context.clear_cookies()
        return True


@pytest.fixture(scope="session")
def windows(browser: Any) -> Iterator[list[Any]]:
    """Windows that no test has now. In a window that was used a page is there in a third of the time: its scripts are compiled."""
    free: list[Any] = []
    yield free
    for page in free:
        page.context.close()


@pytest.fixture
def tab(browser: Any, windows: list[Any]) -> Iterator[Callable[..., Tab]]:
    """``tab(url)`` -> a tab as of a new visitor; ``fresh=True`` where a test measures what a first visit takes."""
    tabs: list[Tab] = []

    def make(url: str, fresh: bool = False, **options: Any) -> Tab:
        plain = not fresh and options.keys() <= {"width", "height"}
        tabs.append(Tab(browser, url, window=windows.pop() if plain and windows else None, **options))
        return tabs[-1]

    yield make
    for one in reversed(tabs):  # so that the first one's window is on top
        if one.leave():
            windows.append(one.page)
