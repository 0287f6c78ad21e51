"""``avl figures TRACE.json``."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from avl.cli.options import Json, read_file


def figures(
    file: Annotated[Path, typer.Argument(metavar="TRACE.json", help="a run recorded with its attention: avl record, compare --scores")],
    arm: Annotated[int, typer.Option(help="which run of the trace; full attention is the one to ask")] = 0,
    p: Annotated[float, typer.Option("-p", help="percent of the tokens whose agreement is counted (Figures 4 and 5)")] = 50,
    mass: Annotated[float, typer.Option(help="percent of the attention that the fewest tokens are to hold")] = 80,
    json: Json = None,
) -> None:
    """Say what the paper's Figures 1, 3, 4 and 5 show, for a recorded run: tables, and one JSON line last."""
    from rich.console import Console

    from avl.evaluation.figures import summary, tables
    from avl.trace import Trace

    result = summary(Trace.from_json(read_file(file)), arm=arm, p=p, mass=mass)
    console = Console()
    for part in tables(result):
        console.print(part)
    line = json_format.dumps(result)
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(line + "\n", encoding="utf-8")
    print(line)
