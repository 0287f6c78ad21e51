"""``avl eval`` and ``avl eval-sweep``: how right answers are under each policy."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer

from avl.cli.options import NONE, Source, chosen, grouped, policy_name, policy_names, policy_spec
from avl.policies import POLICIES

OTHERS = [name for name in POLICIES if name not in ("Full", "AVL")]

Samples = Annotated[int, typer.Option(help="held-out questions")]
Seed = Annotated[int, typer.Option(help="of the questions")]
Batch = Annotated[int, typer.Option(help="samples at a time", min=1)]


def _spec(text: str) -> str:
    return text if text == NONE else policy_spec(text)


def percent(text: str) -> str:
    try:
        return text if text == NONE else f"{float(text):g}"
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def _made(source: Source, samples: int, seed: int, batch: int, file: Path | None, **more: Any) -> tuple[Any, Any, Any]:
    """Load the model, and take up what the file holds. Returns model, processor, rows."""
    from avl.attention.attachment import attach
    from avl.evaluation.rows import Rows
    from avl.telemetry import machine_card

    model, processor = source.load()
    attach(model)
    made = {"model": source.model, "revision": source.revision, "samples": samples, "seed": seed, "batch": batch, **more}
    made |= {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch.")}
    return model, processor, Rows(made, machine_card(), file)


def _measured(source: Source, samples: int, seed: int, batch: int, file: Path | None) -> Any:
    """Return single questions as what is measured."""
    from avl.evaluation.evaluate import Measured
    from avl.evaluation.tasks import held_out

    asked = held_out(samples, seed)
    model, processor, rows = _made(source, samples, seed, batch, file)
    return Measured.single(model, processor, asked, rows, batch)


def _conversations(source: Source, samples: int, turns: int, seed: int, file: Path | None) -> Any:
    """Return conversations as what is measured; notes beside the rows what full attention knows without them."""
    from avl.evaluation.tasks import dialogs
    from avl.evaluation.turns import asked_first, turns_of

    asked = dialogs(samples, turns, seed)
    model, processor, rows = _made(source, samples, seed, 1, file, turns=turns)
    if "asked first" not in rows.notes:
        rows.notes["asked first"] = asked_first(model, processor, asked)
        rows.write()
    print(
        "full attention, each as a first question:", ", ".join(f"{turn} {value:.1%}" for turn, value in rows.notes["asked first"].items())
    )
    return turns_of(model, processor, asked, rows)


@grouped
def evaluate(
    source: Source,
    samples: Annotated[int | None, typer.Option(help="held-out questions, or conversations. Default: 500, or 200 conversations")] = None,
    seed: Seed = 0,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            parser=_spec,
            metavar="POLICY...|none",
            help=f"{policy_names()}, at the memory of A-VL; with parameters as written: avl:S=45,spread=33. Full is always measured. "
            "Default: A-VL with and without spread, and all others",
        ),
    ] = None,
    turns: Annotated[
        int,
        typer.Option(
            help="questions of a conversation; from 2 on each is asked of what is kept, and of the picture read again", min=1, max=10
        ),
    ] = 1,
    stored: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT", help="of a full cache that every policy stores; default: what the first A-VL stores", min=1, max=100
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="samples at a time, 16; conversations run one by one", min=1)] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="keep each row in FILE as soon as it is known; rows in it are not measured again"),
    ] = None,
) -> None:
    """Score the policies on held-out samples of the bundled model: a table, and one JSON line last.

    A-VL without parameters runs with S=45 C=30 K=3 P=90 T=60; other policies without parameters store what the first A-VL stores, averaged
    over the steps of right answers. The difference to full attention is a 95 % interval. With --turns 2 or more, conversations of so many
    questions: the score of every turn on what is kept, and of later ones after reading the picture again.
    """
    from avl.evaluation import turns as conversing
    from avl.evaluation.evaluate import TABLE, evaluate_all, wanted

    asked = wanted((conversing.TABLE if turns > 1 else TABLE) if policies is None else chosen(policies))
    share = None if stored is None else stored / 100
    if turns > 1:
        if batch not in (None, 1):
            raise ValueError(f"--batch {batch} is not possible with --turns, whose conversations run one by one: leave it out")
        measured = _conversations(source, 200 if samples is None else samples, turns, seed, json)
        evaluate_all(measured, asked, share, lines=conversing.table)
    else:
        measured = _measured(source, 500 if samples is None else samples, seed, batch or 16, json)
        evaluate_all(measured, asked, share)
    print(json_format.dumps(measured.rows.record()))


@grouped
def sweep(
    source: Source,
    samples: Samples = 200,
    seed: Seed = 0,
    shares: Annotated[list[float] | None, typer.Option(metavar="PERCENT...", help="values of S; default: 100 down to 5")] = None,
    spreads: Annotated[
        list[str] | None,
        typer.Option(parser=percent, metavar="PERCENT...|none", help="shares of S that are spread; default: a third, two thirds and all"),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            parser=policy_name,
            metavar="POLICY...|none",
            help=f"{policy_names([POLICIES[name] for name in OTHERS])}, at the memory that A-VL then uses. Default: all",
        ),
    ] = None,
    batch: Batch = 16,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="where sweep.json and sweep.png are written; rows in it are not measured again")
    ] = Path("assets/bench"),
) -> None:
    """Score A-VL over S, with and without spread, and draw the curves; one JSON line last."""
    from avl.charts import require_matplotlib
    from avl.evaluation import sweep as sweeping
    from avl.evaluation.tasks import TASKS

    require_matplotlib()
    names = OTHERS if others is None else chosen(others)
    if not set(names) <= set(OTHERS):
        raise ValueError(f"--others names what A-VL is compared with: {', '.join(OTHERS)}")
    values = list(sweeping.SHARES if shares is None else shares)
    parts = list(sweeping.SPREADS) if spreads is None else [float(one) for one in chosen(spreads)]
    for value in values:  # refuse what is out of range before anything is loaded
        for part in (None, *parts):
            sweeping.adaptive(value, part)
    measured = _measured(source, samples, seed, batch, out / "sweep.json")
    curves = sweeping.sweep(measured, values, parts, names)
    sweeping.plot(dict.fromkeys(TASKS, curves), out / "sweep.png")
    print(json_format.dumps(measured.rows.record()))
