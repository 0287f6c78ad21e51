"""What was measured: one row a policy, kept in a file after every row, so that an interrupted command goes on where it stopped."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avl._files import write_whole
from avl.policies import Policy

DRAWS = 10_000


@dataclass(frozen=True)
class Row:
    """One policy's answers, scored.

    Attributes:
        policy: its label.
        parameters: its name and parameters.
        points: task -> the score of each sample, 0 to 1 in at most four decimals, in the samples' order. Of conversations, by turn.
        stored: share of a full cache that is stored, averaged over decode steps.
        read: share of a full cache that is read, likewise.
        seconds: how long it took.
        date: of the measurement.
        more: further figures, plain values by name.
    """

    policy: str
    parameters: dict[str, Any]
    points: dict[str, tuple[float, ...]]
    stored: float
    read: float
    seconds: float
    date: str
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """Task -> mean score."""
        return {task: sum(points) / len(points) for task, points in self.points.items() if points}

    def kept(self, full: Row) -> dict[str, float]:
        """Return which share of full attention's score is kept, by task."""
        base = full.scores
        return {task: value / base[task] if base[task] else 0.0 for task, value in self.scores.items()}

    def interval(self, full: Row) -> dict[str, tuple[float, float]]:
        """Return the 95 % interval of the difference to full attention by task, from a paired bootstrap over the samples."""
        return {task: paired(self.points[task], full.points[task]) for task in self.scores}


def paired(points: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference of the same samples' scores, from a paired bootstrap."""
    difference = np.subtract(points, others)
    drawn = np.random.default_rng(0).integers(len(difference), size=(DRAWS, len(difference)))
    low, high = np.quantile(difference[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def today() -> str:
    """Return the date of a row measured now."""
    return datetime.date.today().isoformat()


class Rows:
    """The rows of one set of questions, in a file if there is one.

    Args:
        made: what rows of one file have in common: model, samples, seed and the like.
        machine: hardware and versions; rows of another torch or transformers are not mixed in.
        file: where to keep them; what it holds is not measured again. None keeps nothing.

    Raises:
        ValueError: the file holds something else, or rows made otherwise; says what differs.
        OSError: it cannot be read.
    """

    def __init__(self, made: dict[str, Any], machine: dict[str, Any], file: Path | None = None) -> None:
        self._made, self._machine, self._file = made, machine, file
        self._rows: list[Row] = []
        self.notes: dict[str, Any] = {}
        if file is not None and file.exists():
            self._load(file)

    def _load(self, file: Path) -> None:
        advice = "name another file, or move this one away"
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            differ = [
                f"{key} {there.get(key)!r}, not {here[key]!r}"
                for there, here, keys in (
                    (held, self._made, tuple(self._made)),
                    (held["machine"], self._machine, ("torch", "transformers")),
                )
                for key in keys
                if there.get(key) != here.get(key)
            ]
            rows = [_row(one) for one in held["results"]] if not differ else []
            self.notes = held.get("notes", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{file} holds no rows of this command: {advice}") from None
        if differ:
            raise ValueError(f"{file} holds rows made with {'; '.join(differ)}: {advice}")
        self._rows = rows

    def find(self, policy: Policy) -> Row | None:
        """Return the row of a policy, None where it has not been measured."""
        return next((row for row in self._rows if row.parameters == policy.to_dict()), None)

    def add(self, row: Row) -> None:
        """Take a row, and write the file."""
        self._rows.append(row)
        self.write()

    def record(self) -> dict[str, Any]:
        """Return everything as plain values; scores, kept and difference follow from the points and are there to be read."""
        full = next((row for row in self._rows if row.parameters["name"] == "Full"), None)
        return {"machine": self._machine, **self._made, "notes": self.notes, "results": [_plain(row, full) for row in self._rows]}

    def write(self) -> None:
        """Write the file, whole or not at all."""
        if self._file is None:
            return
        write_whole(self._file, json.dumps(self.record(), indent=1) + "\n")


def _plain(row: Row, full: Row | None) -> dict[str, Any]:
    plain: dict[str, Any] = {"policy": row.policy, "parameters": row.parameters, "date": row.date}
    plain["scores"] = {task: round(value, 4) for task, value in row.scores.items()}
    if full is not None:
        plain["kept"] = {task: round(value, 4) for task, value in row.kept(full).items()}
        plain["difference"] = {task: " to ".join(f"{end:+.4f}" for end in ends) for task, ends in row.interval(full).items()}
    plain |= {"stored": row.stored, "read": row.read, "seconds": row.seconds, **({"more": row.more} if row.more else {})}
    return plain | {"points": {task: " ".join(f"{point:.4g}" for point in points) for task, points in row.points.items()}}


def _row(plain: dict[str, Any]) -> Row:
    points = {task: tuple(map(float, text.split())) for task, text in plain["points"].items()}
    stored, read, seconds = (float(plain[key]) for key in ("stored", "read", "seconds"))
    return Row(plain["policy"], dict(plain["parameters"]), points, stored, read, seconds, plain["date"], plain.get("more", {}))


def table(rows: Sequence[Row], full: Row) -> str:
    """Return rows as lines of text: for each task the score, the share kept and the 95 % interval of the difference to full attention."""
    tasks = list(full.scores)
    heads = "".join(f"{task:>10}{'kept':>8}{'difference':>16}" for task in tasks)
    lines = [f"{'policy':46}{heads}{'stored':>9}{'read':>8}"]
    for row in rows:
        scores, kept, ends = row.scores, row.kept(full), row.interval(full)
        cells = "".join(f"{scores[t]:10.1%}{kept[t]:8.1%}{f'{100 * ends[t][0]:+.1f} to {100 * ends[t][1]:+.1f}':>16}" for t in tasks)
        lines.append(f"{row.policy:46}{cells}{row.stored:9.1%}{row.read:8.1%}")
    return "\n".join(lines)
