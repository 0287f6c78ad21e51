"""A matrix of settings and tasks: what was tuned on one, measured on the others, on samples that chose nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from known_task import Known

from avl import cli
from avl.evaluation.cells import Cells
from avl.evaluation.transfer import transfer
from avl.policies import AVL, Full


def used(policy: AVL) -> tuple[float, float]:
    return policy.S / 100, policy.S / 200


SETTINGS = {"tuned on easy": AVL(S=20), "tuned on hard": AVL(S=60)}


def tasks() -> dict[str, Known]:
    return {
        "easy": Known(lambda policy: 1.0, used, size=100, name="easy"),
        "hard": Known(lambda policy: policy.S / 60, used, size=100, name="hard"),
    }


def test_each_setting_is_measured_on_each_task():
    asked = tasks()
    lines: list[str] = []
    samples = {name: (task, range(40, 100)) for name, task in asked.items()}
    matrix = transfer(Cells(None, {}), SETTINGS, samples, lines.append)
    assert matrix.full == {"easy": 1, "hard": 1}
    found = {origin: {name: one.kept for name, one in row.items()} for origin, row in matrix.found.items()}
    luck = asked["hard"]._luck[40:]
    assert found == {
        "tuned on easy": {"easy": 1, "hard": pytest.approx((luck < 1 / 3).mean())},
        "tuned on hard": {"easy": 1, "hard": 1},
    }
    lost = matrix.found["tuned on easy"]["hard"]
    assert lost.interval[0] < lost.kept < lost.interval[1] < 0.6
    assert (lost.stored, lost.read, lost.n, lost.dropped) == (0.2, 0.1, 60, False)
    assert {number for task in asked.values() for _, number in task.asked} == set(range(40, 100))
    assert len(lines) == 4
    assert json.loads(json.dumps(matrix.record()))["settings"]["tuned on easy"]["hard"]["kept"] == round(lost.kept, 4)
    rows = matrix.table().splitlines()
    assert rows[0] == "| | setting | easy | hard |"
    assert rows[3].startswith("| tuned on hard | A-VL S=60 K=3 | 100.0% (100.0% to 100.0%), stored 60.0%, read 30.0% |")


def test_a_second_matrix_asks_nothing_and_a_further_task_only_itself(tmp_path: Path):
    first = transfer(Cells(tmp_path, {}), SETTINGS, {"easy": (tasks()["easy"], range(50))}, lambda text: None)
    again = tasks()
    samples = {name: (task, range(50)) for name, task in again.items()}
    both = transfer(Cells(tmp_path, {}), SETTINGS, samples, lambda text: None)
    assert again["easy"].asked == []
    assert {policy for policy, _ in again["hard"].asked} == {Full(), *SETTINGS.values()}
    assert {origin: row["easy"] for origin, row in both.found.items()} == {origin: row["easy"] for origin, row in first.found.items()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "qa", "docvqa"], "the bundled model has no task 'docvqa': choose from qa, read, describe"),
        (["--tasks", "qa", "qa"], "the task qa is named twice"),
        (["--tasks", "qa", "--model", "no/such/place"], "qa asks about the scenes of the bundled model: use --model tiny"),
        (["--policies", "avl:S=30", "--grid", "S=20,30"], "--policies are measured as they are, and --grid tunes"),
        (["--policies", "avl:S=300"], "S=300 is out of range"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_loads(options: list[str], said: str, capsys):
    assert cli.main(["transfer", "--device", "cuda:99", *options]) == 1
    assert said in capsys.readouterr().err


def test_tuning_and_transfer_of_the_bundled_model_share_their_answers(tmp_path: Path, capsys):
    """From end to end on a few samples: tune one task, then the matrix of two, which finds the first task's answers."""
    common = ["--grid", "S=30,60 C=20", "--samples", "2", "--confirm", "2", "--every", "2", "--keep", "50", "--device", "cpu"]
    common += ["--cells", str(tmp_path / "cells")]
    assert cli.main(["tune", "--task", "qa", *common, "--out", str(tmp_path / "tune.json")]) == 0
    said = capsys.readouterr().out
    assert "2 settings in the first stage; 0 left out with C or spread above S, 0 like another one" in said
    assert "avl compare PICTURE" in said
    tuned = json.loads((tmp_path / "tune.json").read_text())
    chosen = tuned["chosen"]
    assert chosen["policy"] in ("A-VL S=30 C=20 K=3", "A-VL S=60 C=20 K=3")
    assert (chosen["n"], chosen["on fresh samples"]["n"]) == (2, 2)
    assert 0.25 < chosen["stored"] < 0.7
    assert chosen["read"] < chosen["stored"]
    assert tuned["machine"]["torch"]
    assert (tmp_path / "tune.png").stat().st_size > 2000

    files = {file: file.read_bytes() for file in (tmp_path / "cells" / "qa").iterdir()}
    assert cli.main(["transfer", "--tasks", "qa", "read", *common, "--out", str(tmp_path / "matrix.json")]) == 0
    matrix = json.loads((tmp_path / "matrix.json").read_text())
    assert all(file.read_bytes() == held for file, held in files.items() if "S=30" in file.name or "Full" in file.name)
    assert matrix["tuned"]["qa"]["chosen"]["policy"] == chosen["policy"]
    assert matrix["settings"]["tuned on qa"]["qa"]["kept"] == chosen["on fresh samples"]["kept"]
    assert set(matrix["settings"]["tuned on qa"]) == {"qa", "read"}
