"""Cells: one policy's answers to one task, written answer by answer, so that an interrupted evaluation goes on where it stopped.

A folder holds any number of cells, of other models, settings and versions too: a cell is found by everything that its answers depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from avl._compat import commit_hash
from avl.evaluation.rows import Row, today
from avl.policies import Policy
from avl.telemetry import machine_card

EVERY = 50
"""Samples asked at a time: what an interruption costs at most."""


@dataclass(frozen=True)
class Answer:
    """One answer of a cell.

    Attributes:
        number: of the sample in its task.
        text: the answer.
        stored: tokens stored, summed over layers and decode steps; its own, or an even part of its batch's.
        read: tokens read, likewise.
        full: tokens of a full cache, likewise.
        seconds: an even part of its batch's time.
    """

    number: int
    text: str
    stored: float
    read: float
    full: float
    seconds: float


class Task(Protocol):
    """What a cell asks: numbered samples, and how right an answer to each is.

    Attributes:
        name: as tables show it.
        size: samples, numbered 0 to ``size - 1``.
        made: what the questions depend on: data set, revision, seed, prompts, longest answer. Part of a cell's identity.
    """

    name: str
    size: int
    made: Mapping[str, Any]

    def ask(self, policy: Policy, numbers: Sequence[int]) -> list[Answer]:
        """Return the answers to these samples under a policy, in any order."""
        ...

    def scores(self, texts: Mapping[int, str]) -> dict[int, float]:
        """Return number -> score (0 to 1, captions may exceed it) for answers by number. Some metrics depend on all that are given."""
        ...


class Cell:
    """One policy's answers to one task.

    Args:
        folder: where its files go; None keeps it in memory.
        identity: everything that the answers depend on, as plain values.
        name: for people who look at the folder.
        part: of several processes that fill one cell, which file is this one's.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], name: str, part: int = 0) -> None:
        self.identity = json.loads(json.dumps(identity))
        self._answers: dict[int, Answer] = {}
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:12]
        stem = f"{re.sub(r'[^A-Za-z0-9.=]+', '-', name).strip('-')}.{digest}"
        self._file = None if folder is None else folder / f"{stem}.{part}.jsonl"
        self._parts = f"{stem}.*.jsonl"
        self._folder = folder
        self.reread()

    def reread(self) -> None:
        """Take up what all processes have written."""
        for file in sorted(self._folder.glob(self._parts)) if self._folder is not None and self._folder.is_dir() else ():
            for answer in _held(file, self.identity):
                self._answers[answer.number] = answer

    @property
    def answers(self) -> dict[int, Answer]:
        """The answers so far, by number in ascending order."""
        return dict(sorted(self._answers.items()))

    def add(self, answers: Iterable[Answer]) -> None:
        """Take answers, and write them at once.

        Raises:
            OSError: they cannot be written.
        """
        new = list(answers)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self._file)
            begun = self._file.exists() and self._file.stat().st_size > 0
            with self._file.open("a", encoding="utf-8") as out:
                if not begun:
                    out.write(json.dumps({"cell": self.identity}) + "\n")
                out.writelines(json.dumps(asdict(answer)) + "\n" for answer in new)
        self._answers.update((answer.number, answer) for answer in new)

    def take(self, answers: Iterable[Answer]) -> None:
        """Take answers that another process has written where this one need not see it."""
        self._answers.update((answer.number, answer) for answer in answers)

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Return which of the samples have no answer yet."""
        return [number for number in numbers if number not in self._answers]


def _held(file: Path, identity: Any) -> Iterator[Answer]:
    """Yield a part's answers. A last line that an interruption tore is no answer; any other broken line is refused.

    Raises:
        ValueError: the file is damaged, or of another cell.
    """
    lines = file.read_text(encoding="utf-8").split("\n")
    whole = lines[:-1]  # what ends without a line feed was torn
    if not whole:
        return
    try:
        if json.loads(whole[0])["cell"] != identity:
            raise ValueError
        yield from [Answer(**json.loads(line)) for line in whole[1:]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged: delete it, and its answers are asked for again") from None


def _cut_torn_line(file: Path) -> None:
    with contextlib.suppress(FileNotFoundError), file.open("rb+") as held:
        text = held.read()
        held.truncate(text.rfind(b"\n") + 1)


def identity(name: str, model: Any) -> dict[str, Any]:
    """Return what all answers of a model depend on here, for :class:`Cells`: commands with the same model share their cells by it.

    Args:
        name: the model's, as the user wrote it.
        model: as loaded.
    """
    machine = machine_card()
    return {
        "model": name,
        "revision": commit_hash(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "avl": importlib.import_module("avl").__version__,
        "torch": machine["torch"],
        "transformers": machine["transformers"],
    }


class Cells:
    """The cells of one model in a folder.

    Args:
        folder: where they are kept; None keeps them in memory.
        made: what all answers depend on besides policy and task, of :func:`identity`.
        part: of several processes, the number of this one.
    """

    def __init__(self, folder: Path | None, made: Mapping[str, Any], part: int = 0) -> None:
        self.folder, self.made, self.part = folder, dict(made), part
        self._cells: dict[str, Cell] = {}

    def cell(self, policy: Policy, task: Task) -> Cell:
        """Return the cell of a policy and a task, with the answers that it has."""
        identity = {**self.made, "policy": policy.to_dict(), "task": task.name, "asked": dict(task.made)}
        key = json.dumps(identity, sort_keys=True)
        if key not in self._cells:
            folder = None if self.folder is None else self.folder / task.name
            self._cells[key] = Cell(folder, identity, policy.label, self.part)
        return self._cells[key]

    def fill(
        self,
        policy: Policy,
        task: Task,
        numbers: Sequence[int] | None = None,
        every: int = EVERY,
        tell: Callable[[int, int], None] = lambda done, of: None,
    ) -> Cell:
        """Return the cell, after asking whatever of ``numbers`` it lacks.

        Args:
            policy: under which policy to answer.
            task: what is asked.
            numbers: samples; None for all.
            every: samples asked at a time, written after each time.
            tell: takes how many of ``numbers`` are answered, and how many there are.
        """
        cell = self.cell(policy, task)
        wanted = range(task.size) if numbers is None else numbers
        missing = cell.missing(wanted)
        for start in range(0, len(missing), every):
            cell.add(task.ask(policy, missing[start : start + every]))
            tell(len(wanted) - len(missing) + min(start + every, len(missing)), len(wanted))
        return cell

    def row(self, policy: Policy, task: Task, numbers: Sequence[int] | None = None) -> Row:
        """Return a policy's answers to ``numbers`` (None: all) of one task as a row, asking for what is missing."""
        wanted = range(task.size) if numbers is None else numbers
        held = self.fill(policy, task, wanted).answers
        answers = [held[number] for number in sorted(wanted)]
        scores = task.scores({answer.number: answer.text for answer in answers})
        whole = max(1.0, sum(answer.full for answer in answers))
        stored, read = (round(sum(getattr(answer, what) for answer in answers) / whole, 4) for what in ("stored", "read"))
        seconds = round(sum(answer.seconds for answer in answers), 1)
        points = {task.name: tuple(round(scores[answer.number], 4) for answer in answers)}
        return Row(policy.label, policy.to_dict(), points, stored, read, seconds, today())
