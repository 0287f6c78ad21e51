"""``avl eval`` and ``avl sweep``: how right answers are under each policy."""

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


def _percent(text: str) -> str:
    try:
        return text if text == NONE else f"{float(text):g}"
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def _measured(source: Source, samples: int, seed: int, batch: int, file: Path | None) -> Any:
    """Load the model, and take up what the file holds."""
    from avl.attention.attachment import attach
    from avl.evaluation.evaluate import Measured
    from avl.evaluation.rows import Rows
    from avl.evaluation.tasks import held_out
    from avl.telemetry import machine_card

    asked = held_out(samples, seed)
    model, processor = source.load()
    attach(model)
    made = {"model": source.model, "revision": source.revision, "samples": samples, "seed": seed, "batch": batch}
    made |= {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch.")}
    return Measured(model, processor, asked, Rows(made, machine_card(), file), batch)


@grouped
def evaluate(
    source: Source,
    samples: Samples = 500,
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
    batch: Batch = 16,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="keep each row in FILE as soon as it is known; rows in it are not measured again"),
    ] = None,
) -> None:
    """Score the policies on held-out samples of the bundled model: a table, and one JSON line last.

    A-VL without parameters runs with S=45 C=30 K=3 P=90 T=60; other policies without parameters store what the first A-VL stores, averaged
    over the steps of right answers. The difference to full attention is a 95 % interval.
    """
    from avl.evaluation.evaluate import TABLE, evaluate_all, wanted

    asked = wanted(TABLE if policies is None else chosen(policies))
    measured = _measured(source, samples, seed, batch, json)
    evaluate_all(measured, asked)
    print(json_format.dumps(measured.rows.record()))


@grouped
def sweep(
    source: Source,
    samples: Samples = 200,
    seed: Seed = 0,
    shares: Annotated[list[float] | None, typer.Option(metavar="PERCENT...", help="values of S; default: 100 down to 5")] = None,
    spreads: Annotated[
        list[str] | None,
        typer.Option(parser=_percent, metavar="PERCENT...|none", help="shares of S that are spread; default: a third, two thirds and all"),
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
    sweeping.plot(sweeping.sweep(measured, values, parts, names), out / "sweep.png")
    print(json_format.dumps(measured.rows.record()))
