"""Where to listen, checked before a model is loaded for minutes."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

PRIVATE = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16"
FIRST_PORT = 7860
PORTS = 100


def check(host: str | None, port: int | None) -> tuple[str, int]:
    """Return the address and the port to listen on.

    Args:
        host: as given, None for GRADIO_SERVER_NAME or else this machine only.
        port: as given, None for GRADIO_SERVER_PORT or else the first free one from 7860.

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
            if _listen(host, one):
                return host, one
        raise OSError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free: name one with --port")
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is out of range: use a number from 1 to 65535")
    if not _listen(host, port):
        raise OSError(f"port {port} is in use: stop the program that listens there, or choose another one with --port")
    return host, port


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


def _listen(host: str, port: int) -> bool:
    """Return whether the port is free."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)  # with SO_REUSEADDR, Linux notices another listener only here
    except (socket.gaierror, UnicodeError):
        raise OSError(f"{host!r} is no address of this machine: use 127.0.0.1, 0.0.0.0 or a name of this machine with --host") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        if error.errno in (errno.EACCES, errno.EPERM):
            raise OSError(f"port {port} is not ours to use: choose one from 1024 with --port") from None
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    return True
