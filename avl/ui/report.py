"""Finished runs: a bounded store, and a run as JSON, CSV, or a page of its own that plays offline."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections import OrderedDict
from typing import Any

from avl import trace
from avl.ui import components as player


class Runs:
    """The last runs by their unguessable id, for downloads and for pages that missed a batch; the oldest leave first."""

    def __init__(self, places: int = 32, max_events: int = 200_000) -> None:
        self._runs: OrderedDict[str, trace.Trace] = OrderedDict()
        self._places = places
        self._max_events = max_events
        self._lock = threading.Lock()

    def add(self, key: str, run: trace.Trace) -> None:
        with self._lock:
            self._runs[key] = run
            while len(self._runs) > 1 and (len(self._runs) > self._places or self._events() > self._max_events):
                self._runs.popitem(last=False)

    def _events(self) -> int:
        return sum(len(run.events) for run in self._runs.values())

    def get(self, key: object) -> trace.Trace | None:
        with self._lock:
            return self._runs.get(key) if isinstance(key, str) else None

    def __len__(self) -> int:
        return len(self._runs)


def steps_csv(run: trace.Trace) -> str:
    """One line per token of each arm."""
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
    """A self-contained HTML file: the player, plotly.js and the trace; opens without a server and asks the network for nothing."""
    # inside <script> only "</" and "<!--" could end the data; \u003c is the same character to JSON and to JavaScript
    document = run.to_json().replace("<", "\\u003c")
    files = {"json": run.to_json(), "csv": steps_csv(run)}
    downloads = json.dumps(files, ensure_ascii=False).replace("<", "\\u003c")
    plotly = player.PLOTLY_JS.read_text("utf-8").replace("</script", "<\\/script")
    script = player.script("player").replace("</script", "<\\/script")
    # the policy forbids every request, so the file cannot call anywhere
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>A-VL report</title>
<style>body {{ margin: 0; padding: 16px; background: var(--avl-bg); }} main {{ max-width: 1100px; margin: auto; }}</style></head>
<body><main id="main"><div class="avl avl-player"></div></main>
<script>{plotly}</script>
<script>
if (matchMedia("(prefers-color-scheme: dark)").matches) document.body.classList.add("dark");
const files = {downloads};
const value = {{ run: "report", state: "done", recorded: true, trace: {document} }};
const server = {{
  missing: async () => null,
  download: async ({{ kind }}) => files[kind] || "<!doctype html>\\n" + pristine,
}};
const pristine = document.documentElement.outerHTML;
(function (element, trigger, props, server, upload, watch) {{
{script}
}})(document.getElementById("main"), () => {{}}, {{ value }}, server, null, () => {{}});
</script></body></html>
"""
