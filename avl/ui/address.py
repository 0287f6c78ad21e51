"""Where to listen, from before a model is loaded for minutes."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Any

PRIVATE = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
FIRST_PORT = 7860
PORTS = 100
BACKLOG = 2048


def listen(host: str | None, port: int | None) -> tuple[str, int, list[socket.socket]]:
    """Listen, so that whoever connects from now on waits for an answer.

    Args:
        host: as given, None for GRADIO_SERVER_NAME or else this machine only.
        port: as given, None for GRADIO_SERVER_PORT or else the first free one from 7860.

    Returns:
        The address, the port, and a socket for each address that the host's name has.

    Raises:
        OSError: nothing can listen there; one sentence.
        ValueError: the port is no port; one sentence.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    if port is None and (given := os.environ.get("GRADIO_SERVER_PORT")):
        if not given.isdigit():
            raise ValueError(f"GRADIO_SERVER_PORT={given!r} is no port: use a number from 1 to 65535")
        port = int(given)
    if port is None:
        for one in range(FIRST_PORT, FIRST_PORT + PORTS):
            if (sockets := _listen(host, one)) is not None:
                return host, one, sockets
        raise OSError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free: name one with --port")
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is out of range: use a number from 1 to 65535")
    sockets = _listen(host, port)
    if sockets is None:
        raise OSError(f"port {port} is in use: stop the program that listens there, or choose another one with --port")
    return host, port, sockets


def check_proxies(text: str) -> str:
    """Return addresses and networks of proxies, by commas, as uvicorn reads them.

    Raises:
        ValueError: one is neither; one sentence.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        try:
            ipaddress.ip_network(name, strict=False)
        except ValueError:
            raise ValueError(f"{name!r} is no address of a proxy: use addresses or networks, such as 10.0.0.0/8, by commas") from None
    return ",".join(names)


def _listen(host: str, port: int) -> list[socket.socket] | None:
    """Return sockets that are listened on, None where the port is in use."""
    try:
        places = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise OSError(f"{host!r} is no address of this machine: use 127.0.0.1, 0.0.0.0 or a name of this machine with --host") from None
    sockets: list[socket.socket] = []
    problem = OSError()
    for family, kind, _, _, place in dict.fromkeys(places):
        try:
            sockets.append(_listen_at(family, kind, place))
        except OSError as error:
            problem = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # localhost has an IPv6 address where IPv6 is off
                break
    else:
        if sockets:
            return sockets
    for one in sockets:
        one.close()
    if problem.errno == errno.EADDRINUSE:
        return None
    if problem.errno in (errno.EACCES, errno.EPERM):
        raise OSError(f"port {port} is not ours to use: choose one from 1024 with --port")
    raise OSError(f"cannot listen on {host}, port {port}: {problem.strerror}")


def _listen_at(family: int, kind: int, place: Any) -> socket.socket:
    one = socket.socket(family, kind)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(place)
        one.listen(BACKLOG)  # with SO_REUSEADDR, Linux notices another listener only here
    except OSError:
        one.close()
        raise
    return one
