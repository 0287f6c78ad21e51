"""Answers kept one by one: an interrupted evaluation asks only for what is missing, and never mixes settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import avl
from avl.evaluation.bundled import Bundled
from avl.evaluation.cells import Answer, Cells
from avl.policies import AVL, Full, Policy

MADE = {"model": "toy", "torch": "1"}


class Echo:
    """A task whose answers are the numbers; even ones are right. Notes what it was asked."""

    name = "echo"

    def __init__(self, size: int = 7, fails_at: int | None = None, **made: Any) -> None:
        self.size, self.made, self.asked, self.fails_at = size, made, [], fails_at  # type: ignore[var-annotated]

    def ask(self, policy: Policy, numbers: Sequence[int]) -> list[Answer]:
        if self.fails_at in numbers:
            raise KeyboardInterrupt
        self.asked += numbers
        return [Answer(number, f"“{number}”\n", 1.0, 0.5, 2.0, 0.1) for number in numbers]

    def scores(self, texts: Mapping[int, str]) -> dict[int, float]:
        assert all(text == f"“{number}”\n" for number, text in texts.items())
        return {number: float(number % 2 == 0) for number in texts}


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        Cells(tmp_path, MADE).fill(Full(), Echo(fails_at=5), every=2)
    again = Echo()
    row = Cells(tmp_path, MADE).row(Full(), again)
    assert again.asked == [4, 5, 6]
    assert row.points == {"echo": (1, 0, 1, 0, 1, 0, 1)}
    assert (row.stored, row.read, row.seconds) == (0.5, 0.25, 0.7)


def test_a_torn_line_is_asked_for_again(tmp_path: Path):
    Cells(tmp_path, MADE).fill(Full(), Echo(), every=2)
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-9])
    again = Echo()
    Cells(tmp_path, MADE).fill(Full(), again)
    assert again.asked == [6]
    assert sorted(Cells(tmp_path, MADE).cell(Full(), Echo()).answers) == list(range(7))


def test_a_damaged_file_is_refused(tmp_path: Path):
    Cells(tmp_path, MADE).fill(Full(), Echo())
    (file,) = tmp_path.rglob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "{]\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"echo/.*jsonl is damaged: delete it"):
        Cells(tmp_path, MADE).cell(Full(), Echo())


@pytest.mark.parametrize(
    ("made", "policy", "asked"),
    [({**MADE, "torch": "2"}, Full(), {}), (MADE, AVL(S=40), {}), (MADE, Full(), {"seed": 1})],
    ids=["other-torch", "other-policy", "other-questions"],
)
def test_cells_of_other_settings_stand_beside_it(tmp_path: Path, made: dict[str, str], policy: Policy, asked: dict[str, int]):
    Cells(tmp_path, MADE).fill(Full(), Echo())
    other = Echo(**asked)
    Cells(tmp_path, made).fill(policy, other)
    assert other.asked == list(range(7))
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2


def test_processes_fill_one_cell_together(tmp_path: Path):
    for part in (0, 1):
        Cells(tmp_path, MADE, part).fill(Full(), Echo(), range(part, 7, 2))
    cells = Cells(tmp_path, MADE)
    again = Echo()
    assert cells.row(Full(), again).points["echo"] == (1, 0, 1, 0, 1, 0, 1)
    assert again.asked == []


def test_a_subset_is_a_row_of_its_own(tmp_path: Path):
    cells, task = Cells(tmp_path, MADE), Echo()
    assert cells.row(Full(), task, [6, 1]).points["echo"] == (0, 1)
    cells.row(Full(), task)
    assert sorted(task.asked) == list(range(7))


def test_the_bundled_models_questions():
    model, processor = avl.load("tiny", device="cpu")
    avl.attach(model)
    task = Bundled(model, processor, "qa", 5, batch=2)
    row = Cells(None, MADE).row(AVL(S=40, C=20), task)
    assert len(row.points["qa"]) == 5
    assert 0.3 < row.stored < 0.9
    assert 0.1 < row.read < row.stored
    assert json.dumps(dict(task.made))
    with pytest.raises(ValueError, match="no task is called 'docvqa': choose from qa, read, describe"):
        Bundled(model, processor, "docvqa", 5)
