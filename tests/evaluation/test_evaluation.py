"""`python -m avl eval` and `eval-sweep` on a few samples: the table, the file, and figures that fit together."""

import json

import pytest

import avl
from avl import cli
from avl.evaluation import evaluate, memory, sweep, tasks
from avl.policies.equal_memory import TOLERANCE, stored_share


@pytest.fixture(scope="module")
def attached():
    model, processor = avl.load("tiny", device="cpu")
    avl.attach(model)
    return model, processor


def test_full_stores_and_reads_everything(attached):
    row = evaluate.evaluate(*attached, tasks.held_out(5), avl.Full(), batch=5)
    assert row.stored == row.read == 1.0
    assert all(v in (0.0, 1.0) for v in row.kept(row).values())


def test_adaptive_without_limits_scores_as_full(attached):
    samples = tasks.held_out(5)
    full = evaluate.evaluate(*attached, samples, avl.Full(), batch=5)
    assert evaluate.evaluate(*attached, samples, avl.AVL(S=100), batch=5).points == full.points


def test_batched_answers_are_those_of_single_ones(attached):
    samples = tasks.held_out(4)
    together, _ = evaluate.answer(*attached, samples, avl.Full())
    alone = [evaluate.answer(*attached, [s], avl.Full())[0][0] for s in samples]
    assert together == alone


def test_full_attention_measures_the_share_that_the_workload_predicts(attached):
    """Right answers have the lengths that the equal memory is computed with, and the batches are the same ones."""
    samples = tasks.held_out(10)
    steps = memory.workload(*attached, samples, 4, evaluate.MAX_NEW_TOKENS)
    for policy in (evaluate.ADAPTIVE, avl.SnapKV(keep=46)):
        row = evaluate.evaluate(*attached, samples, policy, batch=4)
        assert row.stored == pytest.approx(stored_share(policy, steps), abs=TOLERANCE)


def run(capsys, *arguments):
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_eval_keeps_rows_at_equal_memory_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    file = tmp_path / "eval.json"
    command = "eval", "--samples", "5", "--json", str(file), "--policies"
    first = run(capsys, *command, "avl", "FastV")
    assert first == json.loads(file.read_text())
    full, adaptive, fastv = first["results"]
    assert full["parameters"] == {"name": "Full"}
    assert 0.4 < adaptive["stored"] < 0.6
    assert adaptive["read"] < adaptive["stored"]
    assert abs(fastv["stored"] - adaptive["stored"]) <= 2 * TOLERANCE  # five answers, some of them of another length than the right ones

    measured = []
    original = evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: measured.append(given[3]) or original(*given))
    second = run(capsys, *command, "avl", "FastV", "avl:S=20,spread=20")
    assert measured == [avl.AVL(S=20, spread=20)]
    assert second["results"][:3] == first["results"]
    assert second["results"][3]["policy"] == "A-VL S=20 K=3 spread=20"

    held = file.read_bytes()
    assert cli.main(["eval", "--samples", "4", "--device", "cpu", "--json", str(file)]) == 1
    assert "holds rows made with samples 5, not 4: name another file" in capsys.readouterr().err
    assert file.read_bytes() == held


def test_the_whole_table_has_every_policy_and_spread():
    policies = evaluate.wanted(evaluate.TABLE)
    assert {type(policy) for policy, _ in policies} == set(avl.POLICIES.values())
    assert [p.spread for p, _ in policies if isinstance(p, avl.AVL) and p.T == 60] == [None, 20, 33, 45]
    assert {policy.name for policy, equal in policies if equal} == set(avl.POLICIES) - {"Full", "AVL"}
    assert len({str(policy) for policy, _ in policies}) == len(policies)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("avl:S=20,spread=33", "spread is at most S=20"),
        ("avl:Z=1", "has no parameter 'Z'"),
        ("avl:S", "S='' is out of range"),
        ("h2o:keep=nan", "keep="),
    ],
)
def test_a_wrong_policy_is_refused_before_the_model_loads(spec, said, capsys):
    assert cli.main(["eval", "--model", "no/such/place", "--policies", spec]) == 1
    assert said in capsys.readouterr().err


def test_eval_of_no_policy_measures_full_attention_alone(capsys):
    record = run(capsys, "eval", "--samples", "2", "--policies")
    assert [one["policy"] for one in record["results"]] == ["Full attention"]


def test_sweep_writes_figures_and_a_picture_and_says_what_cannot_be(tmp_path, capsys):
    others = "--others", "StreamingLLM", "FastV"
    record = run(capsys, "eval-sweep", "--samples", "3", "--shares", "100", "20", "--spreads", "50", *others, "--out", str(tmp_path))
    assert record == json.loads((tmp_path / "sweep.json").read_text())
    rows = [one["policy"] for one in record["results"]]
    assert rows[:4] == ["Full attention", "A-VL S=100 K=3", "FastV layer=2 keep=100", "A-VL S=20 C=13.33 K=3"]
    assert rows[4] == "A-VL S=20 C=13.33 K=3 spread=10"
    assert rows[5].startswith("StreamingLLM keep=")
    assert len(rows) == 6
    assert set(record["notes"]["left out"]) == {
        "StreamingLLM at the memory of A-VL S=100 K=3",  # it never stores new tokens beside the whole prompt
        "FastV at the memory of A-VL S=20 C=13.33 K=3",  # its first two layers keep the whole picture
    }
    adaptive, spread, streaming = record["results"][3:]
    assert spread["stored"] == pytest.approx(adaptive["stored"], abs=TOLERANCE)
    assert streaming["stored"] == pytest.approx(adaptive["stored"], abs=2 * TOLERANCE)
    assert (tmp_path / "sweep.png").stat().st_size > 2000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--others", "AVL"], "--others names what A-VL is compared with: H2O"),
        (["--spreads", "101"], "spread 101 is out of range: it is a share of S, above 0 and at most 100 percent"),
        (["--spreads", "nan"], "spread nan is out of range"),
        (["--shares", "120"], "S=120.0 is out of range"),
        (["--shares", "0"], "out of range"),
    ],
)
def test_sweep_refuses_what_is_out_of_range_before_the_model_loads(options, said, tmp_path, capsys):
    assert cli.main(["eval-sweep", "--model", "no/such/place", "--out", str(tmp_path), *options]) == 1
    assert said in capsys.readouterr().err


def test_a_spread_that_is_no_number_is_a_wrong_option(capsys):
    assert cli.main(["eval-sweep", "--spreads", "many"]) == 2
    assert "'many' is not a number" in capsys.readouterr().err


def test_spread_changes_no_memory_and_is_a_share_of_s():
    plain, spread = sweep.adaptive(45), sweep.adaptive(45, 67)
    assert (spread.S, spread.C, spread.K, spread.spread) == (45, 30, 3, 30.15)
    steps = {avl.PromptShape(576, 24, 96, 8): dict.fromkeys(range(1, 60), 1)}
    assert stored_share(plain, steps) == stored_share(spread, steps)
