"""Request bodies, counted as they arrive: no route holds more than the limits, whether a length is declared or not."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avl.ui.limits import MB, Limits

HOUR = 3600.0


class _TooMuch(Exception):
    """A body is over a limit; carries the answer."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text


class BodyLimit:
    """ASGI middleware: refuse bodies over a limit in one sentence, and delete old uploads before a new one comes.

    Args:
        app: what comes after.
        limits: bytes of a body, an upload, a visitor's hour and all pending bodies.
        make_room: deletes uploads until there is room for so many bytes on disk.
    """

    def __init__(self, app: ASGIApp, limits: Limits, make_room: Callable[[], None] | None = None) -> None:
        self._app, self.limits, self._make_room = app, limits, make_room
        self.pending = 0
        self._uploads: dict[str, deque[tuple[float, int]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        uploads = headers.get(b"content-type", b"").startswith(b"multipart/")
        count = _Count(self, _visitor(scope), uploads)
        answered = False

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                count.add(len(message.get("body", b"")))
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal answered
            if count.refusal is not None and not answered:
                return  # what the application makes of the body that was cut off
            answered = True
            await send(message)

        try:
            declared = headers.get(b"content-length", b"0")
            count.check(int(declared) if declared.isdigit() else 0)
            if uploads and self._make_room is not None:
                await asyncio.to_thread(self._make_room)
            await self._app(scope, counted, unless_refused)
        except Exception:
            if count.refusal is None or answered:
                raise
        finally:
            count.close()
        if count.refusal is not None and not answered:
            refusal = {"error": count.refusal.text, "detail": count.refusal.text}
            # closing: the rest of the body is not read
            await JSONResponse(refusal, count.refusal.status, {"connection": "close"})(scope, receive, send)

    def uploaded(self, visitor: str) -> int:
        """Return the bytes that a visitor has uploaded in the last hour."""
        now = time.monotonic()
        for known in [visitor, *list(self._uploads)[:8]]:  # a few others too, so that the table stays small
            times = self._uploads.get(known, deque())
            while times and now - times[0][0] > HOUR:
                times.popleft()
            if not times:
                self._uploads.pop(known, None)
        return sum(size for _, size in self._uploads.get(visitor, ()))

    def note_upload(self, visitor: str, size: int) -> None:
        self._uploads.setdefault(visitor, deque()).append((time.monotonic(), size))


class _Count:
    """The bytes of one request."""

    def __init__(self, limit: BodyLimit, visitor: str, uploads: bool) -> None:
        self._limit, self._visitor, self._uploads = limit, visitor, uploads
        self._bytes = 0
        self._before = limit.uploaded(visitor) if uploads else 0
        self.refusal: _TooMuch | None = None

    def add(self, size: int) -> None:
        self.check(self._bytes + size)
        self._bytes += size
        self._limit.pending += size

    def check(self, size: int) -> None:
        """Raise where a body of ``size`` bytes is too much."""
        limits = self._limit.limits
        most = limits.upload_bytes if self._uploads else limits.body_bytes
        if size > most:
            self._refuse(413, f"This request is larger than {most // MB} MB, the most here: send smaller or fewer pictures.")
        if self._uploads and self._before + size > limits.visitor_bytes:
            self._refuse(429, f"Your uploads of the last hour have reached {limits.visitor_bytes // MB} MB: try again later.")
        if self._limit.pending + size - self._bytes > limits.pending_bytes:
            self._refuse(503, "The server is receiving too much at once: try again in a minute.")

    def _refuse(self, status: int, text: str) -> None:
        self.refusal = _TooMuch(status, text)
        raise self.refusal

    def close(self) -> None:
        self._limit.pending -= self._bytes
        if self._uploads and self._bytes:
            self._limit.note_upload(self._visitor, self._bytes)


def _visitor(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""
