"""``avl leaderboard``: every policy with a budget at each stored share, task by task; the form of kvpress' leaderboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from avl.evaluation.cells import Cells, Task
from avl.evaluation.kept import kept_interval
from avl.evaluation.rows import Row
from avl.evaluation.sweep import adaptive, curve
from avl.policies import AVL, POLICIES, Full, Policy, cli_name, parse_policy
from avl.policies.equal_memory import Workload, at_share

SHARES = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
"""Stored shares of a full cache, in %."""
SPREADS = (67.0,)
"""Shares of S that are spread, in %."""


@runtime_checkable
class Sized(Task, Protocol):
    """A task whose decode steps are known before it runs."""

    def steps(self, numbers: Sequence[int]) -> Workload:
        """Return the decode steps of right answers to these samples."""
        ...


@dataclass
class Board:
    """What was measured of one task.

    Attributes:
        full: full attention's row.
        curves: name of a curve -> (stored share that was asked for, its row), by rising share.
        left_out: why a policy has no point at a share.
    """

    full: Row
    curves: dict[str, list[tuple[float, Row]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, list[Row]]:
        """The rows as ``sweep.plot`` takes them."""
        return {"Full": [self.full], **{name: [row for _, row in points] for name, points in self.curves.items()}}

    def record(self) -> dict[str, Any]:
        """Return the curves as plain values; ``kept`` is the share of full attention's score with its paired 95 % interval."""
        ((task, points),) = self.full.points.items()
        curves = {
            name: [
                {
                    "asked": share,
                    "policy": row.policy,
                    "parameters": row.parameters,
                    "score": round(row.scores[task], 4),
                    "kept": [round(one, 4) for one in (row.kept(self.full)[task], *kept_interval(row.points[task], points))],
                    "stored": row.stored,
                    "read": row.read,
                    "points": " ".join(f"{point:.4g}" for point in row.points[task]),
                }
                for share, row in rows
            ]
            for name, rows in self.curves.items()
        }
        full = {"score": round(self.full.scores[task], 4), "points": " ".join(f"{point:.4g}" for point in points)}
        return {"n": len(points), "full": full, "curves": curves, "left out": self.left_out}


def named(names: Sequence[str] | None, spreads: Sequence[float]) -> dict[str, tuple[Policy, float | None]]:
    """Return the curves: name -> a policy with a budget, and which share of S is spread.

    Args:
        names: registered names of policies; None for all with a budget.
        spreads: shares of S that are spread, in %: a curve each beside A-VL's own.

    Raises:
        ValueError: a policy has no budget, or a spread is out of range.
    """
    found: dict[str, tuple[Policy, float | None]] = {}
    for name in POLICIES if names is None else names:
        policy = parse_policy(cli_name(POLICIES[name]))
        if policy.budget is None:
            if names is not None:
                raise ValueError(f"{policy.title} has no budget to set: it is measured anyway, as what the others are compared with")
            continue
        found[name] = policy, None
        for spread in spreads if name == "AVL" else ():
            adaptive(50, spread)
            found[curve(spread)] = policy, spread
    return found


def check_shares(shares: Sequence[float]) -> None:
    """Raise ValueError where a share (in %) is out of range."""
    for share in shares:
        if not 0 < share <= 100:
            raise ValueError(f"a stored share of {share:g} % is not possible: it is above 0 and at most 100")


def at_stored(policy: Policy, spread: float | None, share: float, steps: Workload) -> Policy:
    """Return a policy that stores a share (0 to 1) of a full cache: A-VL with C two thirds of S and K=3, without P and T.

    Raises:
        ValueError: it cannot store that share.
    """
    if not isinstance(policy, AVL):
        return at_share(policy, share, steps)
    fitted = at_share(AVL(S=100, K=3), share, steps)
    assert isinstance(fitted, AVL)
    if spread is not None and fitted.S == 100:
        raise ValueError("nothing is left to choose at S=100, so nothing to spread")
    return replace(adaptive(fitted.S, spread), S=fitted.S)


def leaderboard(
    cells: Cells,
    task: Task,
    curves: dict[str, tuple[Policy, float | None]],
    shares: Sequence[float] = SHARES,
    say: Callable[[str], None] = print,
) -> Board:
    """Measure each curve at each stored share of one task.

    Args:
        cells: where answers are kept.
        task: all its samples are asked.
        curves: from :func:`named`.
        shares: in % of a full cache, averaged over the decode steps of right answers.
        say: takes a line for each point.

    Raises:
        ValueError: the task does not know its decode steps, or a share is out of range.
    """
    check_shares(shares)
    if not isinstance(task, Sized):
        raise ValueError(f"{task.name} does not know its answers' lengths, so no policy can be set to a stored share: use avl tune there")
    steps = task.steps(range(task.size))
    board = Board(cells.row(Full(), task))
    for share in sorted(shares):
        for name, (policy, spread) in curves.items():
            try:
                chosen = at_stored(policy, spread, share / 100, steps)
            except ValueError as error:
                board.left_out[f"{name} at {share:g} %"] = str(error)
                continue
            row = cells.row(chosen, task)
            board.curves.setdefault(name, []).append((share, row))
            say(f"{task.name:10} {row.policy:46} stored {row.stored:6.1%} read {row.read:6.1%} score {row.scores[task.name]:6.1%}")
    return board
