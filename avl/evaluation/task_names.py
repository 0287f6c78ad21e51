"""A task by its name: the bundled model's own questions, or a data set of lmms-eval for any other model."""

from __future__ import annotations

from typing import Any

from avl.evaluation.bundled import Bundled
from avl.evaluation.cells import Task
from avl.evaluation.paper.evaluator import require_evaluator
from avl.evaluation.paper.tasks import lmms_task
from avl.evaluation.tasks import TASKS

BUNDLED = "tiny"
"""Name of the bundled model on command lines."""


def check_tasks(names: list[str], model: str) -> None:
    """Raise ValueError where tasks and model do not go together, before either is loaded.

    Raises:
        ValueError: no task, one twice, one of the bundled model's with another model, or the other way round; says what to do.
        OSError: a data set needs lmms-eval, which is not installed.
    """
    if not names:
        raise ValueError(f"no task is named: choose from {', '.join(TASKS)} with the bundled model, or tasks of lmms-eval with another one")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the task {name} is named twice: name it once")
        if name in TASKS and model != BUNDLED:
            raise ValueError(
                f"{name} asks about the scenes of the bundled model: use --model {BUNDLED}, or a task of lmms-eval with {model}"
            )
        if name not in TASKS and model == BUNDLED:
            raise ValueError(f"the bundled model has no task {name!r}: choose from {', '.join(TASKS)}, or name another --model")
    if not set(names) <= set(TASKS):
        require_evaluator()


def find_task(name: str, loaded: tuple[Any, Any], source: str, size: int, *, seed: int = 0, batch: int = 16) -> Task:
    """Return a task.

    Args:
        name: qa, read or describe for the bundled model; for any other a task of lmms-eval.
        loaded: an attached model and its processor.
        source: the model's name on the command line.
        size: samples at most.
        seed: of the bundled model's scenes; a data set has none.
        batch: samples at a time.

    Raises:
        ValueError: task and model do not go together; says what to do.
        OSError: lmms-eval is needed and not installed.
    """
    check_tasks([name], source)
    if name in TASKS:
        return Bundled(*loaded, name, size, seed, batch)
    return lmms_task(name, *loaded, limit=size, batch=batch)


def with_fresh(
    name: str, loaded: tuple[Any, Any], source: str, samples: int, fresh: int, *, seed: int = 0, batch: int = 16
) -> tuple[tuple[Task, range], tuple[Task, range]]:
    """Return samples to choose by, and others to measure the choice on: of the next seed for the bundled model, later ones of a data set.

    Args:
        name: of the task, as :func:`find_task`.
        loaded: an attached model and its processor.
        source: the model's name on the command line.
        samples: to choose by.
        fresh: others; may be 0.
        seed: of the bundled model's scenes.
        batch: samples at a time.

    Returns:
        A task and its samples, twice.

    Raises:
        ValueError: as :func:`find_task`; or the data set has fewer samples.
    """
    if name in TASKS:
        first = find_task(name, loaded, source, samples, seed=seed, batch=batch)
        again = find_task(name, loaded, source, fresh, seed=seed + 1, batch=batch) if fresh else first
        return (first, range(samples)), (again, range(fresh))
    task = find_task(name, loaded, source, samples + fresh, seed=seed, batch=batch)
    if task.size < samples + fresh:
        raise ValueError(f"{name} has {task.size} samples, fewer than {samples} to choose by and {fresh} to confirm on: ask for fewer")
    return (task, range(samples)), (task, range(samples, samples + fresh))
