"""Rows in a file: taken up again as they were, and never mixed with others."""

import json

import numpy as np
import pytest

import avl
from avl.evaluation.rows import Row, Rows, table

MADE = {"model": "tiny", "samples": 4}
MACHINE = {"torch": "1", "transformers": "2", "cpu": "a"}


def row(policy, describe, qa=(1.0, 0.0)):
    return Row(policy.label, policy.to_dict(), {"qa": tuple(qa), "describe": tuple(describe)}, 0.5, 0.25, 1.0, "2026-01-01")


FULL, SPREAD = row(avl.Full(), (1.0, 0.75)), row(avl.AVL(S=45, spread=33), (0.5, 0.625))


def test_rows_come_back_as_they_were(tmp_path):
    file = tmp_path / "new" / "rows.json"
    rows = Rows(MADE, MACHINE, file)
    rows.add(FULL)
    rows.notes["left out"] = {"FastV": "why"}
    rows.add(SPREAD)
    again = Rows(MADE, MACHINE | {"cpu": "b"}, file)
    assert again.find(avl.AVL(S=45, spread=33)) == SPREAD
    assert again.find(avl.Full()) == FULL
    assert again.find(avl.AVL(S=45)) is None
    assert again.record()["results"] == rows.record()["results"]
    assert again.notes == rows.notes
    assert [one.name for one in file.parent.iterdir()] == ["rows.json"]


@pytest.mark.parametrize(
    ("made", "machine", "said"),
    [
        (MADE | {"samples": 5}, MACHINE, "samples 4, not 5"),
        (MADE | {"seed": 1}, MACHINE, "seed None, not 1"),
        (MADE, MACHINE | {"torch": "3"}, "torch '1', not '3'"),
    ],
)
def test_rows_made_otherwise_are_refused_and_stay(tmp_path, made, machine, said):
    file = tmp_path / "rows.json"
    Rows(MADE, MACHINE, file).add(FULL)
    held = file.read_bytes()
    with pytest.raises(ValueError, match=f"holds rows made with {said}: name another file"):
        Rows(made, machine, file)
    assert file.read_bytes() == held


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"machine": 1}', '{"machine": {"torch": "1", "transformers": "2"}, "results": 3}']
)
def test_a_file_of_anything_else_is_refused_in_a_sentence(tmp_path, text):
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="holds"):
        Rows(MADE, MACHINE, file)
    assert file.read_text() == text


def test_a_cut_row_is_refused(tmp_path):
    file = tmp_path / "rows.json"
    Rows(MADE, MACHINE, file).add(FULL)
    record = json.loads(file.read_text())
    del record["results"][0]["points"]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="holds no rows of this command"):
        Rows(MADE, MACHINE, file)


def test_the_interval_is_paired():
    """Differences that are the same for all samples leave no doubt, however far the samples are apart."""
    scores = np.linspace(0.2, 1, 50)
    full, less = row(avl.Full(), scores), row(avl.AVL(S=45), scores - 0.1)
    assert less.interval(full)["describe"] == pytest.approx((-0.1, -0.1))
    mixed = row(avl.AVL(S=45), scores - np.tile((0.0, 0.2), 25))
    low, high = mixed.interval(full)["describe"]
    assert -0.135 < low < -0.1 < high < -0.065
    assert full.interval(full)["qa"] == (0.0, 0.0)


def test_shares_kept_and_the_table_follow_from_the_points():
    assert SPREAD.scores == {"qa": 0.5, "describe": 0.5625}
    assert SPREAD.kept(FULL) == {"qa": 1.0, "describe": pytest.approx(0.5625 / 0.875)}
    lines = table([FULL, SPREAD], FULL).splitlines()
    assert [len(line) for line in lines] == [len(lines[0])] * 3
    assert "56.2%" in lines[2]
    assert "64.3%" in lines[2]
    assert "-50.0 to -12.5" in lines[2]
