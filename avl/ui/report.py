"""Finished runs: a bounded store, and a run as JSON, CSV, or a page of its own that plays offline."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections import OrderedDict
from string import Template
from typing import Any

from avl import trace
from avl.ui import components
from avl.ui.components import FOLDER


class Runs:
    """The last runs by their unguessable id, for downloads and for pages that missed a batch; the oldest leave first."""

    def __init__(self, capacity: int = 32, max_events: int = 200_000) -> None:
        self._runs: OrderedDict[str, trace.Trace] = OrderedDict()
        self._capacity = capacity
        self._max_events = max_events
        self._lock = threading.Lock()

    def add(self, key: str, run: trace.Trace) -> None:
        with self._lock:
            self._runs[key] = run
            while len(self._runs) > 1 and (len(self._runs) > self._capacity or self._events() > self._max_events):
                self._runs.popitem(last=False)

    def _events(self) -> int:
        return sum(len(run.events) for run in self._runs.values())

    def get(self, key: object) -> trace.Trace | None:
        with self._lock:
            return self._runs.get(key) if isinstance(key, str) else None

    def __len__(self) -> int:
        return len(self._runs)


def steps_csv(run: trace.Trace) -> str:
    """Return one line per token of each arm."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["arm", "policy", "t", "token", "text", "ms", "clock_ms", "stored", "read", "stored_bytes", "read_bytes", "update"])
    labels = [arm.label for arm in run.start.arms]
    for event in run:
        if not isinstance(event, trace.Prefill | trace.Step):
            continue
        # a spreadsheet would run a text that begins like a formula
        text = "'" + event.text if event.text[:1] in ("=", "+", "-", "@") else event.text
        row: list[Any] = [event.arm, labels[event.arm]]
        if isinstance(event, trace.Prefill):
            row += [0, event.token, text, event.ms, event.ms, sum(event.stored), "", event.stored_bytes, "", ""]
        else:
            row += [event.t, event.token, text, event.ms, event.clock_ms, event.stored, event.read]
            row += [event.stored_bytes, event.read_bytes, int(event.update)]
        writer.writerow(row)
    return out.getvalue()


def page(run: trace.Trace) -> str:
    """Return a self-contained HTML file: the player, plotly.js and the trace; it opens without a server and asks the network for nothing.

    What the trace says enters the file as data: JSON without a "<", in a script, under a policy that forbids every request.
    """
    files = {"json": run.to_json(), "csv": steps_csv(run)}
    return Template((FOLDER / "report.html").read_text("utf-8")).substitute(
        plotly=_script(components.PLOTLY_JS.read_text("utf-8")),
        player=_script(components.script("player")),
        files=_data(json.dumps(files, ensure_ascii=False)),
        trace=_data(run.to_json()),
    )


def _data(document: str) -> str:
    # inside <script> only "</" and "<!--" could end the data; \u003c is the same character to JSON and to JavaScript
    return document.replace("<", "\\u003c")


def _script(source: str) -> str:
    return source.replace("</script", "<\\/script")
