"""The tuner finds the best setting of a task whose answers are known, drops what keeps too little, and never asks anything twice."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from known_task import Known
from PIL import Image

from avl import cli
from avl.cli import terminal
from avl.evaluation.cells import Cells
from avl.evaluation.tune.grid import DEFAULT, parse_grid
from avl.evaluation.tune.report import Tuned, compare_line, plain, plot, spec
from avl.evaluation.tune.search import Tried, Tuner, best, front, two_stages
from avl.evaluation.tune.tpe import SHORT, propose, require_optuna, suggest
from avl.policies import AVL, Full, parse_policy

MADE = {"model": "toy"}
GRID = parse_grid(["S=20:60:20 C=10,20,none", "K=3,5 P=80,none T=50,none"])


def kept(policy: AVL) -> float:
    """S=40, C=20 and K=3 are enough, T costs nothing, P costs much; less of S, of C or of updates costs much too."""
    enough = policy.S >= 40 and (policy.C or policy.S) >= 20 and (policy.C is None or policy.K <= 3)
    return (1.0 if enough else 0.7) - (0.3 if policy.P is not None else 0)


def used(policy: AVL) -> tuple[float, float]:
    stored = policy.S / 100 - (0.05 if policy.T else 0)
    return stored, stored - (policy.S - (policy.C or policy.S)) / 100 * (1 - 1 / policy.K)


WANTED = AVL(S=40, C=20, K=3, T=50)


def searched(task: Known, folder: Path | None = None, keep: float = 0.95) -> tuple[Tried | None, Tuner]:
    tuner = Tuner(Cells(folder, MADE), task, range(task.size), keep, say=lambda text: None)
    return two_stages(tuner, GRID), tuner


def test_two_stages_find_the_smallest_setting_that_keeps_enough():
    task = Known(kept, used)
    found, tuner = searched(task)
    assert found is not None
    assert found.policy == WANTED
    assert (found.stored, found.read, found.n, found.kept) == (pytest.approx(0.35), pytest.approx(0.35 - 0.4 / 3, abs=1e-4), 200, 1)
    for one in tuner.tried.values():
        good = kept(one.policy) == 1  # type: ignore[arg-type]
        assert one.dropped is not good, one
        assert one.n == 200 if good else one.n <= 100
    assert {one.stage for one in tuner.tried.values() if one.policy.P or one.policy.T} == {2}  # type: ignore[attr-defined]
    assert [one.policy for one in front(list(tuner.tried.values()))] == [WANTED]


def test_settings_that_cannot_be_or_are_alike_are_left_out_before_anything_runs():
    first, above, alike = GRID.first()
    assert len(first) == len(set(first))
    assert all(policy.C is None or policy.C < policy.S for policy in first)
    assert (len(first), above, alike) == (3 + 5 + 5, 0, 5)  # C=10 and C=20 with two K each, and C off once; at S=20, C=20 is off
    assert parse_grid(["S=10,30 C=20 spread=15,none"]).first()[0] == [AVL(S=30, C=20, spread=15), AVL(S=30, C=20)]
    assert parse_grid(["S=10,30 C=20 spread=15,none"]).first()[1] == 2
    # at K=1 every step is an update, so that C chooses nothing
    assert parse_grid(["S=40 C=10,20 K=1,3"]).first()[0] == [AVL(S=40, K=1), AVL(S=40, C=10), AVL(S=40, C=20)]
    assert len(GRID.second(AVL(S=20))) == 4
    assert set(parse_grid([DEFAULT]).axes) == {"S", "C", "K", "P", "T"}
    assert parse_grid([GRID.text]) == GRID


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("C=10,20", "the grid has no S"),
        ("S=10 C=20,30", "no setting of this grid can be, because C or spread is above S in all of them: S=10 C=20,30"),
        ("S=0:60:20", "S=0 is out of range"),
        ("S=20 C=nan", "C=nan is out of range"),
        ("S=20 K=none", "K=None is out of range"),
        ("S=20 K=2.5", "K=2.5 is out of range"),
        ("S=60:20:10", "the range of S is empty"),
        ("S=20,20", "gives a value of S twice: 20, 20"),
        ("S=20 S=30", "S is swept twice"),
        ("S=20 update=after", "update has a value 'after', which is no number"),
        ("S=20 Z=1", "the grid has 'Z', which cannot be tuned: give values of S, C, K, spread, P, T"),
        ("S=many", "S has a value 'many', which is no number"),
        ("S", "'S' is no range"),
        ("", "the grid has no S"),
    ],
)
def test_a_wrong_grid_is_refused_before_the_model_loads(grid: str, said: str, capsys):
    assert cli.main(["tune", "--task", "qa", "--model", "no/such/place", "--grid", grid]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "0"], "--keep 0 is out of range"),
        (["--keep", "nan"], "--keep nan is out of range"),
        (["--trials", "5"], "--trials belongs to --sampler tpe"),
        (["--model", "no/such/place"], "qa asks about the scenes of the bundled model: use --model tiny"),
    ],
)
def test_wrong_options_are_refused_before_the_model_loads(options: list[str], said: str, capsys):
    assert cli.main(["tune", "--task", "qa", "--device", "cuda:99", *options]) == 1
    assert said in capsys.readouterr().err


def test_it_goes_on_where_it_was_interrupted_and_asks_nothing_twice(tmp_path: Path):
    once = Known(kept, used)
    straight, _ = searched(once, tmp_path / "once")
    broken = Known(kept, used, fails_at=1234)
    with pytest.raises(KeyboardInterrupt):
        searched(broken, tmp_path / "again")
    going_on = Known(kept, used)
    again, _ = searched(going_on, tmp_path / "again")
    assert again == straight
    assert broken.asked + going_on.asked == once.asked
    assert len(set(once.asked)) == len(once.asked)
    third = Known(kept, used)
    assert searched(third, tmp_path / "again")[0] == straight
    assert third.asked == []


def test_where_nothing_keeps_enough_nothing_is_chosen_and_the_nearest_is_named():
    task = Known(lambda policy: 0.7 + policy.S / 1000, used, size=60)
    found, tuner = searched(task, keep=1)
    assert found is None
    assert all(one.stage == 1 for one in tuner.tried.values())
    tuned = Tuned("known", 1, tuner.full, tuple(tuner.tried.values()), found)
    assert "no setting keeps 1 of full attention's score" in tuned.verdict()
    assert tuned.record()["chosen"] is None


def test_a_task_without_a_right_answer_is_refused():
    task = Known(kept, used, size=60)
    task.scores = lambda texts: dict.fromkeys(texts, 0.0)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="full attention scores 0 on 50 samples of known: there is nothing to keep"):
        searched(task)


def tried(score: float, stored: float, read: float, dropped: bool = False, n: int = 100) -> Tried:
    return Tried(AVL(S=100 * stored, C=None, K=round(1000 * read)), 1, n, score, score, (score, score), 1.0, stored, read, dropped)


def test_the_best_stores_least_then_reads_least_and_stored_within_the_tolerance_is_equal():
    small, reads_less, large = tried(0.99, 0.300, 0.30), tried(0.99, 0.302, 0.20), tried(1.0, 0.5, 0.1)
    short, gone = tried(0.98, 0.1, 0.1), tried(1.0, 0.05, 0.05, dropped=True)
    assert best([small, reads_less, large, short, gone], 0.99) == reads_less
    assert best([small, large], 0.99) == small
    assert best([short, gone], 0.99) is None


def test_the_front_is_what_nothing_beats_in_score_stored_and_read():
    cheap, middle, dear = tried(0.8, 0.2, 0.2), tried(0.9, 0.4, 0.3), tried(1.0, 0.6, 0.6)
    reads_less, beaten = tried(0.9, 0.5, 0.2), tried(0.85, 0.4, 0.3)
    gone = tried(1.0, 0.1, 0.1, dropped=True)
    for order in itertools.permutations([cheap, middle, dear, reads_less, beaten, gone]):
        assert front(order) == [cheap, middle, reads_less, dear]


class Study:
    """Stands in for optuna's: proposes at random, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, list[float]]] = []
        self._random = random.Random(0)

    def ask(self) -> Any:
        drawn = self._random

        class Trial:
            short: float | None = None

            def suggest_int(self, name: str, low: int, high: int) -> int:
                return drawn.randint(low, high)

            def set_constraint(self, name: str, value: float) -> None:
                assert name == SHORT
                self.short = value

        return Trial()

    def tell(self, trial: Any, values: list[float]) -> None:
        self.told.append((trial, values))


def test_proposals_are_measured_once_and_the_study_is_told_memory_and_what_is_missing():
    task, study = Known(kept, used, size=100), Study()
    tuner = Tuner(Cells(None, MADE), task, range(100), 0.95, say=lambda text: None)
    found = propose(tuner, GRID, 300, study)
    assert found is not None
    assert found.policy == WANTED
    assert len(study.told) == 300 > len(tuner.tried)
    assert len(set(task.asked)) == len(task.asked)
    by_memory = {(one.stored, one.read): one for one in tuner.tried.values()}
    for trial, (stored, read) in study.told:
        assert (stored, read) in by_memory
        assert trial.short == pytest.approx(-0.05) or trial.short > 0  # keeps everything, or too little


def test_a_proposal_with_c_above_s_is_lowered_to_what_fits():
    class First:
        def suggest_int(self, name: str, low: int, high: int) -> int:
            return low if name == "S" else high - 1

    assert suggest(First(), parse_grid(["S=15,60 C=10,20,none"])) == AVL(S=15, C=10)
    assert suggest(First(), parse_grid(["S=5,60 C=10,20,none spread=50,20,none"])) == AVL(S=5, C=None, spread=None)


def test_without_optuna_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="--sampler tpe needs optuna, which is not installed: pip install 'optuna"):
        require_optuna()
    assert cli.main(["tune", "--task", "qa", "--sampler", "tpe", "--device", "cuda:99"]) == 1
    assert "needs optuna" in capsys.readouterr().err


def test_optunas_own_sampler_finds_it_and_proposes_the_same_again():
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'optuna>=5.0'")
    from avl.evaluation.tune.tpe import new_study

    orders = []
    for _ in range(2):
        tuner = Tuner(Cells(None, MADE), Known(kept, used, size=100), range(100), 0.95, say=lambda text: None)
        found = propose(tuner, GRID, 60, new_study())
        assert found is not None
        assert found.kept == 1
        orders.append(list(tuner.tried))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("policy", [WANTED, AVL(S=45), AVL(S=12.5, C=7, K=5, P=80, T=50, spread=10, update="after")], ids=str)
def test_the_lines_that_use_a_setting_mean_that_setting(policy: AVL, tmp_path: Path, monkeypatch):
    asked: list[Any] = []

    def run(load: Any, request: Any) -> None:
        asked.append(request)
        raise ValueError("enough")

    monkeypatch.setattr(terminal, "run", run)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    words = compare_line(policy).replace("PICTURE", str(tmp_path / "one.png")).replace('"QUESTION"', "What?").split()
    assert cli.main(words[1:]) == 1
    assert asked[0].policies[1] == policy
    assert parse_policy(spec(policy)) == policy


def test_the_picture_and_the_record_hold_what_was_found(tmp_path: Path):
    task, fresh = Known(kept, used), Known(kept, used, seed=1)
    found, tuner = searched(task)
    assert found is not None
    cells = Cells(None, MADE)
    again = Tuner(cells, fresh, range(50), 0.95, say=lambda text: None)
    confirmed = again.measure(found.policy, "confirm"), cells.row(Full(), fresh, range(50))
    tuned = Tuned("known", 0.95, tuner.full, tuple(tuner.tried.values()), found, confirmed)
    record = json.loads(json.dumps(tuned.record()))
    assert record["chosen"]["policies"] == spec(WANTED)
    assert record["chosen"]["on fresh samples"]["n"] == 50
    assert record["front"] == [WANTED.label]
    assert [one["policy"] for one in record["settings"]] == [policy.label for policy in tuner.tried]
    assert plain(found)["kept"] == 1
    assert tuned.table().count("\n") == 3
    assert f"**{WANTED.label}**" in tuned.table()
    assert "confirmed A-VL" in tuned.verdict()
    plot(tuned, tmp_path / "tune.png")
    assert (tmp_path / "tune.png").stat().st_size > 2000
