"""``avl record IMAGE "question" --out FILE.json``.

What the page opens with, what the README's pictures show and what tests replay are such files (``assets/traces``).
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avl.cli.compare import Against, arms
from avl.cli.options import ADAPTIVE, Asked, Source, grouped
from avl.policies import AVL

if TYPE_CHECKING:
    from avl.trace import Trace

ATTEMPTS = 8  # recordings that are made, at most, until one's first run is typical


def is_typical(trace: Trace) -> bool:
    """Return whether the first run's time per token lies in the middle half of all runs, for every arm."""
    from avl.trace import End, Repeat

    for end in trace.of(End):
        times = [time for time in (end.median_ms, *(event.median_ms for event in trace.of(Repeat, end.arm))) if time is not None]
        if len(times) < 3 or end.median_ms is None:
            continue
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
        if not low <= end.median_ms <= high:
            return False
    return True


@dataclass(frozen=True)
class Recorded(Asked):
    """A question whose times are to have a spread."""

    repeats: Annotated[int, typer.Option(help="run it so many times: times come with a spread")] = 5


@grouped
def record(
    asked: Recorded,
    source: Source,
    out: Annotated[Path, typer.Option(help="the trace (JSON); the page shows the first file of assets/traces")],
    against: Against = None,
    adaptive: AVL = ADAPTIVE,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="leave the attention out: the file is a tenth as large")] = False,
    answer: Annotated[str, typer.Option(help="the right answer, if there is one")] = "",
) -> None:
    """Keep a run as a trace, with its attention, its agreement and the spread of its times, for the page to open with."""
    if out.suffix != ".json":
        raise ValueError(f"--out {out} is not a trace's name: it ends in .json")
    from avl.cli import tables, terminal
    from avl.trace import SCORES_BYTES, Error

    request, loaded = asked.request(arms(against, adaptive), scores=not no_scores, scores_bytes=SCORES_BYTES, agreement=True), source.load()
    # the page draws the first run, so that one should be like the others: warm, and in the middle of them
    terminal.run(lambda: loaded, dataclasses.replace(request, repeats=1, scores=False, agreement=False))
    for _ in range(ATTEMPTS):
        trace = terminal.run(lambda: loaded, request)
        if trace.of(Error):
            raise typer.Exit(1)
        if is_typical(trace):
            break
    else:
        print(f"the first run was not typical in {ATTEMPTS} attempts: record on a machine that does nothing else", file=sys.stderr)
    trace.meta["pictures"] = [path.name for path in asked.image]
    trace.meta["repeats"] = asked.repeats
    if answer:
        trace.meta["expected"] = answer
    terminal.write(trace, out)
    print(f"{tables.comparison(trace)}\n\ntrace written to {out} ({out.stat().st_size / 1e6:.1f} MB)")
