"""A run in a terminal: live while it lasts, and as a file. Its tables are in tables.py."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from avl.engine import scheduler
from avl.engine.request import GenerationRequest
from avl.models.images import data_uri
from avl.policies import Policy, labels
from avl.trace import Agreement, End, Error, Prefill, Repeat, Scores, Start, Step, Trace

MOST_BESIDE = 3
"""Answers that are shown side by side; more are shown below one another."""


def run(load: Callable[[], tuple[Any, Any]], request: GenerationRequest) -> Trace:
    """Run a request, shown live where there is a terminal.

    Args:
        load: gives the model and its processor.
        request: what to run.

    Returns:
        The trace, with the pictures. Errors are on stderr too.
    """
    model, processor = load()
    trace = Trace(images=[data_uri(picture) for picture in request.images])
    console = Console(stderr=True)
    board = _Board(request.policies, request.max_new_tokens)
    with Live(board, console=console, transient=True, refresh_per_second=8, auto_refresh=console.is_terminal):
        for event in scheduler.run(model, processor, request):
            trace.append(event)
            board.show(trace, event)
    for error in trace.of(Error):
        print(f"error: {error.message}", file=sys.stderr)
    return trace


class _Board:
    """The live view: the answers, side by side where they are few, a line of figures and a progress bar for each arm."""

    def __init__(self, policies: Sequence[Policy], limit: int) -> None:
        self._labels = labels(policies)
        self._texts = ["" for _ in policies]
        self._figures: list[list[str]] = [["–"] * 4 for _ in policies]
        self._times: list[list[float]] = [[] for _ in policies]
        self._more = ""
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
        self._bars = [self._progress.add_task(label, total=limit) for label in self._labels]

    def show(self, trace: Trace, event: object) -> None:
        """Take one event in."""
        if isinstance(event, Prefill | Step):
            arm, rows = event.arm, trace.start.batch
            self._texts[arm] += event.text
            self._progress.advance(self._bars[arm])
            if isinstance(event, Prefill):
                self._figures[arm] = [f"{event.ms:.0f} ms", "–", _mib(event.stored_bytes), "–"]
            else:
                self._times[arm].append(event.ms)
                middle = statistics.median(self._times[arm])
                rate = f"{middle:.2f} ms, {1000 * rows / middle:.0f}/s"
                self._figures[arm][1:] = [rate, _mib(event.stored_bytes), _mib(event.read_bytes)]
        elif isinstance(event, End):
            self._progress.update(self._bars[event.arm], total=self._progress.tasks[event.arm].completed)
        elif isinstance(event, Repeat):
            self._more = f"run {event.number + 1} done"
        elif isinstance(event, Scores):
            self._more = f"attention recorded up to token {event.t + 1}"
        elif isinstance(event, Agreement):
            self._more = f"agreement with full attention: {self._labels[event.arm]}"
        elif isinstance(event, Start):
            self._more = f"{event.n_image} image tokens, {event.n_text} text tokens"

    def __rich__(self) -> Group:
        answers, figures = Table(expand=True, show_lines=False), Table(expand=False)
        texts = [Text(text.strip() or "…") for text in self._texts]
        if len(texts) <= MOST_BESIDE:
            for label in self._labels:
                answers.add_column(Text(label), ratio=1)
            answers.add_row(*texts)
        else:
            answers.show_header = False
            for label, text in zip(self._labels, texts, strict=True):
                answers.add_row(Text(label), text)
        for title in ("", "first token", "per token", "KV stored", "KV read"):
            figures.add_column(title, justify="right" if title else "left")
        for label, row in zip(self._labels, self._figures, strict=True):
            figures.add_row(Text(label), *row)
        return Group(answers, figures, self._progress, Text(self._more, style="dim"))


def _mib(count: float) -> str:
    return f"{count / 2**20:.2f} MiB"


def write(trace: Trace, path: Path) -> None:
    """Keep a run: ``.html`` as a page of its own, anything else as JSON."""
    if path.suffix == ".html":
        from avl.ui import report  # the page's libraries are needed for nothing else here

        path.write_text(report.page(trace), encoding="utf-8")
    else:
        path.write_text(trace.to_json(), encoding="utf-8")
