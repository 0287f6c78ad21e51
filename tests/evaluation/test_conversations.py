"""`python -m avl eval --turns`: conversations of a few questions, kept and re-read."""

import json

import pytest

import avl
from avl import cli
from avl.evaluation import evaluate, memory, turns
from avl.evaluation.rows import Row
from avl.evaluation.tasks import dialogs
from avl.policies.equal_memory import stored_share

RIGHT = 3  # in the conversation of this number, full attention answers all of three questions right


@pytest.fixture(scope="module")
def attached():
    model, processor = avl.load("tiny", device="cpu")
    avl.attach(model)
    return model, processor


def test_dialogs_are_fixed_and_ask_about_different_things():
    one, two = dialogs(4), dialogs(4)
    assert [d.questions for d in one] == [d.questions for d in two]
    assert all(len({q.kind for q in d.questions}) == 3 for d in one)
    assert len({d.image.tobytes() for d in one}) == 4
    assert [d.questions for d in dialogs(2, seed=1)] != [d.questions for d in one[:2]]
    first = dialogs(30, turns=10)
    assert {len(d.questions) for d in first} == {10}
    for turn in range(10):  # every turn has all kinds of questions, none of them often
        asked = [d.questions[turn].kind for d in first]
        assert max(map(asked.count, asked)) <= 9


@pytest.mark.parametrize(("options", "said"), [({"n": 0}, "n must be at least 1"), ({"turns": 0}, "1 to 10"), ({"turns": 11}, "1 to 10")])
def test_dialogs_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        dialogs(**options)


def test_stored_and_fed_are_what_right_answers_predict(attached):
    """The cost model knows later turns, so memory is equal over whole conversations."""
    model, processor = attached
    asked = dialogs(4)[RIGHT:]
    steps = memory.dialog_workload(model, processor, asked, evaluate.MAX_NEW_TOKENS)
    for policy in (avl.Full(), avl.AVL(S=45, C=30, K=3, P=90, T=60)):
        row = turns.ask_all(model, processor, asked, policy)
        assert row.scores["turn 1"] == row.scores["turn 2"] == row.scores["turn 3"] == 1
        assert row.stored == pytest.approx(stored_share(policy, steps), abs=1e-4)
        fed = row.more["tokens fed"]
        assert fed["kept"] < 30 < 576 < fed["first"] < fed["re-read"]
        low, middle, high = row.more["first pass, kept of re-read"]
        assert 0 < low <= middle <= high


def test_full_attention_answers_alike_kept_and_re_read_and_the_file_is_taken_up(attached, tmp_path, capsys, monkeypatch):
    file = tmp_path / "turns.json"
    command = "eval", "--device", "cpu", "--turns", "2", "--samples", "1", "--json", str(file), "--stored", "60", "--policies"
    monkeypatch.setattr("avl.cli.options.Source.load", lambda source: attached)
    assert cli.main([*command, "avl:spread=10"]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    record = json.loads(last)
    assert record == json.loads(file.read_text())
    assert (record["turns"], record["samples"], record["batch"]) == (2, 1, 1)
    assert set(record["notes"]["asked first"]) == {"turn 1", "turn 2"}
    assert record["notes"]["asked first"]["turn 1"] == record["results"][0]["scores"]["turn 1"], "what nothing came before"
    full, adaptive = record["results"]
    assert full["points"]["turn 2"] == full["points"]["turn 2 re-read"]
    assert full["more"]["same answer as re-read"] == full["stored"] == 1
    assert adaptive["stored"] == pytest.approx(0.6, abs=0.02)
    assert set(adaptive["points"]) == {"turn 1", "turn 2", "turn 2 re-read"}
    assert [len(line) for line in lines[-3:]] == [len(lines[-1])] * 3

    monkeypatch.setattr(turns, "ask_all", lambda *given: pytest.fail("it is in the file"))
    monkeypatch.setattr("avl.evaluation.turns.asked_first", lambda *given: pytest.fail("it is in the file"))
    assert cli.main([*command, "avl:spread=10"]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == record

    held = file.read_bytes()
    for other, said in (("3", "turns 2, not 3"), ("1", "batch 1, not 16")):
        assert cli.main(["eval", "--device", "cpu", "--samples", "1", "--turns", other, "--json", str(file)]) == 1
        assert f"holds rows made with {said}: name another file" in capsys.readouterr().err
    assert file.read_bytes() == held


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--turns", "0"], 2, "'--turns': Input should be greater than or equal to 1"),
        (["--turns", "11"], 2, "'--turns': Input should be less than or equal to 10"),
        (["--turns", "two"], 2, "'--turns': Input should be a valid integer"),
        (["--turns", "3", "--samples", "0"], 1, "n must be at least 1, not 0"),
        (["--turns", "3", "--batch", "8"], 1, "--batch 8 is not possible with --turns"),
        (["--turns", "3", "--stored", "0"], 2, "'--stored': Input should be greater than or equal to 1"),
    ],
)
def test_bad_options_are_one_sentence_before_the_model_loads(options, code, said, capsys):
    assert cli.main(["eval", "--model", "no/such/place", *options]) == code
    assert said in capsys.readouterr().err


def row(policy, second, again):
    points = {"turn 1": (1.0, 1.0, 0.0, 1.0), "turn 2": second, "turn 2 re-read": again}
    more = {"tokens fed": {"kept": 12.0}, "first pass, kept of re-read": [0.1, 0.2, 0.3]}
    return Row(policy.label, policy.to_dict(), points, 0.5, 0.25, 1.0, "2026-01-01", more)


def test_what_is_lost_is_paired_with_re_reading_and_counted_where_full_is_right():
    full, less = row(avl.Full(), (1.0, 1.0, 0.0, 0.5), (1.0, 1.0, 0.0, 0.5)), row(avl.AVL(S=45), (0.0, 1.0, 1.0, 0.0), (0.5, 1.0, 1.0, 0.5))
    assert turns.lost(full) == {"turn 2": (0.0, 0.0)}
    low, high = turns.lost(less)["turn 2"]
    assert low == -0.5
    assert high == 0
    assert turns.where_right(less, full) == {"turn 1": (3, 1.0), "turn 2": (2, 0.5), "turn 2 re-read": (2, 0.75)}
    head, one, other = turns.table([full, less], full).splitlines()
    assert len(head) == len(one) == len(other)
    assert "-50.0 to +0.0" in other
