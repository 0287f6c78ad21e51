"""The log: what happened to each run, by its name, as lines for a person or as JSON for a machine."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time
from typing import Any

from avl import trace
from avl.ui.errors import kind
from avl.ui.job import Job, Observer

log = logging.getLogger("avl.ui.runs")

_run: contextvars.ContextVar[str | None] = contextvars.ContextVar("run", default=None)

FIELDS = ("event", "run", "kind", "outcome", "seconds", "tokens", "arms", "batch", "question_length")
"""What a line of JSON may hold beside its time, level, logger and message. Never a question, a picture or an address."""


class _Named(logging.Filter):
    """Give every record of the worker thread the name of the run that it works on."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.run = getattr(record, "run", None) or _run.get()
        return True


class Json(logging.Formatter):
    """One JSON object a line; a traceback is one string in it."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


class Lines(logging.Formatter):
    """One line for a person, with the run's name."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(named)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        run = getattr(record, "run", None)
        record.named = f" [{run}]" if run else ""
        return super().format(record)


def set_up(as_json: bool) -> None:
    """Write the log to stderr: with JSON everything from "info" on, else for a person warnings and errors.

    Args:
        as_json: one JSON object a line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if as_json else Lines())
    handler.addFilter(_Named())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("avl").setLevel(logging.INFO if as_json else logging.WARNING)


class RunLog(Observer):
    """A line for each step of a job's way."""

    def _say(self, text: str, job: Job, level: int = logging.INFO, **fields: Any) -> None:
        log.log(level, text, extra={"run": job.name, **fields})

    def queued(self, job: Job) -> None:
        request = job.request
        shape = {"arms": len(request.policies), "batch": request.batch, "tokens": request.max_new_tokens}
        self._say("queued", job, event="queued", question_length=len(request.question), **shape)

    def refused(self, error: BaseException) -> None:
        log.info("refused", extra={"event": "refused", "kind": kind(error)})

    def started(self, job: Job) -> None:
        _run.set(job.name)
        self._say("started", job, event="started")

    def event(self, job: Job, event: trace.Event) -> None:
        if isinstance(event, trace.Error):
            self._say(f"the run failed: {event.message}", job, logging.WARNING, event="failed")

    def failed(self, job: Job, error: BaseException) -> None:
        what = "the device thread ended" if not isinstance(error, Exception) else "a run failed"
        level = logging.INFO if isinstance(error, ValueError) else logging.ERROR
        log.log(level, what, exc_info=error, extra={"run": job.name, "event": "failed", "kind": kind(error)})

    def ended(self, job: Job) -> None:
        seconds = None if job.began is None else round(time.monotonic() - job.began, 3)
        self._say(f"ended: {job.outcome}", job, event="ended", outcome=job.outcome, seconds=seconds)
        _run.set(None)
