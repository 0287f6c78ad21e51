"""Fills the cells of a table: policies × tasks, answer by answer, by one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from avl.evaluation.cells import EVERY, Cells, Task
from avl.evaluation.paper.methods import Method
from avl.evaluation.paper.processes import Processes
from avl.evaluation.rows import Row
from avl.policies import Policy, PromptShape


class Asked(Task, Protocol):
    """A task as a table asks it: ``avl.evaluation.paper.tasks.LmmsTask``."""

    of: int

    def shape(self) -> PromptShape:
        """Return the sizes of its typical prompt."""
        ...


@dataclass(frozen=True)
class Place:
    """A cell of the table: a method's policy for a task, or why there is none."""

    method: Method
    task: Asked
    policy: Policy | None
    left_out: str = ""


def places(methods: Sequence[Method], tasks: Sequence[Asked]) -> list[Place]:
    """Return the cells of a table, task by task; a policy that cannot store what its method asks for is left out, with the reason."""
    found = []
    for task in tasks:
        shape = task.shape() if any(one.share is not None for one in methods) else PromptShape(1, 1, 1, 1)
        for method in methods:
            try:
                found.append(Place(method, task, method.of(task.name, shape)))
            except ValueError as error:
                found.append(Place(method, task, None, str(error)))
    return found


def check_fresh(cells: Cells, asked: Sequence[Place], processes: Processes) -> None:
    """Refuse a folder that holds answers to what is asked.

    Raises:
        ValueError: it does, here or where another process looks.
    """
    held = ((place, len(cells.cell(place.policy, place.task).answers)) for place in asked if place.policy is not None)
    place, count = next(((place, count) for place, count in held if count), (None, 0))
    mine = (
        ""
        if place is None or place.policy is None
        else f"{place.task.name} under {place.policy.label}, {count} of {place.task.size} documents"
    )
    found = next(filter(None, processes.gather(mine)), "")
    if found:
        raise ValueError(f"{cells.folder} holds answers to this already ({found}): go on with --resume, or name another folder with --out")


def filled(
    cells: Cells, asked: Sequence[Place], processes: Processes, batch: int, tell: Callable[[Place, int, int], None]
) -> Iterator[tuple[Place, Row | None]]:
    """Ask what the cells lack, and yield each with its row; the rows are the main process's, others yield None.

    Args:
        cells: where answers are kept, with this process's part.
        asked: the cells.
        processes: all that fill them together. Each asks every so-manieth document, writes its own file, and hears of the others' answers
            after each cell, so that they need no disk in common.
        batch: documents at a time.
        tell: takes a cell, how many of this process's documents are answered, and how many there are.
    """
    for place in asked:
        if place.policy is None:
            continue
        mine = processes.share(range(place.task.size))
        every = max(1, EVERY // batch) * batch

        def report(done: int, of: int, place: Place = place) -> None:
            tell(place, done, of)

        cell = cells.fill(place.policy, place.task, mine, every, report)
        for answers in processes.gather(list(cell.answers.values())):
            cell.take(answers)
        yield place, cells.row(place.policy, place.task) if processes.main else None
