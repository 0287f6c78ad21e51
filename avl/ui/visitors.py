"""Who is asking, as far as a server can tell."""

from __future__ import annotations

import ipaddress
from typing import Any


def visitor_of(request: Any) -> str | None:
    """Return what tells one visitor from another: the address, or on this machine the session.

    A program on this machine may ask as often as the queue allows. Behind a proxy the address is the one that the proxy names, if
    ``--trusted-proxies`` names the proxy (one on this machine is trusted).

    Args:
        request: Gradio's request, or None.
    """
    client = getattr(request, "client", None)
    host = getattr(client, "host", None)
    if host is None:
        return None
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return f"session {request.session_hash}" if local else str(host)
