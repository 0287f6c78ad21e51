"""How far the start of the page is: what is being done now, how much of it, and how it ended. Threads write, the port's answers read."""

from __future__ import annotations

import threading
import time
from typing import Any

UNITS = {"bytes": (1e9, ".1f", " GB"), "weights": (1, ",.0f", " weights"), "tokens": (1, ".0f", " tokens")}
"""Unit -> what one shown unit is worth, its format, its name."""


class Progress:
    """The state of one start.

    Args:
        model: as it was asked for.

    Attributes:
        state: "loading", "ready", "failed" or "stopping".
        what: the current step, in words that begin with a verb.
        reason: the sentence that a failed start ended with, else None.
    """

    def __init__(self, model: str) -> None:
        self.model, self.state, self.what = model, "loading", "Starting"
        self.reason: str | None = None
        self._counted: tuple[int, int, str] | None = None
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def step(self, what: str) -> None:
        """Begin the next step."""
        with self._lock:
            self.what, self._counted = what, None

    def count(self, what: str, done: int, total: int, unit: str) -> None:
        """Note how much of a step is done; begins it where it is another than the current one.

        Args:
            what: the step.
            done: so far.
            total: to be done; 0 where nobody knows yet.
            unit: of both, one of :data:`UNITS`.
        """
        with self._lock:
            self.what, self._counted = what, (min(done, total), total, unit) if total > 0 else None

    def end(self, state: str, reason: str | None = None) -> None:
        """Note that the start is over: "ready", "failed" with the sentence that says why, or "stopping"."""
        with self._lock:
            self.state, self.reason = state, reason

    def view(self) -> dict[str, Any]:
        """Return what ``/healthz`` and the page say of it.

        Returns:
            JSON-able: ``state``, ``model``, ``what``, ``progress`` (``done``, ``total``, ``unit``, or None where nobody can count),
            ``detail`` (the same in words), ``reason`` (a sentence) and ``seconds`` since the start.
        """
        with self._lock:
            state, what, counted, reason = self.state, self.what, self._counted, self.reason
        progress, detail = None, ""
        if counted is not None:
            done, total, unit = counted
            scale, form, name = UNITS[unit]
            progress = {"done": done, "total": total, "unit": unit}
            detail = f"{done / scale:{form}} of {total / scale:{form}}{name}"
        spoken = reason or {"loading": "The model is loading: try again in a minute.", "ready": ""}.get(
            state, "The server is shutting down."
        )
        return {
            "state": state,
            "model": self.model,
            "what": what,
            "progress": progress,
            "detail": detail,
            "reason": spoken,
            "seconds": round(time.monotonic() - self._began),
        }
