"""The web application around the page: routes, limits, headers, and what it does while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from avl.ui import sessions
from avl.ui.blocks import HANDLERS
from avl.ui.bodies import BodyLimit
from avl.ui.limits import Limits
from avl.ui.security import AllowedHosts, SecurityHeaders, ShutRoutes
from avl.ui.uploads import Quota

SWEEP_SECONDS = 5.0

Answer = Callable[[Request], Awaitable[Response]]


class Closing:
    """ASGI middleware: 503 with the reason for whatever would start something while the server shuts down."""

    def __init__(self, app: ASGIApp, reason: Callable[[], str | None]) -> None:
        self._app, self._reason = app, reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self._reason() if scope["type"] == "http" and scope["method"] == "POST" else None
        if reason is None:
            await self._app(scope, receive, send)
            return
        headers = {"connection": "close", "retry-after": "60"}
        await JSONResponse({"error": reason, "detail": reason}, 503, headers)(scope, receive, send)


class Application:
    """The parts of the server that belong neither to the page nor to the queue.

    Args:
        limits: bytes and sessions.
        answers: path -> what answers it, such as ``/healthz``.
        own_folder: Gradio's folder for files, where it belongs to this process alone and may be kept small; else None.

    Attributes:
        tidy: gives up what else is kept for too long; called now and then.
    """

    def __init__(self, limits: Limits, answers: dict[str, Answer], own_folder: Path | None = None) -> None:
        self._limits, self._answers = limits, answers
        self._quota = Quota(own_folder, limits.disk_bytes) if own_folder is not None else None
        self._app: Any = None
        self.boxes: sessions.Mailboxes | None = None
        self.closing: str | None = None
        self.tidy: Callable[[], None] = lambda: None

    def unread(self, session: str | None) -> float:
        """Seconds that a session's oldest message has waited for its reader."""
        return self.boxes.age(session) if self.boxes is not None else 0.0

    def make_room(self) -> None:
        """Delete the oldest files where the next upload would not fit."""
        if self._quota is not None and self._app is not None:
            kept = {path for block in self._app.get_blocks().blocks.values() for path in getattr(block, "keep_in_cache", ())}
            self._quota.make_room(self._limits.upload_bytes, kept)

    def options(self, hosts: Sequence[str] = ("*",)) -> dict[str, Any]:
        """Return the ``app_kwargs`` of Gradio's ``launch``.

        Args:
            hosts: names that the server answers for, as :class:`AllowedHosts`.
        """
        return {
            "routes": [Route(path, answer) for path, answer in self._answers.items()],
            "middleware": [
                Middleware(SecurityHeaders),
                Middleware(AllowedHosts, hosts=hosts),
                Middleware(ShutRoutes),
                Middleware(Closing, reason=lambda: self.closing),
                Middleware(BodyLimit, limits=self._limits, make_room=self.make_room),
            ],
            "lifespan": self._life,
            "exception_handlers": HANDLERS,
            "openapi_url": None,
        }

    @contextlib.asynccontextmanager
    async def _life(self, app: Any) -> AsyncIterator[None]:
        self._app = app
        self.boxes = sessions.install(app, self._limits.sessions)
        task = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            task.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            assert self.boxes is not None
            sessions.sweep(self._app, self.boxes, 2 * self._limits.unread_seconds)
            await asyncio.to_thread(self.make_room)
            self.tidy()
