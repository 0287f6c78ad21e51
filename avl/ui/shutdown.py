"""The end of the server: the running step ends, visitors are told, temporary files go, within seconds."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avl.ui.page import Page

log = logging.getLogger(__name__)

REASON = "The server is shutting down: try again in a minute."
STEP_SECONDS = 5.0
READ_SECONDS = 1.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Wait for the first SIGINT or SIGTERM; a second one ends the process at once, and one while the model loads unwinds what was begun."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._listening = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        """Take the signals over, in the main thread."""
        self._before = {one: signal.signal(one, self._first) for one in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back, unless one has come: then a second one still ends the process."""
        if not self._asked.is_set():
            for one, before in self._before.items():
                signal.signal(one, before)

    def _first(self, _: int, __: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        if not self._listening:
            print("Shutting down: the model was still loading.", flush=True)
            raise SystemExit(0)  # unlike the signal itself, this deletes temporary files on its way
        self._asked.set()

    def listening(self) -> None:
        """From here on visitors may have runs: the first signal is remembered for ``wait``, so that they are told and it ends in order."""
        self._listening = True

    def wait(self, over: Callable[[], bool] = lambda: False) -> None:
        """Return after the first signal, or where ``over`` says so."""
        while not self._asked.wait(0.2) and not over():
            pass


def shut_down(page: Page) -> bool:
    """Drain the queue, tell visitors, close the server; return whether the device's thread has ended, so that Python can end in order."""
    print("Shutting down after the running step. Press Ctrl-C again to quit at once.", flush=True)
    page.application.closing = REASON
    page.transport.drain(REASON)
    ended = page.transport.close(STEP_SECONDS)
    if not ended:
        log.warning("the device is still busy after %g s: its run is cut off", STEP_SECONDS)
    _let_read(page)
    blocks = page.blocks
    server = getattr(blocks, "server", None)
    if server is not None:
        server.config.timeout_graceful_shutdown = 1  # pages keep connections open for as long as they live
    with contextlib.suppress(Exception):
        blocks.close(verbose=False)
    _close_tunnels()
    page.remove_files()
    return ended


def _let_read(page: Page) -> None:
    """Give readers a moment for the last events."""
    boxes, limit = page.application.boxes, time.monotonic() + READ_SECONDS
    time.sleep(0.3)  # a handler hands a batch on every 80 ms
    while boxes is not None and boxes.unread and time.monotonic() < limit:
        time.sleep(0.05)


def _close_tunnels() -> None:
    from gradio.tunneling import CURRENT_TUNNELS

    for tunnel in CURRENT_TUNNELS:
        tunnel.kill()


def leave(ended: bool) -> None:
    """End the process with status 0 even where a thread is still inside the device: Python's own end would abort there."""
    if not ended:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(0)
