"""``avl transfer``: what a setting that was tuned on one task keeps on the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avl.evaluation.cells import Cells, Task
from avl.evaluation.tune.report import plain
from avl.evaluation.tune.search import Tried, compared, line
from avl.policies import Full, Policy


@dataclass(frozen=True)
class Matrix:
    """Settings by tasks.

    Attributes:
        full: task -> full attention's score there.
        found: where a setting comes from -> task -> its result there.
    """

    full: dict[str, float]
    found: dict[str, dict[str, Tried]]

    def record(self) -> dict[str, Any]:
        """Return everything as plain values."""
        settings = {
            name: {task: {key: value for key, value in plain(one).items() if key not in ("stage", "dropped")} for task, one in row.items()}
            for name, row in self.found.items()
        }
        return {"full": {task: round(score, 4) for task, score in self.full.items()}, "settings": settings}

    def table(self) -> str:
        """Return a Markdown table: a row for each setting, a column for each task with what it keeps, stores and reads."""
        lines = [f"| | setting | {' | '.join(self.full)} |", "|---|---|" + "--:|" * len(self.full)]
        for name, row in self.found.items():
            cells = (
                f"{one.kept:.1%} ({one.interval[0]:.1%} to {one.interval[1]:.1%}), stored {one.stored:.1%}, read {one.read:.1%}"
                for one in row.values()
            )
            lines.append(f"| {name} | {next(iter(row.values())).policy.label} | {' | '.join(cells)} |")
        return "\n".join(lines)


def transfer(
    cells: Cells,
    settings: Mapping[str, Policy],
    tasks: Mapping[str, tuple[Task, Sequence[int]]],
    say: Callable[[str], None] = print,
) -> Matrix:
    """Measure each setting on each task.

    Args:
        cells: where answers are kept.
        settings: where a setting comes from -> the setting.
        tasks: name -> the task, and which of its samples; fresh ones, so that no setting was chosen by them.
        say: takes a line for each measurement.
    """
    full = {name: cells.row(Full(), task, numbers) for name, (task, numbers) in tasks.items()}
    found: dict[str, dict[str, Tried]] = {}
    for origin, policy in settings.items():
        for name, (task, numbers) in tasks.items():
            one = compared(policy, cells.row(policy, task, numbers), full[name], origin)
            found.setdefault(origin, {})[name] = one
            say(f"{name:10} {line(one)}")
    return Matrix({name: row.scores[tasks[name][0].name] for name, row in full.items()}, found)
