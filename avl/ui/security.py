"""What the server says to browsers, which host names it answers for, and which of Gradio's routes are shut."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FRAMES = "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co https://*.hf.space"
# Gradio's page has inline scripts, and its HTML components compile their scripts: those two words cannot be left out. Everything else is
# this server's own, so that a script that gets in can neither load more nor send anything away.
PAGE_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        FRAMES,
    ]
)
FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "strict-origin-when-cross-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
    "cross-origin-resource-policy": "same-origin",
}

_HOST = re.compile(r"\*|\[[0-9a-fA-F:.]+\]|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

FILES = "/gradio_api/file"

# what this page never uses: links that write its state to disk, foreign servers, recordings, editing, the other APIs' descriptions
SHUT = (
    "/gradio_api/deep_link",
    "/gradio_api/openapi.json",
    "/gradio_api/proxy=",
    "/gradio_api/stream/",
    "/gradio_api/process_recording",
    "/gradio_api/run-history",
    "/gradio_api/runs",
    "/gradio_api/vibe-",
    "/gradio_api/undo-vibe-edit",
    "/gradio_api/dev/",
    "/gradio_api/token",
    "/gradio_api/profiling",
    "/openapi.json",
    "/monitoring",
    "/login",
)


class SecurityHeaders:
    """ASGI middleware: headers that keep browsers from guessing types, framing the page elsewhere and loading foreign code."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        policy = FILE_POLICY if scope["path"].startswith(FILES) else PAGE_POLICY

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "content-security-policy": policy}.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


class ShutRoutes:
    """ASGI middleware: 404 for the routes of Gradio that this page never uses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(SHUT):
            text = "There is nothing here."
            await JSONResponse({"error": text, "detail": text}, 404)(scope, receive, send)
            return
        await self._app(scope, receive, send)


OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


def host_names(named: Sequence[str] | None, host: str | None, share: bool = False) -> tuple[str, ...]:
    """Return the host names to answer for: the named ones and this machine's own; without any, all, or only its own if only it can connect.

    A server that only this machine can reach, and that answered for every name, could be read by any web page whose name is made to
    point at this machine (DNS rebinding).

    Args:
        named: by whoever starts the server, None for nobody.
        host: address that is listened on, None for this machine only.
        share: whether Gradio's tunnel leads here.

    Raises:
        ValueError: a name is no host name; one sentence.
    """
    for name in named or ():
        if not _HOST.fullmatch(name):
            raise ValueError(f"{name!r} is no host name: use demo.example.com or *.example.com, without a port or https://, by commas")
    if named is None and not is_local(host):
        return ("*",)
    # Gradio itself and health checks ask by the machine's own names
    own = [] if host is None or host in OWN_NAMES else [f"[{host}]" if ":" in host and not host.startswith("[") else host]
    return (*(named or ()), *OWN_NAMES, *own, *(("*.gradio.live",) if share else ()))


def is_local(host: str | None) -> bool:
    """Return whether only this machine can reach an address."""
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AllowedHosts:
    """ASGI middleware: answer only requests that are for one of our host names.

    Args:
        app: what comes after.
        hosts: names, ``*.example.com`` for all below one, ``*`` for all.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = tuple(host.lower() for host in hosts)

    def allows(self, header: str) -> bool:
        """Return whether a Host header names one of our names, with any port."""
        host = header.lower().strip()
        name = host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]
        return any(name == one or one == "*" or (one.startswith("*.") and name.endswith(one[1:])) for one in self._hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            header = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not self.allows(header):
                text = "This server does not answer for this host name: open it by its own, or start it with --allowed-hosts NAME."
                await JSONResponse({"error": text, "detail": text}, 400)(scope, receive, send)
                return
        await self._app(scope, receive, send)
