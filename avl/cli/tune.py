"""``avl tune``, ``avl transfer`` and ``avl leaderboard``: settings compared by their answers, which cells keep one by one."""

from __future__ import annotations

import json as json_format
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from avl._files import write_whole
from avl.cli.evaluation import Batch, Seed, percent
from avl.cli.options import Source, chosen, grouped, policy_name, policy_names, policy_spec
from avl.evaluation.tune.grid import DEFAULT, parse_grid
from avl.policies import POLICIES, Full, Policy, parse_policy

BUDGETED = [policy for policy in POLICIES.values() if policy.budget is not None]

Tasks = Annotated[
    list[str] | None,
    typer.Option(metavar="TASK...", help="qa, read and describe for the bundled model (default: all three); tasks of lmms-eval for others"),
]
CellsFolder = Annotated[Path, typer.Option("--cells", metavar="DIR", help="where answers are kept; what it holds is not asked again")]
CELLS = Path("runs/cells")


def opened(source: Source, folder: Path) -> tuple[tuple[Any, Any], Any, dict[str, Any]]:
    """Load the model. Returns (model, processor), the cells of it, and what a record says about model and machine."""
    from avl.attention.attachment import attach
    from avl.evaluation.cells import Cells, identity
    from avl.evaluation.rows import today
    from avl.telemetry import machine_card

    model, processor = source.load()
    attach(model)
    made = identity(source.model, model)
    said = {name: made[name] for name in ("model", "revision", "device", "dtype")}
    return (model, processor), Cells(folder, made), {"machine": machine_card(), "date": today(), **said}


def write(record: dict[str, Any], file: Path) -> None:
    """Write a record."""
    write_whole(file, json_format.dumps(record, indent=1) + "\n")


Grid = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUES...", help=f"values of S, C, K, spread, P and T: ranges, commas, none for off. Default: {DEFAULT}"),
]
Keep = Annotated[float, typer.Option(metavar="PERCENT", help="of full attention's score that a setting has to keep")]
Every = Annotated[int, typer.Option(help="samples between two looks at which settings are dropped", min=1)]
Choosing = Annotated[int, typer.Option(help="samples of each task that choose the setting", min=2)]


def _share(keep: float) -> float:
    if not 0 < keep <= 100:
        raise ValueError(f"--keep {keep:g} is out of range: it is a percentage of full attention's score, above 0 and at most 100")
    return keep / 100


def _search(tuner: Any, grid: Any, trials: int | None) -> Any:
    """Return the best setting by the grid's two stages, or by as many of TPE's trials."""
    from avl.evaluation.tune import search, tpe

    return search.two_stages(tuner, grid) if trials is None else tpe.propose(tuner, grid, trials, tpe.new_study())


@grouped
def tune(
    source: Source,
    task: Annotated[str, typer.Option(metavar="TASK", help="qa, read or describe for the bundled model; a task of lmms-eval for others")],
    grid: Grid = None,
    keep: Keep = 99.0,
    samples: Choosing = 200,
    confirm: Annotated[int, typer.Option(help="fresh samples that the chosen setting is measured on once more; 0 for none", min=0)] = 200,
    every: Every = 50,
    sampler: Annotated[
        Literal["grid", "tpe"], typer.Option(help="the whole grid in two stages, or proposals by optuna's TPE over all parameters at once")
    ] = "grid",
    trials: Annotated[int | None, typer.Option(help="proposals of TPE; default: 60", min=1)] = None,
    seed: Seed = 0,
    batch: Batch = 16,
    cells: CellsFolder = CELLS,
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="what was found; the picture goes beside it")] = Path("runs/tune.json"),
) -> None:
    """Find the setting of A-VL that stores and then reads least, of those that keep --keep % of full attention's score on a task.

    The grid's first stage is S, C, K and spread, its second P and T at the best of the first. Combinations with C or spread above S are
    left out. Settings that keep too little are dropped at the looks; one that keeps enough is dropped with a probability of at most 5 %,
    over all looks. The chosen setting is measured once more on fresh samples. Interrupted, the command goes on where it stopped.
    """
    from avl.charts import require_matplotlib
    from avl.evaluation.task_names import check_tasks, with_fresh
    from avl.evaluation.tune import report, search, tpe

    asked, least = parse_grid(grid or [DEFAULT]), _share(keep)
    check_tasks([task], source.model)
    if sampler == "tpe":
        tpe.require_optuna()
    elif trials is not None:
        raise ValueError("--trials belongs to --sampler tpe: the grid tries all its settings")
    require_matplotlib()
    settings, above, alike = asked.first()
    if sampler == "grid":
        print(f"{len(settings)} settings in the first stage; {above} left out with C or spread above S, {alike} like another one")
    loaded, kept, about = opened(source, cells)
    (chooses, numbers), (fresh, others) = with_fresh(task, loaded, source.model, samples, confirm, seed=seed, batch=batch)
    tuner = search.Tuner(kept, chooses, numbers, least, every)
    best = _search(tuner, asked, (trials or 60) if sampler == "tpe" else None)
    again = None
    if best is not None and confirm:
        full = kept.row(Full(), fresh, others)
        again = search.compared(best.policy, kept.row(best.policy, fresh, others), full, "confirm"), full
    found = report.Tuned(task, least, tuner.full, tuple(tuner.tried.values()), best, again)
    about |= {"grid": asked.text, "sampler": sampler, "samples": samples, "confirm": confirm, "every": every, "seed": seed, "batch": batch}
    write(about | {"left out": above, "alike": alike} | found.record(), out)
    report.plot(found, out.with_suffix(".png"))
    print(f"{found.table()}\n\n{found.verdict()}\nwritten to {out}")


@grouped
def transfer(
    source: Source,
    tasks: Tasks = None,
    grid: Grid = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(parser=policy_spec, metavar="POLICY...", help="measure these as they are, and tune nothing: avl:S=45,C=30"),
    ] = None,
    keep: Keep = 99.0,
    samples: Choosing = 200,
    confirm: Annotated[int, typer.Option(help="fresh samples of each task that all settings are measured on", min=2)] = 200,
    every: Every = 50,
    seed: Seed = 0,
    batch: Batch = 16,
    cells: CellsFolder = CELLS,
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="what was found")] = Path("runs/transfer.json"),
) -> None:
    """Tune A-VL on each task as avl tune does, and measure each setting on all of them, on fresh samples: a Markdown table.

    With --policies, nothing is tuned: the matrix of these.
    """
    from avl.evaluation.task_names import check_tasks, with_fresh
    from avl.evaluation.tasks import TASKS
    from avl.evaluation.transfer import transfer as measured
    from avl.evaluation.tune import report, search

    asked, least = parse_grid(grid or [DEFAULT]), _share(keep)
    names = list(TASKS) if tasks is None else tasks
    check_tasks(names, source.model)
    if policies and grid:
        raise ValueError("--policies are measured as they are, and --grid tunes: name one of them")
    settings: dict[str, Policy] = {policy.label: policy for policy in map(parse_policy, policies or [])}
    loaded, kept, about = opened(source, cells)
    split = {name: with_fresh(name, loaded, source.model, samples, confirm, seed=seed, batch=batch) for name in names}
    about |= {"keep": least, "samples": samples, "confirm": confirm, "every": every, "seed": seed, "batch": batch}
    if not policies:
        about["grid"] = asked.text
        searches = {}
        for name, ((task, numbers), _) in split.items():
            tuner = search.Tuner(kept, task, numbers, least, every, say=partial(print, f"{name:10}"))
            best = search.two_stages(tuner, asked)
            searches[name] = report.Tuned(name, least, tuner.full, tuple(tuner.tried.values()), best).record()
            if best is None:
                print(f"{name}: no setting of the grid keeps {keep:g} % of full attention's score")
            else:
                settings[f"tuned on {name}"] = best.policy
        about["tuned"] = {name: {key: record[key] for key in ("full", "chosen")} for name, record in searches.items()}
    if not settings:
        raise ValueError(
            f"no setting of the grid keeps {keep:g} % on any of these tasks, so none can be measured on the others: lower --keep"
        )
    matrix = measured(kept, settings, {name: fresh for name, (_, fresh) in split.items()})
    write(about | matrix.record(), out)
    print(f"{matrix.table()}\nwritten to {out}")


@grouped
def leaderboard(
    source: Source,
    tasks: Tasks = None,
    stored: Annotated[
        list[float] | None, typer.Option(metavar="PERCENT...", help="stored shares of a full cache; default: 10 to 100 by 10")
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(parser=policy_name, metavar="POLICY...", help=f"{policy_names(BUDGETED)}. Default: all"),
    ] = None,
    spreads: Annotated[
        list[str] | None,
        typer.Option(parser=percent, metavar="PERCENT...|none", help="shares of S that are spread, a curve each; default: 67"),
    ] = None,
    samples: Annotated[int, typer.Option(help="samples of each task", min=1)] = 100,
    seed: Seed = 0,
    batch: Batch = 16,
    cells: CellsFolder = CELLS,
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="what was measured; the picture goes beside it")] = Path(
        "runs/policies.json"
    ),
) -> None:
    """Score every policy at each stored share, one picture a task; one JSON line last.

    A-VL runs with C two thirds of S and K=3, without P and T. A policy that cannot store a share is left out there, and the file says why.
    """
    from avl.charts import require_matplotlib
    from avl.evaluation import leaderboard as board
    from avl.evaluation.sweep import plot
    from avl.evaluation.task_names import check_tasks, find_task
    from avl.evaluation.tasks import TASKS

    require_matplotlib()
    names = list(TASKS) if tasks is None else tasks
    check_tasks(names, source.model)
    shares = list(board.SHARES if stored is None else stored)
    board.check_shares(shares)
    curves = board.named(policies, board.SPREADS if spreads is None else [float(one) for one in chosen(spreads)])
    loaded, kept, about = opened(source, cells)
    boards = {}
    for name in names:
        task = find_task(name, loaded, source.model, samples, seed=seed, batch=batch)
        boards[name] = board.leaderboard(kept, task, curves, shares)
        record = about | {"seed": seed, "batch": batch, "tasks": {one: found.record() for one, found in boards.items()}}
        write(record, out)
        plot({one: found.rows for one, found in boards.items()}, out.with_suffix(".png"))
    print(json_format.dumps(record))
