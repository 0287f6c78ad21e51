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
    """The last runs by their unguessable id, for downloads and for pages that missed a batch; the oldest leave first.

    Args:
        capacity: runs at most.
        max_weight: of all of them, in events; the attention of a pass counts as many as it takes the memory of.
    """

    def __init__(self, capacity: int = 32, max_weight: int = 200_000) -> None:
        self._runs: OrderedDict[str, trace.Trace] = OrderedDict()
        self._kept: dict[str, trace.Trace] = {}
        self._capacity = capacity
        self._max_weight = max_weight
        self._lock = threading.Lock()

    def keep(self, key: str, run: trace.Trace) -> None:
        """Add a run that never leaves, such as the one that the page opens with."""
        self._kept[key] = run

    def add(self, key: str, run: trace.Trace) -> None:
        with self._lock:
            self._runs[key] = run
            weights = {one: sum(map(_weight, known.events)) for one, known in self._runs.items()}
            while len(self._runs) > 1 and (len(self._runs) > self._capacity or sum(weights.values()) > self._max_weight):
                weights.pop(self._runs.popitem(last=False)[0])

    def get(self, key: object) -> trace.Trace | None:
        with self._lock:
            return self._kept.get(key) or self._runs.get(key) if isinstance(key, str) else None

    def __len__(self) -> int:
        return len(self._runs)


def _weight(event: trace.Event) -> int:
    """Memory of an event in units of a usual one, about 1 kB."""
    return 1 + sum(map(len, event.image)) // 1024 if isinstance(event, trace.Scores) else 1


def steps_csv(run: trace.Trace) -> str:
    """Return one line per token of each arm."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["arm", "policy", "t", "token", "text", "ms", "clock_ms", "stored", "read", "stored_bytes", "read_bytes", "update"])
    labels = [_cell(arm.label) for arm in run.start.arms]
    for event in run:
        if not isinstance(event, trace.Prefill | trace.Step):
            continue
        text = _cell(event.text)
        row: list[Any] = [event.arm, labels[event.arm]]
        if isinstance(event, trace.Prefill):
            row += [0, event.token, text, event.ms, event.ms, sum(event.stored), "", event.stored_bytes, "", ""]
        else:
            row += [event.t, event.token, text, event.ms, event.clock_ms, event.stored, event.read]
            row += [event.stored_bytes, event.read_bytes, int(event.update)]
        writer.writerow(row)
    return out.getvalue()


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula, which it would run, nor after blanks that it drops."""
    return "'" + text if text.lstrip()[:1] in ("=", "+", "-", "@") or text[:1] in ("\t", "\r", "\n") else text


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
