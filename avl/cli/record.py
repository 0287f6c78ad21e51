"""``avl record IMAGE "question" --out FILE.json``.

What the page opens with, what the README's pictures show and what tests replay are such files (``assets/traces``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from avl.cli.compare import Against
from avl.cli.options import ADAPTIVE, Asked, Source, grouped
from avl.policies import AVL, parse_policy


@dataclass(frozen=True)
class Recorded(Asked):
    """A question whose times are to have a spread."""

    repeats: Annotated[int, typer.Option(help="run it so many times: times come with a spread")] = 5


@grouped
def record(
    asked: Recorded,
    source: Source,
    out: Annotated[Path, typer.Option(help="the trace (JSON); the page shows the first file of assets/traces")],
    against: Against = "full",
    adaptive: AVL = ADAPTIVE,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="leave the attention out: the file is a tenth as large")] = False,
    answer: Annotated[str, typer.Option(help="the right answer, if there is one")] = "",
) -> None:
    """Keep a run as a trace, with its attention and the spread of its times, for the page to open with."""
    if out.suffix != ".json":
        raise ValueError(f"--out {out} is not a trace's name: it ends in .json")
    from avl.cli import terminal
    from avl.trace import Error

    trace = terminal.run(source.load, asked.request((parse_policy(against), adaptive), scores=not no_scores))
    if trace.of(Error):
        raise typer.Exit(1)
    if answer:
        trace.meta["expected"] = answer
    terminal.write(trace, out)
    print(f"{terminal.table(trace)}\n\ntrace written to {out} ({out.stat().st_size / 1e6:.1f} MB)")
