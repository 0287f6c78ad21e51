"""A table from beginning to end: data, model, cells, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl.attention.attachment import attach
from avl.evaluation.cells import Cells, identity
from avl.evaluation.paper import report
from avl.evaluation.paper.evaluator import VERSION
from avl.evaluation.paper.filling import Place, check_fresh, filled, places
from avl.evaluation.paper.methods import Method
from avl.evaluation.paper.processes import Processes
from avl.evaluation.paper.published import SCALE, paper_model
from avl.evaluation.paper.tasks import LmmsTask, data
from avl.evaluation.rows import Row
from avl.telemetry import machine_card


@dataclass(frozen=True)
class Table:
    """What is to be measured.

    Attributes:
        model: its name, as the user wrote it.
        asked: names of tables and policies, as the user wrote them.
        methods: the rows.
        tasks: names of lmms-eval's tasks.
        include: a folder with further task files.
        limit: the first so many documents of each task; None for all.
        batch: documents at a time.
        max_new_tokens: most tokens of an answer where a task sets none.
    """

    model: str
    asked: Sequence[str]
    methods: Sequence[Method]
    tasks: Sequence[str]
    include: Path | None
    limit: int | None
    batch: int
    max_new_tokens: int


def measure(
    table: Table,
    load: Callable[[], tuple[Any, Any]],
    out: Path,
    processes: Processes,
    resume: bool,
    say: Callable[[str], None],
    tell: Callable[[Place, int, int], None],
) -> dict[str, Any] | None:
    """Fill a table's cells, and write the report after each.

    Args:
        table: what is to be measured.
        load: gives model and processor.
        out: where answers and the report are written.
        processes: all that fill the cells together.
        resume: go on with answers that are there.
        say: takes a line for each cell that is complete, in the main process.
        tell: takes a cell, how many of this process's documents are answered, and how many there are.

    Returns:
        The report's record in the main process, None in others.

    Raises:
        ValueError: a task or a document cannot be asked, or the folder holds answers and ``resume`` is false.
        OSError: data, model or a package are not there, or nothing can be written.
    """
    # what cannot be had is known before a large model is loaded
    held = processes.fetched(lambda: {name: data(name, table.include) for name in table.tasks})
    model, processor = load()
    attach(model)
    tasks = [LmmsTask(held[name], name, model, processor, table.limit, table.batch, table.max_new_tokens) for name in table.tasks]
    made = identity(table.model, model)
    cells = Cells(out / "answers", made, processes.rank)
    asked = places(table.methods, tasks)
    if not resume:
        check_fresh(cells, asked, processes)
    facts = {**made, "evaluator": f"lmms-eval {VERSION}", "asked": list(table.asked), "paper_model": paper_model(table.model)}
    facts |= {"processes": processes.world, "batch": table.batch, "machine": machine_card()}
    conditions = {
        task.name: {**task.made, "metric": task.metric, "n": task.size, "of": task.of, "first prompt": task.prompt()} for task in tasks
    }
    rows: list[tuple[Place, Row]] = []
    found = None
    for place, row in filled(cells, asked, processes, table.batch, tell):
        if row is None:
            continue
        rows.append((place, row))
        found = report.record(facts, conditions, rows, asked)
        report.write(found, out)
        say(f"{place.task.name}  {row.policy}  {SCALE * row.scores[place.task.name]:.2f}  stored {row.stored:.1%}, read {row.read:.1%}")
    return found
