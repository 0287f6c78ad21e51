"""Policies over the stored share: each stores what was asked for, or is left out with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from known_task import Known

from avl import cli
from avl.evaluation.cells import Cells
from avl.evaluation.leaderboard import at_stored, leaderboard, named
from avl.policies import AVL, POLICIES, PromptShape
from avl.policies.equal_memory import TOLERANCE, answer_steps, stored_share

STEPS = answer_steps(PromptShape(576, 24, 60, 8))


def test_every_policy_with_a_budget_has_a_curve_and_a_vl_one_for_each_spread():
    curves = named(None, [33, 67])
    assert list(curves) == ["AVL", "A-VL, 33 % of S spread", "A-VL, 67 % of S spread", *(n for n in POLICIES if n not in ("Full", "AVL"))]
    assert list(named(["H2O"], [33])) == ["H2O"]
    with pytest.raises(ValueError, match="Full attention has no budget to set"):
        named(["Full"], [])


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_every_policy_stores_the_share_that_was_asked_for(share: float):
    for name, (policy, spread) in named(None, [67]).items():
        if name == "FastV" and share < 0.4:
            with pytest.raises(ValueError, match="FastV cannot store"):
                at_stored(policy, spread, share, STEPS)
            continue
        fitted = at_stored(policy, spread, share, STEPS)
        assert stored_share(fitted, STEPS) == pytest.approx(share, abs=TOLERANCE)
        if isinstance(fitted, AVL):
            assert pytest.approx(2 / 3 * fitted.S, abs=0.01) == fitted.C
            assert (fitted.spread is None) == (name == "AVL")


def test_a_task_that_does_not_know_its_steps_is_refused():
    with pytest.raises(ValueError, match="known does not know its answers' lengths"):
        leaderboard(Cells(None, {}), Known(lambda policy: 1, lambda policy: (1, 1)), named(["H2O"], []), [50])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stored", "0"], "a stored share of 0 % is not possible"),
        (["--stored", "101"], "a stored share of 101 % is not possible"),
        (["--policies", "full"], "Full attention has no budget to set"),
        (["--spreads", "120"], "spread 120 is out of range"),
        (["--tasks", "docvqa"], "the bundled model has no task 'docvqa'"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_loads(options: list[str], said: str, capsys):
    assert cli.main(["leaderboard", "--device", "cuda:99", *options]) == 1
    assert said in capsys.readouterr().err


def test_a_board_of_the_bundled_model(tmp_path: Path, capsys):
    command = ["leaderboard", "--tasks", "qa", "read", "--policies", "avl", "fastv", "--stored", "20", "100", "--samples", "2"]
    out = tmp_path / "board.json"
    assert cli.main([*command, "--device", "cpu", "--cells", str(tmp_path / "cells"), "--out", str(out)]) == 0
    board = json.loads(out.read_text())
    assert board == json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for task in ("qa", "read"):
        found = board["tasks"][task]
        assert {name: [one["asked"] for one in points] for name, points in found["curves"].items()} == {
            "AVL": [20, 100],
            "A-VL, 67 % of S spread": [20],
            "FastV": [100],
        }
        assert set(found["left out"]) == {"FastV at 20 %", "A-VL, 67 % of S spread at 100 %"}
        assert found["curves"]["AVL"][0]["stored"] == pytest.approx(0.2, abs=0.01)
        assert found["curves"]["AVL"][1]["score"] == found["full"]["score"]
    assert out.with_suffix(".png").stat().st_size > 2000
