"""``avl eval-sweep``: answers against memory. A-VL over S from 100 to 5, with and without spread; the other policies at the same memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from avl import charts
from avl.evaluation.evaluate import Measured
from avl.evaluation.rows import Row
from avl.evaluation.tasks import TASKS
from avl.policies import AVL, POLICIES, Full, Policy, parse_policy

SHARES = (100.0, 80.0, 60.0, 45.0, 30.0, 20.0, 10.0, 5.0)
SPREADS = (33.0, 67.0, 100.0)
"""Shares of S that are spread, in %."""
TITLES = {"qa": "short answers", "read": "reading (ANLS)", "describe": "descriptions (facts right)"}
_SPREAD_LOOKS = (("#9467BD", "o"), ("#0072B2", "P"), ("#002F5F", "*"))


def adaptive(share: float, spread: float | None = None) -> AVL:
    """Return A-VL at one S: C two thirds of it (all of it at 100), K=3.

    Args:
        share: S, in %.
        spread: share of S that is spread, in %.

    Raises:
        ValueError: a share is out of range.
    """
    if spread is not None and not 0 < spread <= 100:
        raise ValueError(f"spread {spread:g} is out of range: it is a share of S, above 0 and at most 100 percent")
    core = None if share == 100 else round(share * 2 / 3, 2)
    return AVL(S=share, C=core, K=3, spread=None if spread is None else round(share * spread / 100, 2))


def sweep(
    measured: Measured, shares: Sequence[float], spreads: Sequence[float], others: Sequence[str], say: Callable[[str], None] = print
) -> dict[str, list[Row]]:
    """Measure A-VL at each S, without spread and with, and the other policies at the memory that it uses there.

    At S=100 nothing is left to choose, so the rows with spread begin below.

    Args:
        measured: what is asked, and where rows go.
        shares: values of S, in %.
        spreads: shares of S that are spread, in %.
        others: registered names of policies.
        say: takes a line for each row.

    Returns:
        Name of a curve -> its rows. A policy has none where it cannot store as much or as little.
    """
    full = measured.row(Full())
    out: dict[str, list[Row]] = {"Full": [full]}
    for share in shares:
        plain = adaptive(share)
        cells: dict[str, Policy] = {"AVL": plain}
        if share < 100:
            cells |= {curve(spread): adaptive(share, spread) for spread in spreads}
        for name in others:
            policy = measured.equal(parse_policy(name), plain)
            if policy is None:
                say(f"{POLICIES[name].title} is left out: it cannot store what {plain.label} stores")
            else:
                cells[name] = policy
        for name, policy in cells.items():
            row = measured.row(policy)
            out.setdefault(name, []).append(row)
            scores = "  ".join(f"{task} {value:6.1%}" for task, value in row.scores.items())
            say(f"{row.policy:46} stored {row.stored:6.1%} read {row.read:6.1%}  {scores}")
    return out


def curve(spread: float) -> str:
    """Return the name of the curve of A-VL with a share of S spread."""
    return f"A-VL, {spread:g} % of S spread"


def plot(results: dict[str, list[Row]], path: Path) -> None:
    """Draw one panel a task, share of the full cache stored against score, as a PNG: A-VL bold, the other policies thin and dashed."""
    spreads = [name for name in results if name not in POLICIES]
    looks: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(POLICIES):
        thin = {} if name == "AVL" else {"linestyle": (0, (4, 2)), "linewidth": 1.3, "markersize": 4.5}
        looks[name] = charts.style(place) | thin | {"label": POLICIES[name].title, "zorder": 3 if name == "AVL" else 2}
    for place, name in enumerate(spreads):
        color, marker = _SPREAD_LOOKS[place % len(_SPREAD_LOOKS)]
        looks[name] = charts.style(place) | {"color": color, "marker": marker, "label": name, "linewidth": 2.6, "zorder": 4}
    with charts.figure(13.2, 5.2, len(TASKS)) as (figure, panels):
        for panel, task in zip(panels, TASKS, strict=True):
            values = [100 * row.scores[task] for rows in results.values() for row in rows if task in row.scores]
            bottom = max(0, 10 * (min(values, default=0) // 10) - 5)
            panel.set(title=TITLES[task], xlim=(0, 102), ylim=(bottom, 101.5), xlabel="stored share of the full cache in %")
            full = results["Full"][0].scores.get(task, 0.0)
            panel.axhline(100 * full, color=charts.INK, linestyle=":", linewidth=1.5, label="full attention")
            for name in ("AVL", *spreads, *(one for one in POLICIES if one not in ("Full", "AVL"))):
                points = sorted((100 * row.stored, 100 * row.scores[task]) for row in results.get(name, []) if task in row.scores)
                if points:
                    panel.plot(*zip(*points, strict=True), **looks[name])
        panels[0].set_ylabel("score in %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=-(-len(labels) // 2), frameon=False)
        charts.save(figure, path)
