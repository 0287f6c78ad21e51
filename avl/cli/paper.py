"""``avl paper``: the A-VL paper's Tables 2 and 3."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avl.cli.options import Source, grouped, policy_names, policy_spec
from avl.evaluation.paper.methods import TABLES

if TYPE_CHECKING:
    from avl.evaluation.paper.methods import Method


def _table_or_policy(text: str) -> str:
    return text if text in TABLES else policy_spec(text)


@grouped
def paper(
    source: Source,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            parser=_table_or_policy,
            metavar="table2|table3|POLICY...",
            help=f"the rows of a table, or {policy_names()}, with parameters as written: avl:S=45,C=30. Full is always measured. "
            "Default: table2",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(metavar="TASK...", help="of lmms-eval; default: the paper's that the table has")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", "--include_path", metavar="DIR", help="a folder with task files of your own")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="the first so many documents of each task", min=1)] = None,
    batch: Annotated[int, typer.Option(help="documents at a time", min=1)] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of an answer where a task sets none", min=1)] = 64,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the answers that DIR holds")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="where answers, results.json and table.md are written")] = Path("runs/paper"),
    list_only: Annotated[bool, typer.Option("--list", help="only list tasks and policies")] = False,
) -> None:
    """Measure the A-VL paper's Tables 2 and 3, with lmms-eval as the evaluator, beside what the paper printed.

    Answers are written as they come; a cell is one policy and one task. Several GPUs: torchrun --nproc_per_node N -m avl paper ...
    """
    from avl.evaluation.paper.evaluator import check_names, require_evaluator
    from avl.evaluation.paper.methods import methods
    from avl.evaluation.paper.published import BENCHMARKS, paper_model

    asked = policies or ["table2"]
    rows = methods(asked, paper_model(source.model))
    in_table = list(BENCHMARKS)[:4] if asked == ["table3"] else list(BENCHMARKS)
    names = list(dict.fromkeys(tasks or in_table))
    if list_only:
        print("\n".join(_listed(names, rows)))
        return
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"--include-path names a folder with task files, and {include_path} is none")
    require_evaluator()
    check_names(names, include_path)

    from rich.console import Console

    from avl.evaluation.paper.filling import Place
    from avl.evaluation.paper.processes import Processes
    from avl.evaluation.paper.report import RESULTS, TABLE, markdown
    from avl.evaluation.paper.run import Table, measure

    processes = Processes.join()
    one = dataclasses.replace(source, device=processes.device(source.device, source.device_map))
    table = Table(source.model, asked, rows, names, include_path, limit, batch, max_new_tokens)
    with Console(stderr=True, quiet=not processes.main).status("data and model …", spinner="line") as status:

        def tell(place: Place, done: int, of: int) -> None:
            label = "" if place.policy is None else place.policy.label
            status.update(f"{place.task.name}, {label}: {done} of {of}")

        found = measure(table, one.load, out, processes, resume, print, tell)
    processes.leave()
    if found is not None:
        print(f"\n{markdown(found)}\n{out / RESULTS}, {out / TABLE}")


def _listed(names: list[str], rows: list[Method]) -> list[str]:
    """Return tasks and policies as lines of text, with the paper's numbers."""
    from avl.evaluation.paper.published import BENCHMARKS

    lines = ["tasks:"]
    lines += [
        f"  {name:16}{f'{BENCHMARKS[name].title}, {BENCHMARKS[name].score}' if name in BENCHMARKS else ''}".rstrip() for name in names
    ]
    lines += ["policies:"]
    for row in rows:
        share = "" if row.share is None else f", set to store {row.share:.0%} of a full cache"
        lines.append(f"  {row.label}{'' if row.label == row.policy.label else f': {row.policy.label}'}{share}")
        own = {policy: [task for task in names if row.by_task.get(task) == policy] for policy in dict.fromkeys(row.by_task.values())}
        lines += [f"    {policy.label} on {', '.join(several)}" for policy, several in own.items() if several and policy != row.policy]
        printed = [f"{name} {row.paper[name]:.2f}" for name in names if name in row.paper]
        lines += [f"    paper: {', '.join(printed)}"] if printed else []
    return lines
