"""``avl eval-sweep``: answers against memory. A-VL over S from 100 to 5, with and without spread; the other policies at the same memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from avl import charts
from avl.evaluation.evaluate import Measured
from avl.evaluation.rows import Row
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


def plot(panels: Mapping[str, Mapping[str, Sequence[Row]]], path: Path) -> None:
    """Draw share of the full cache stored against score as a PNG: A-VL bold, the other policies thin and dashed.

    Args:
        panels: task, a panel each -> name of a curve (a registered policy, or of :func:`curve`) -> its rows; ``Full`` is a level line.
        path: of the picture.
    """
    spreads = list(dict.fromkeys(name for curves in panels.values() for name in curves if name not in POLICIES))
    looks: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(POLICIES):
        thin = {} if name == "AVL" else {"linestyle": (0, (4, 2)), "linewidth": 1.3, "markersize": 4.5}
        looks[name] = charts.style(place) | thin | {"label": POLICIES[name].title, "zorder": 3 if name == "AVL" else 2}
    for place, name in enumerate(spreads):
        color, marker = _SPREAD_LOOKS[place % len(_SPREAD_LOOKS)]
        looks[name] = charts.style(place) | {"color": color, "marker": marker, "label": name, "linewidth": 2.6, "zorder": 4}
    width = max(6.6, 4.4 * len(panels))
    with charts.figure(width, 5.2, len(panels)) as (figure, drawn):
        for panel, (task, curves) in zip(drawn, panels.items(), strict=True):
            values = [100 * row.scores[task] for rows in curves.values() for row in rows if task in row.scores]
            bottom, most = max(0, 10 * (min(values, default=0) // 10) - 5), max(values, default=0)
            top = 101.5 if most <= 100 else 1.05 * most  # captions may score more
            panel.set(title=TITLES.get(task, task), xlim=(0, 102), ylim=(bottom, top), xlabel="stored share of the full cache in %")
            full = curves["Full"][0].scores.get(task, 0.0)
            panel.axhline(100 * full, color=charts.INK, linestyle=":", linewidth=1.5, label="full attention")
            for name in ("AVL", *spreads, *(one for one in POLICIES if one not in ("Full", "AVL"))):
                points = sorted((100 * row.stored, 100 * row.scores[task]) for row in curves.get(name, []) if task in row.scores)
                if points:
                    panel.plot(*zip(*points, strict=True), **looks[name])
        drawn[0].set_ylabel("score in %")
        found = {label: handle for panel in drawn for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(
            found.values(), found.keys(), loc="outside lower left", ncols=min(-(-len(found) // 2), int(width / 2.4)), frameon=False
        )
        charts.save(figure, path)
