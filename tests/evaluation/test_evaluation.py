"""`python -m avl eval` and `sweep` on a few samples: the table, the JSON, and figures that fit together."""

import json

import pytest

import avl
from avl import cli
from avl.evaluation import evaluate, tasks


@pytest.fixture(scope="module")
def attached():
    model, processor = avl.load("tiny", device="cpu")
    avl.attach(model)
    return model, processor


def test_full_stores_and_reads_everything(attached):
    result = evaluate.evaluate(*attached, tasks.held_out(5), avl.Full(), batch=5)
    assert result.stored == result.read == 1.0
    assert all(v in (0.0, 1.0) for v in result.kept.values())


def test_adaptive_without_limits_scores_as_full(attached):
    samples = tasks.held_out(5)
    full = evaluate.evaluate(*attached, samples, avl.Full(), batch=5)
    assert evaluate.evaluate(*attached, samples, avl.AVL(S=100), full, batch=5).scores == full.scores


def test_batched_answers_are_those_of_single_ones(attached):
    samples = tasks.held_out(4)
    together, _ = evaluate.answer(*attached, samples, avl.Full())
    alone = [evaluate.answer(*attached, [s], avl.Full())[0][0] for s in samples]
    assert together == alone


def test_main_prints_a_table_and_one_json_line_last(tmp_path, capsys):
    file = tmp_path / "eval.json"
    assert cli.main(["eval", "--samples", "5", "--policies", "Full", "avl", "FastV", "--device", "cpu", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    record = json.loads(lines[-1])
    assert record == json.loads(file.read_text())
    assert len(record["results"]) == 3
    adaptive, fastv = record["results"][1:]
    assert 0.4 < adaptive["stored"] < 0.6
    assert adaptive["read"] < adaptive["stored"]
    assert abs(fastv["stored"] - adaptive["stored"]) < 0.06


def test_sweep_writes_figures_and_a_picture(tmp_path, capsys):
    arguments = ["sweep", "--samples", "3", "--shares", "100", "20", "--others", "StreamingLLM", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert [len(record["results"][n]) for n in ("Full", "AVL", "StreamingLLM")] == [1, 2, 2]
    assert record["results"]["AVL"][1]["stored"] < 0.35
    assert (tmp_path / "sweep.png").stat().st_size > 2000
    json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_eval_of_no_policy_measures_full_attention_alone(capsys):
    assert cli.main(["eval", "--samples", "2", "--device", "cpu", "--policies"]) == 0
    record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [one["policy"] for one in record["results"]] == ["Full attention"]


def test_sweep_compares_with_other_policies_only(capsys):
    assert cli.main(["sweep", "--others", "AVL"]) == 1
    assert "--others names what A-VL is compared with: H2O" in capsys.readouterr().err
