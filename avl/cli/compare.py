"""``avl compare IMAGE "question"``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avl.cli.options import ADAPTIVE, Asked, Source, grouped, policy_names, policy_spec
from avl.policies import AVL, POLICIES, Policy, at_equal_memory, cli_name, parse_policy

if TYPE_CHECKING:
    from avl.engine.request import GenerationRequest

Against = Annotated[
    list[str] | None,
    typer.Option(
        parser=policy_spec,
        metavar="POLICY...",
        help=f"what A-VL is compared with, one or several: {policy_names()}; with parameters: h2o:keep=40. Default: full",
    ),
]


def arms(against: Sequence[str] | None, adaptive: AVL) -> list[Policy]:
    """Return the policies that a command compares: those that texts name, then A-VL."""
    return [*(parse_policy(one) for one in against or ["full"]), adaptive]


def every_policy(adaptive: AVL) -> list[Policy]:
    """Return one policy of every kind, in the order of the registry."""
    return [adaptive if cls is AVL else parse_policy(cli_name(cls)) for cls in POLICIES.values()]


def _refuse_budgets(against: Sequence[str]) -> None:
    """Raise ValueError where a text sets the parameter that equal memory sets."""
    for one in against:
        policy = parse_policy(one)
        if any(part.startswith(f"{policy.budget}=") for part in one.partition(":")[2].split(",")):
            raise ValueError(f"--equal-memory sets {policy.budget} of {policy.title}: leave it out of {one}")


def _equal(request: GenerationRequest, adaptive: AVL, model: Any, processor: Any) -> GenerationRequest:
    """Return the request with every budget set to A-VL's memory; what cannot be set is left out, and said."""
    from avl.engine.scheduler import prompt_shape

    shape = prompt_shape(model, processor, request.images, request.question, request.max_new_tokens)
    found = at_equal_memory(adaptive, shape, request.policies)
    for sentence in found.left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    return dataclasses.replace(request, policies=found.policies)


@grouped
def compare(
    asked: Asked,
    source: Source,
    against: Against = None,
    every: Annotated[bool, typer.Option("--all", help="compare A-VL with every policy")] = False,
    equal_memory: Annotated[
        bool,
        typer.Option("--equal-memory", help="set every policy's budget so that it stores what A-VL stores, in the mean over the answer"),
    ] = False,
    adaptive: AVL = ADAPTIVE,
    scores: Annotated[bool, typer.Option("--scores", help="record the attention of every pass too, for the report's analysis")] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="feed full attention's answer through each policy: where would it have gone on otherwise?")
    ] = False,
    table: Annotated[
        Path | None, typer.Option("--csv", help="add a line per policy to this file, which is made where there is none")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="keep the run: FILE.html is a page that plays offline, FILE.json the trace")] = None,
) -> None:
    """Answer one question under two or more policies in the terminal, live; a table last."""
    if out is not None and out.suffix not in (".html", ".json"):
        raise ValueError(f"--out {out} has no known ending: use .html for a page that plays offline or .json for the trace")
    if every and against:
        raise ValueError("--all compares A-VL with every policy: leave out --against")
    if equal_memory:
        _refuse_budgets(against or [])
    from avl.cli import tables, terminal
    from avl.evaluation.runs_table import append_csv, check_file
    from avl.trace import SCORES_BYTES, Error

    if table is not None:
        check_file(table)  # before the run, which may take minutes

    # a page has to open; a trace may be asked for any figure
    most = SCORES_BYTES if out is not None and out.suffix == ".html" else None
    request = asked.request(
        every_policy(adaptive) if every else arms(against, adaptive), scores=scores, agreement=agreement, scores_bytes=most
    )
    if equal_memory:
        loaded = source.load()
        request = _equal(request, adaptive, *loaded)
        trace = terminal.run(lambda: loaded, request)
    else:
        trace = terminal.run(source.load, request)
    print(tables.comparison(trace))
    if agreement:
        print(f"\n{tables.agreement(trace)}")
    if out is not None:
        terminal.write(trace, out)
        print(f"\n{'report' if out.suffix == '.html' else 'trace'} written to {out}")
    if table is not None:
        append_csv(trace, table)
        print(f"\n{len(trace.start.arms)} lines added to {table}")
    if trace.of(Error):
        raise typer.Exit(1)
