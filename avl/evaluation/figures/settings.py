"""Figures 9 and 10: answers' scores over S; over C and K; over P; over T.

A task is a function that measures a policy (``Measured.row`` of the bundled model's held-out questions is one), so any task may stand
behind these figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from avl import charts
from avl.evaluation.figures.made import CannotMakeError, Figure
from avl.evaluation.figures.statements import Statement
from avl.evaluation.rows import Row, paired
from avl.policies import AVL, Full, Policy

Task = Callable[[Policy], Row]
"""Scores a policy: the same samples in the same order for every policy."""

SHARES = (80, 60, 40, 30, 20, 10)
"""Values of S, in %, with everything stored being read."""
STORED = 40
"""S of the cells over C and K."""
CORES = (30, 20, 10)
INTERVALS = (2, 3, 8)
"""Values of K, the paper's 3 among them."""
PRUNED = (90, 80, 70, 60, 40)
"""Values of P, in %; nothing else is on."""
WINDOWS = (80, 60, 40, 20)
"""Values of T, in %; nothing else is on."""
NOTHING, NOTHING_FROM = 1, "ours: a loss of less than 1 % of the score is none"


def evicted(share: float) -> AVL:
    """Return S alone: what is not stored is lost, what is stored is read."""
    return AVL(S=share)


def cored(core: float, interval: int) -> AVL:
    """Return S=40 of which C % are read, anew every K steps."""
    return AVL(S=STORED, C=core, K=interval)


def pruned(share: float) -> AVL:
    """Return P alone."""
    return AVL(S=100, P=share)


def windowed(share: float) -> AVL:
    """Return T alone."""
    return AVL(S=100, T=share)


def figure_9(task: Task, name: str) -> Figure:
    """Return Figure 9: scores over S, and over C and K, measured now where the task has not measured them before.

    Args:
        task: scores a policy.
        name: of the task, for titles.
    """
    full = task(Full())
    by_share = {share: task(evicted(share)) for share in SHARES}
    by_core = {core: {interval: task(cored(core, interval)) for interval in INTERVALS} for core in CORES}
    fewest, most = INTERVALS[0], INTERVALS[-1]
    cells = [(by_core[core][interval], by_share[core]) for core in CORES for interval in INTERVALS]
    data = {
        "task": name,
        "full": _plain(full, full),
        "S": {share: _plain(row, full) for share, row in by_share.items()},
        "C": {core: {interval: _plain(row, full) for interval, row in rows.items()} for core, rows in by_core.items()},
        "samples": len(_pooled(full)),
    }
    statements = (
        _change("9", "Storing 40 % of the image tokens loses nothing.", ">=", -NOTHING, NOTHING_FROM, by_share[40], full),
        _change("9", "Storing 20 % loses at most 3 %.", ">=", -3, "the paper's number", by_share[20], full),
        _said(
            "9",
            "Reading only a core of what is stored is better than evicting the rest.",
            f"score with S={STORED} and C of {_list(CORES)} minus score with S of {_list(CORES)}, in % of full attention's, mean over "
            f"these and K of {_list(INTERVALS)}",
            ">",
            0,
            "it is better",
            full,
            cells,
        ),
        _said(
            "9",
            "Choosing the core anew more often is better.",
            f"score with K={fewest} minus score with K={most}, in % of full attention's, mean over C of {_list(CORES)}, S={STORED}",
            ">",
            0,
            "it is better",
            full,
            [(by_core[core][fewest], by_core[core][most]) for core in CORES],
        ),
    )

    def draw(path: Path, title: str, description: str) -> Path:
        with charts.figure(12.4, 5.0, 2) as (figure, (left, right)):
            _lines(left, {100: full, **by_share}, full, "S: image tokens stored in %")
            right.axhline(
                _score(by_share[STORED], full), color=charts.INK, linestyle="--", linewidth=1.5, label=f"S={STORED}, all of it read"
            )
            for place, core in enumerate(CORES):
                look, scores = charts.style(place), [_score(row, full) for row in by_core[core].values()]
                right.plot(range(len(INTERVALS)), scores, **look, label=f"S={STORED}, C={core} read")
                right.axhline(
                    _score(by_share[core], full), color=look["color"], linestyle=":", linewidth=1.8, label=f"S={core}, all of it read"
                )
            right.set(xlabel="K: steps from one update of the core to the next")
            right.set_xticks(range(len(INTERVALS)), [str(interval) for interval in INTERVALS])
            bottom, top = right.get_ylim()
            right.set_ylim(bottom, top + 0.35 * (top - bottom))  # room for the legend
            right.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper center")
            left.set_title("S: what is stored is read", fontsize=11)
            right.set_title("C and K: a core is read, or the rest evicted", fontsize=11)
            figure.suptitle(title, x=0.012, ha="left", fontsize=12)
            charts.legend(figure, left)
            return charts.save_svg(figure, path, title, description)

    return Figure(
        "9",
        f"Score over S, C and K: {name}, {data['samples']} samples",
        "Left: the score over the share of image tokens stored, by task and all samples with a 95 % interval. Right: over K, for cores of "
        f"{_list(CORES)} % within {STORED} % stored, beside storing no more than the core. In percent of full attention's score.",
        data,
        statements,
        draw,
    )


def figure_10(task: Task, name: str) -> Figure:
    """Return Figure 10: scores over P, and over T, each alone; measured now where the task has not measured them before.

    Args:
        task: scores a policy.
        name: of the task, for titles.
    """
    full = task(Full())
    by_prompt = {share: task(pruned(share)) for share in PRUNED}
    by_window = {share: task(windowed(share)) for share in WINDOWS}
    data = {
        "task": name,
        "full": _plain(full, full),
        "P": {share: _plain(row, full) for share, row in by_prompt.items()},
        "T": {share: _plain(row, full) for share, row in by_window.items()},
        "samples": len(_pooled(full)),
    }
    statements = (
        _change("10", "Keeping 60 % of the text cache (T) leaves the score stable.", ">=", -NOTHING, NOTHING_FROM, by_window[60], full),
        _change(
            "10", "Keeping under 80 % of the prompt's image tokens (P) lowers the score.", "<", -NOTHING, NOTHING_FROM, by_prompt[70], full
        ),
        _change(
            "10", "Keeping 80 % of the prompt's image tokens (P) does not lower it.", ">=", -NOTHING, NOTHING_FROM, by_prompt[80], full
        ),
    )

    def draw(path: Path, title: str, description: str) -> Path:
        with charts.figure(12.4, 5.0, 2) as (figure, (left, right)):
            _lines(left, {100: full, **by_prompt}, full, "P: image tokens kept in the prompt in %")
            _lines(right, {100: full, **by_window}, full, "T: text window in % of prompt text and longest answer")
            low, high = (choose(one.get_ylim()[end] for one in (left, right)) for end, choose in enumerate((min, max)))
            for panel in (left, right):
                panel.set_ylim(low, high)
            figure.suptitle(title, x=0.012, ha="left", fontsize=12)
            charts.legend(figure, left)
            return charts.save_svg(figure, path, title, description)

    return Figure(
        "10",
        f"Score over P and T: {name}, {data['samples']} samples",
        "The score over the share of image tokens that the prompt keeps (left) and over the text window (right), nothing else on, by task "
        "and all samples with a 95 % interval. In percent of full attention's score.",
        data,
        statements,
        draw,
    )


def _pooled(row: Row) -> list[float]:
    """Return the scores of all samples, the tasks one after the other."""
    return [point for points in row.points.values() for point in points]


def _score(row: Row, full: Row) -> float:
    """Return the mean over all samples, in percent of full attention's."""
    return float(100 * np.mean(_pooled(row)) / _base(full))


def _base(full: Row) -> float:
    mean = float(np.mean(_pooled(full)))
    if mean <= 0:
        raise CannotMakeError(
            "full attention scores 0 on this task, so that no setting can lose anything: use a task that the model can do"
        )
    return mean


def _said(
    figure: str, claim: str, quantity: str, sign: Any, limit: float, limit_from: str, full: Row, pairs: Sequence[tuple[Row, Row]]
) -> Statement:
    """Return a statement on the mean difference of pairs of rows: each sample's, in percent of full attention's mean score."""
    differences = np.mean([np.subtract(_pooled(one), _pooled(other)) for one, other in pairs], axis=0) * 100 / _base(full)
    return Statement(figure, claim, quantity, sign, limit, limit_from, "%", "samples", tuple(differences.tolist()), statistic="mean")


def _change(figure: str, claim: str, sign: Any, limit: float, limit_from: str, row: Row, full: Row) -> Statement:
    """Return a statement on the change of the score by one policy; nothing is said of one that evicts nothing on this task."""
    quantity = f"change of the score by {row.policy}, which stores {row.stored:.2%} of a full cache here".replace("%", " %")
    made = _said(figure, claim, quantity, sign, limit, limit_from, full, [(row, full)])
    if row.stored < 1:
        return made
    return replace(made, values=(), missing=f"{row.policy} evicts nothing on this task, whose answers are too short for it")


def _plain(row: Row, full: Row) -> dict[str, Any]:
    """Return a row as plain values: scores by task and of all, the interval of the difference to full attention, what is held and read."""
    low, high = paired(_pooled(row), _pooled(full))
    base = _base(full)
    return {
        "policy": row.policy,
        "scores": {task: round(value, 4) for task, value in row.scores.items()},
        "percent_of_full": round(_score(row, full), 2),
        "difference_percent": [round(100 * low / base, 2), round(100 * high / base, 2)],
        "stored": row.stored,
        "read": row.read,
        "date": row.date,
    }


def _lines(panel: Any, rows: dict[int, Row], full: Row, label: str) -> None:
    """Draw each task and all samples over a parameter, in percent of full attention's score."""
    places = sorted(rows)
    base = full.scores
    for place, task in enumerate(name for name, value in base.items() if value > 0):
        values = [100 * rows[x].scores[task] / base[task] for x in places]
        panel.plot(places, values, **charts.style(place) | {"linewidth": 1.3, "markersize": 5, "linestyle": "--"}, label=task)
    middle = [_score(rows[x], full) for x in places]
    ends = [paired(_pooled(rows[x]), _pooled(full)) for x in places]
    whiskers = [
        [m - 100 - 100 * low / _base(full), 100 + 100 * high / _base(full) - m] for m, (low, high) in zip(middle, ends, strict=True)
    ]
    panel.errorbar(
        places,
        middle,
        yerr=np.clip(np.array(whiskers).T, 0, None),
        color=charts.INK,
        marker="o",
        linewidth=2.4,
        elinewidth=1.3,
        label="all samples",
    )
    panel.axhline(100, color=charts.GRAY, linestyle=":", linewidth=1.2)
    panel.set(xlabel=label, ylabel="score in % of full attention's", xlim=(0, 104))


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
