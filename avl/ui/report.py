"""A run as CSV, or as a page of its own that plays offline."""

from __future__ import annotations

import base64
import csv
import functools
import gzip
import io
from string import Template
from typing import Any

from avl import trace
from avl.trace.cells import cell
from avl.ui import components
from avl.ui.components import FOLDER


def steps_csv(run: trace.Trace) -> str:
    """Return one line per token of each arm."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["arm", "policy", "t", "token", "text", "ms", "clock_ms", "stored", "read", "stored_bytes", "read_bytes", "update"])
    labels = [cell(arm.label) for arm in run.start.arms]
    for event in run:
        if not isinstance(event, trace.Prefill | trace.Step):
            continue
        text = cell(event.text)
        row: list[Any] = [event.arm, labels[event.arm]]
        if isinstance(event, trace.Prefill):
            row += [0, event.token, text, event.ms, event.ms, sum(event.stored), "", event.stored_bytes, "", ""]
        else:
            row += [event.t, event.token, text, event.ms, event.clock_ms, event.stored, event.read]
            row += [event.stored_bytes, event.read_bytes, int(event.update)]
        writer.writerow(row)
    return out.getvalue()


def page(run: trace.Trace) -> str:
    """Return a self-contained HTML file of player, plotly.js and trace. It opens without a server and asks the network for nothing."""
    return offline(run.to_json(), steps_csv(run))


def offline(document: str, csv_text: str) -> str:
    """Return that page of a trace as JSON and its steps as CSV.

    What they say enters the file as base64 of gzip, which the page unpacks as data, under a policy that forbids every request.
    """
    return Template((FOLDER / "report.html").read_text("utf-8")).substitute(
        plotly=_plotly(), player=_script(components.script("player")), trace=_packed(document), csv=_packed(csv_text)
    )


@functools.cache
def _plotly() -> str:
    return _packed(components.PLOTLY_JS.read_text("utf-8"), 9)


def _packed(text: str, level: int = 3) -> str:
    return base64.b64encode(gzip.compress(text.encode(), level, mtime=0)).decode("ascii")


def _script(source: str) -> str:
    return source.replace("</script", "<\\/script")
