"""``avl compare IMAGE "question"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avl.cli.options import ADAPTIVE, Asked, Source, grouped, policy_names, policy_spec
from avl.policies import AVL, parse_policy

Against = Annotated[
    str,
    typer.Option(parser=policy_spec, metavar="POLICY", help=f"what A-VL is compared with: {policy_names()}; with parameters: h2o:keep=40"),
]


@grouped
def compare(
    asked: Asked,
    source: Source,
    against: Against = "full",
    adaptive: AVL = ADAPTIVE,
    scores: Annotated[bool, typer.Option("--scores", help="record the attention of every pass too, for the report's analysis")] = False,
    out: Annotated[Path | None, typer.Option(help="keep the run: FILE.html is a page that plays offline, FILE.json the trace")] = None,
) -> None:
    """Answer one question under two policies in the terminal, live."""
    if out is not None and out.suffix not in (".html", ".json"):
        raise ValueError(f"--out {out} has no known ending: use .html for a page that plays offline or .json for the trace")
    from avl.cli import terminal
    from avl.trace import Error

    trace = terminal.run(source.load, asked.request((parse_policy(against), adaptive), scores))
    print(terminal.table(trace))
    if out is not None:
        terminal.write(trace, out)
        print(f"\n{'report' if out.suffix == '.html' else 'trace'} written to {out}")
    if trace.of(Error):
        raise typer.Exit(1)
