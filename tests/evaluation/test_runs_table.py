"""Runs as rows: every number follows from the events, and no cell is run by a spreadsheet."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path

import pytest
from random_models import build_model, picture, shared_processor

import avl
from avl.evaluation.runs_table import COLUMNS, PARAMETERS, append_csv, rows, to_csv
from avl.policies import POLICIES
from avl.trace import End, Error, Prefill, Step, Trace
from avl.trace.cells import cell

ARMS = [avl.Full(), avl.AVL(S=45, C=30, K=3, P=70, T=50), avl.H2O(keep=40), avl.StreamingLLM(keep=50)]


@pytest.fixture(scope="module")
def run() -> Trace:
    model, processor = avl.attach(build_model("next-mistral")), shared_processor("next-mistral")
    made = Trace(list(avl.race(model, processor, picture(1), "what is it ?", ARMS, max_new_tokens=9, batch=2, repeats=2)))
    made.meta["pictures"] = ["a.png", "b.png"]
    return made


def test_a_row_an_arm_with_every_parameter(run: Trace) -> None:
    found = rows(run)
    assert [row["policy"] for row in found] == [arm.name for arm in ARMS]
    for row, policy in zip(found, ARMS, strict=True):
        assert tuple(row) == COLUMNS
        assert {name: row[f"policy.{name}"] for name in policy.to_dict() if name != "name"} == {
            name: value for name, value in policy.to_dict().items() if name != "name"
        }
        assert (row["label"], row["batch"], row["max_new_tokens"], row["repeats"]) == (policy.label, 2, 9, 1)
        assert (row["question"], row["pictures"]) == ("what is it ?", "a.png, b.png")


def test_the_columns_are_unique_and_have_every_parameter() -> None:
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert {one.name for policy in POLICIES.values() for one in policy.params()} == set(PARAMETERS)


def test_numbers_follow_from_the_events(run: Trace) -> None:
    start, full = run.start, rows(run)[0]
    assert full["stored_share"] == pytest.approx(1)
    assert full["read_share"] == pytest.approx(1)
    assert (full["same_as_full"], full["first_difference"]) == (True, None)
    tokens = [[event.token for event in run if isinstance(event, Prefill | Step) and event.arm == arm] for arm in range(len(ARMS))]
    for number, row in enumerate(rows(run)):
        end, steps = run.of(End, number)[0], run.of(Step, number)
        assert row["tokens"] == len(end.tokens)
        assert row["answer"] == end.text
        assert row["stored_bytes"] == pytest.approx(end.stored_bytes)
        assert row["read_bytes"] == pytest.approx(end.read_bytes)
        whole = [2 * start.token_bytes * (start.n_image + start.n_text + step.t) for step in steps]
        assert row["stored_share"] == pytest.approx(sum(step.stored_bytes for step in steps) / sum(whole))
        assert row["median_ms"] == statistics.median(step.ms for step in steps)
        assert row["median_ms"] <= row["p99_ms"] <= max(step.ms for step in steps)
        assert row["total_ms"] == pytest.approx(steps[-1].clock_ms)
        assert row["same_as_full"] == (tokens[number] == tokens[0])
        if not row["same_as_full"]:
            at = row["first_difference"]
            assert tokens[number][:at] == tokens[0][:at]
            assert tokens[number][at : at + 1] != tokens[0][at : at + 1]


@pytest.mark.parametrize("events", [1, 2, 5, 9, 20])
def test_a_run_that_goes_on_has_what_is_known(run: Trace, events: int) -> None:
    """Of every prefix of its events."""
    found = rows(Trace(run.events[:events], meta=run.meta))
    assert len(found) == len(ARMS)
    for row in found:
        assert row["reason"] is None
        assert row["same_as_full"] in (None, False)
        assert (row["answer"] is None) == (row["tokens"] == 0)


def test_stopped_answers_are_not_called_the_same(run: Trace) -> None:
    short = Trace([event for event in run.events if not isinstance(event, End) and getattr(event, "t", 0) < 1], meta=run.meta)
    assert {row["same_as_full"] for row in rows(short)} <= {None, False}


def test_without_full_attention_nothing_is_compared(run: Trace) -> None:
    model, processor = avl.attach(build_model("next-mistral")), shared_processor("next-mistral")
    other = Trace(list(avl.race(model, processor, picture(1), "what is it ?", ARMS[1:3], max_new_tokens=4)))
    assert {(row["same_as_full"], row["first_difference"]) for row in rows(other)} == {(None, None)}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "  =1", "\u00a0=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert cell(text).startswith("'")
    assert cell("a" + text) == "a" + text


def test_a_file_grows_by_runs(run: Trace, tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    append_csv(run, file)
    once = file.read_bytes()
    append_csv(run, file)
    lines = list(csv.DictReader(io.StringIO(file.read_text("utf-8"))))
    assert len(lines) == 2 * len(ARMS)
    assert file.read_bytes().startswith(once)
    assert lines[0] == lines[len(ARMS)]
    assert file.read_bytes() == (to_csv([run]) + to_csv([run], head=False)).encode()
    for content in (b"date,other\r\n", b"\xff\xfe", b"something\n"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="has other columns"):
            append_csv(run, file)
        assert file.read_bytes() == content, "nothing is lost"


def test_an_error_is_told(run: Trace) -> None:
    failed = Trace([*run.events[:4], Error("=the device is gone")])
    lines = list(csv.DictReader(io.StringIO(to_csv([failed]))))
    assert {line["error"] for line in lines} == {"'=the device is gone"}
