"""The image's health check: status 0 where the page takes runs; else 1 and the reason, as while a model loads."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

SECONDS = 5.0
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}


def option(words: Sequence[str], name: str) -> str | None:
    """Return the last value of an option, ``--port 80`` or ``--port=80``; None where it is absent."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def address(words: Sequence[str], variables: Mapping[str, str]) -> str:
    """Return where the page answers for its health.

    Args:
        words: the command that started it.
        variables: its environment.
    """
    port = option(words, "--port") or variables.get("AVL_PORT") or variables.get("GRADIO_SERVER_PORT") or "7860"
    host = option(words, "--host") or variables.get("AVL_HOST") or variables.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    host = EVERY_ADDRESS.get(host, host).strip("[]")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/healthz"


def health(url: str) -> tuple[bool, str]:
    """Return whether the page is healthy, and what it says of itself."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY leads out of the container
    try:
        with direct.open(url, timeout=SECONDS) as answer:
            return True, told(answer.read())
    except urllib.error.HTTPError as error:
        return False, told(error.read())
    except (OSError, HTTPException) as error:
        return False, f"no answer from {url}: {getattr(error, 'reason', error)}"


def told(body: bytes) -> str:
    """Return the state in an answer of ``/healthz``, with what is loading and how much of it, or with the reason."""
    try:
        state = json.loads(body)
        keys = ("state", "what", "detail") if state["state"] == "loading" else ("state", "reason")
        return ": ".join(str(state[key]) for key in keys if state.get(key))
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace")[:200]


if __name__ == "__main__":
    # the container's first process has the arguments of `docker run`
    healthy, said = health(address(Path("/proc/1/cmdline").read_text().split("\0"), os.environ))
    print(said)
    sys.exit(not healthy)
