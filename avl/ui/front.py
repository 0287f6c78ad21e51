"""The port from the first moment on: it says what is loading until the page takes the port over, without refusing a connection.

Nothing heavy is imported here: torch and Gradio alone take seconds.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import html
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from avl._paths import ASSETS
from avl.ui.progress import Progress
from avl.ui.security import FRAMES, AllowedHosts, SecurityHeaders

STARTED_SECONDS = 60.0
TOLD_SECONDS = 3.0
"""For how long a failed start waits for those who watch it."""
WATCHED_SECONDS = 4.0
"""Who asked no longer ago than this watches."""
EVERY = 0.2
HINT = "This page opens by itself as soon as the model can answer."
LAST = "The server ends now."
CLOSE = {"cache-control": "no-store", "connection": "close"}  # the next connection is the page's own server's


class LoadingPage:
    """The page that is shown meanwhile, and the one policy that lets its own script and style in and nothing else.

    Raises:
        OSError: its file is missing.
    """

    def __init__(self) -> None:
        file = ASSETS / "loading" / "page.html"
        try:
            self._text = file.read_text("utf-8")
        except OSError as error:
            raise OSError(f"assets/loading/page.html cannot be read ({error.strerror}): restore the file") from None
        script, style = (_digest(self._text, tag) for tag in ("script", "style"))
        self.policy = (
            f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; base-uri 'none'; form-action 'none'; {FRAMES}"
        )

    def text(self, view: dict[str, Any]) -> str:
        """Return the page as it looks at a moment, which is all that a browser without scripts sees.

        Args:
            view: of a :class:`Progress`.
        """
        over, progress = view["state"] != "loading", view["progress"]
        values = {
            "model": view["model"],
            "state": view["state"],
            "title": f"{view['model']} did not start" if view["state"] == "failed" else f"Loading {view['model']}",
            "what": view["reason"] if over else view["what"],
            "detail": view["detail"],
            "hint": LAST if over else HINT,
        }
        bar = f' max="{progress["total"]}" value="{progress["done"]}"' if progress else ""
        filled = {name: html.escape(str(value)) for name, value in values.items()} | {"bar": bar}
        head, script = self._text.split("<script>")
        return re.sub(r"\{(\w+)\}", lambda found: filled[found[1]], head) + "<script>" + script


def _digest(text: str, tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


class _Server(uvicorn.Server):
    """One that leaves at once when it is told to: uvicorn's own looks ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.closed = threading.Event()
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def main_loop(self) -> None:
        self._wake = asyncio.get_running_loop(), asyncio.Event()
        if not self.should_exit:
            await self._wake[1].wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        self.closed.set()
        await super().shutdown(sockets)

    def leave(self) -> None:
        """Accept nothing more, and end; what was accepted is answered."""
        self.should_exit = True
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):  # its loop is over
                self._wake[0].call_soon_threadsafe(self._wake[1].set)


class Front:
    """A server on sockets that are listened on already, in a thread of its own, until :meth:`stop` or :meth:`hand_over`.

    Args:
        sockets: closed at the end, unless they are handed over.
        hosts: names that it answers for, as :class:`AllowedHosts`.
        progress: what it tells.
    """

    def __init__(self, sockets: Sequence[socket.socket], hosts: Sequence[str], progress: Progress) -> None:
        self._sockets, self._progress, self._page = list(sockets), progress, LoadingPage()
        self._asked = -WATCHED_SECONDS
        self._listeners = 0
        app = Starlette(
            routes=[
                Route("/", self._show),
                Route("/loading", self._news),
                Route("/healthz", self._health),
                Route("/{path:path}", self._later, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
            ],
            middleware=[Middleware(SecurityHeaders), Middleware(AllowedHosts, hosts=tuple(hosts))],
        )
        self._server = _Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1))
        own = [one.dup() for one in self._sockets]  # uvicorn closes what it listened on; the port stays open by the others
        threading.Thread(target=self._server.run, args=(own,), name="avl-front", daemon=True).start()

    async def _show(self, _: Request) -> Response:
        self._asked = time.monotonic()
        return HTMLResponse(self._page.text(self._progress.view()), headers={**CLOSE, "content-security-policy": self._page.policy})

    async def _health(self, _: Request) -> Response:
        self._asked = time.monotonic()
        return JSONResponse(self._progress.view(), 503, {**CLOSE, "retry-after": "1"})

    async def _later(self, _: Request) -> Response:
        text = self._progress.view()["reason"] or "The page opens: try again in a moment."
        return JSONResponse({"error": text, "detail": text}, 503, {**CLOSE, "retry-after": "1"})

    async def _news(self, request: Request) -> Response:
        if request.method == "HEAD":
            return Response(headers=CLOSE)
        return StreamingResponse(self._tell(), media_type="text/event-stream", headers={**CLOSE, "x-accel-buffering": "no"})

    async def _tell(self) -> AsyncIterator[str]:
        """Yield the state at every change, the last one when the start is over."""
        self._listeners += 1
        try:
            told: dict[str, Any] | None = None
            quiet = 0.0
            while True:
                now = self._progress.view()
                if told is None or {**now, "seconds": 0} != {**told, "seconds": 0}:
                    yield f"data: {json.dumps(now)}\n\n"
                    told, quiet = now, 0.0
                elif quiet > 10:  # proxies end connections that say nothing
                    yield ": loading\n\n"
                    quiet = 0.0
                if now["state"] != "loading":
                    return
                await asyncio.sleep(EVERY)
                quiet += EVERY
        finally:
            self._listeners -= 1

    def fail(self, sentence: str) -> None:
        """Say that the start failed, and return once those who watch have had the time to read it; at once where nobody does."""
        watched = self._listeners or time.monotonic() - self._asked < WATCHED_SECONDS
        self._progress.end("failed", sentence)
        time.sleep(TOLD_SECONDS if watched else 0)

    def hand_over(self) -> list[socket.socket]:
        """Say that the page is ready, and end; return the sockets, still listened on: whoever connects from now on waits for the page."""
        self._progress.end("ready")
        self._server.leave()
        sockets, self._sockets = self._sockets, []
        return sockets

    def join(self) -> None:
        """Wait until nothing more is accepted here, which is then meant for the page."""
        self._server.closed.wait(5)

    def stop(self) -> None:
        """End, and close the port unless it was handed over."""
        if self._progress.state == "loading":
            self._progress.end("stopping")
        self._server.leave()
        self.join()
        for one in self._sockets:
            one.close()
        self._sockets = []


@contextlib.contextmanager
def gradio_on(front: Front, host: str, port: int) -> Iterator[None]:
    """Let ``Blocks.launch`` serve on the front's sockets: Gradio's own start opens a port, and none is free where we listen already.

    It stands in for ``gradio.http_server.start_server`` of the one version that requirements.txt pins. What that has more, reloading of
    changed sources, this page does not use.

    Raises:
        OSError: the web server does not come up.
    """
    from gradio import http_server

    sockets = front.hand_over()

    class Server(http_server.Server):
        def run(self, sockets_: list[socket.socket] | None = None) -> None:
            super().run(sockets)

        def run_in_thread(self) -> None:
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()
            limit = time.monotonic() + STARTED_SECONDS
            while not self.started:
                if not self.thread.is_alive() or time.monotonic() > limit:
                    raise OSError(f"the web server did not come up on {host}, port {port}: start again, this machine may be very busy")
                time.sleep(1e-3)

    def start_server(app: Any, *_: Any, **__: Any) -> tuple[str, int, str, Server]:
        front.join()
        server = Server(uvicorn.Config(app=app, host=host, port=port, log_level="warning"))
        server.run_in_thread()
        return host, port, f"{own_address(host, port)}/", server

    before = http_server.start_server
    http_server.start_server = start_server
    try:
        yield
    except BaseException:
        for one in sockets:
            one.close()
        raise
    finally:
        http_server.start_server = before


def own_address(host: str, port: int) -> str:
    """Return the address by which this machine reaches a server that listens on ``host``."""
    plain = {"0.0.0.0": "localhost", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"http://[{plain}]:{port}" if ":" in plain else f"http://{plain}:{port}"
