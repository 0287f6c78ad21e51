"""``avl eval`` and ``avl sweep``: how right answers are under each policy."""

from __future__ import annotations

import datetime
import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from avl.cli.options import Json, Source, chosen, grouped, policy_name, policy_names
from avl.policies import POLICIES

OTHERS = [name for name in POLICIES if name not in ("Full", "AVL")]

Samples = Annotated[int, typer.Option(help="held-out questions")]
Seed = Annotated[int, typer.Option(help="of the questions")]
Batch = Annotated[int, typer.Option(help="samples at a time")]


def _attached(source: Source) -> tuple[Any, Any]:
    from avl.attention.attachment import attach

    model, processor = source.load()
    attach(model)
    return model, processor


def _record(source: Source, samples: int, seed: int, **more: Any) -> dict[str, Any]:
    from avl.telemetry import machine_card

    record = {"date": datetime.date.today().isoformat(), "machine": machine_card()}
    return record | {"model": source.model, "samples": samples, "seed": seed, **more}


def _write(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_format.dumps(record, indent=1) + "\n", encoding="utf-8")


@grouped
def evaluate(
    source: Source,
    samples: Samples = 500,
    seed: Seed = 0,
    policies: Annotated[
        list[str] | None,
        typer.Option(parser=policy_name, metavar="POLICY...|none", help=f"{policy_names()}; full is always measured. Default: all"),
    ] = None,
    batch: Batch = 16,
    json: Json = None,
) -> None:
    """Score the policies on held-out samples of the bundled model: a table, and one JSON line last.

    A-VL runs with S=45 C=30 K=3 P=90 T=60, the others at the memory that it then uses.
    """
    from avl.evaluation.evaluate import evaluate_all
    from avl.evaluation.tasks import held_out

    model, processor = _attached(source)
    names = list(POLICIES) if policies is None else chosen(policies)
    results = evaluate_all(model, processor, held_out(samples, seed), names, batch)
    record = _record(source, samples, seed, device=str(model.device), results=[asdict(one) for one in results])
    if json:
        _write(record, json)
    print(json_format.dumps(record))


@grouped
def sweep(
    source: Source,
    samples: Samples = 200,
    seed: Seed = 0,
    shares: Annotated[list[float] | None, typer.Option(metavar="PERCENT...", help="values of S; default: 100 down to 5")] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            parser=policy_name,
            metavar="POLICY...|none",
            help=f"{policy_names([POLICIES[name] for name in OTHERS])}, at the memory that A-VL then uses. Default: all",
        ),
    ] = None,
    batch: Batch = 16,
    out: Annotated[Path, typer.Option(metavar="DIR", help="where sweep.json and sweep.png are written")] = Path("assets/bench"),
) -> None:
    """Score A-VL over S and draw the curve; one JSON line last."""
    from avl.charts import require_matplotlib
    from avl.evaluation import sweep as sweeping
    from avl.evaluation.tasks import held_out

    require_matplotlib()
    names = OTHERS if others is None else chosen(others)
    if not set(names) <= set(OTHERS):
        raise ValueError(f"--others names what A-VL is compared with: {', '.join(OTHERS)}")
    model, processor = _attached(source)
    values = list(shares or sweeping.SHARES)
    results = sweeping.sweep(model, processor, held_out(samples, seed), values, names, batch)
    rows = {name: [asdict(one) for one in found] for name, found in results.items()}
    record = _record(source, samples, seed, shares=values, results=rows)
    _write(record, out / "sweep.json")
    sweeping.plot(results, out / "sweep.png")
    print(json_format.dumps(record))
