"""The check of a machine: parts that hang, crash, fail or run out of memory lose nothing; targets; the real command in miniature."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from avl import cli
from avl.bench import benchmark, gpu_check, gpu_parts, measure, targets
from avl.bench.gpu_check import NotHereError, Part, Record, run_parts
from avl.kernels.bench import cases

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import sys, time
from pathlib import Path
from avl.bench.gpu_check import NotHereError, Record, carry_out
name, file, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
def work(record):
    record.keep(evidence="gpu", found=name)
"""
WORKS = {
    "good": "    pass",
    "hangs": "    time.sleep(600)",
    "large": "    raise MemoryError('no room\\nfor it')",
    "wrong": "    raise ValueError('what it is\\nand more')",
    "absent": "    raise NotHereError('not this device')",
    "crash": "    import os; print('the last words', flush=True); os.abort()",
    "exit": "    import os; os._exit(3)",
    "parent": "    import subprocess; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', str(file)])",
}


def command(part: Part, folder: Path, seconds: float) -> list[str]:
    source = f"{PRELUDE}{WORKS[part.name]}\ncarry_out(work, Record(file, name, seconds))"
    return [sys.executable, "-c", source, part.name, str(folder / f"{part.name}.json"), str(seconds)]


def check(folder: Path, seconds: float, **weights: float) -> dict[str, dict]:
    """Run fake parts; return the summary's rows by part."""
    parts = [Part(name, name, weight, lambda record: None) for name, weight in weights.items()]
    summary = run_parts(parts, folder, seconds, say=lambda line: None, command=command)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (folder / "summary.md").read_text().startswith("**")
    return {row["name"]: row for row in summary["parts"]}


def facts(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def test_every_way_to_end_is_recorded_and_the_next_part_runs(tmp_path):
    rows = check(tmp_path, 60, large=1, wrong=1, absent=1, crash=1, exit=1, good=1)
    ends = {name: (row["state"], row["why"]) for name, row in rows.items()}
    assert ends == {
        "large": ("out of memory", "MemoryError: no room"),
        "wrong": ("failed", "ValueError: what it is"),
        "absent": ("not here", "not this device"),
        "crash": ("crashed", "SIGABRT: the last words"),
        "exit": ("crashed", "exit status 3"),
        "good": ("done", None),
    }
    assert all(facts(tmp_path, name)["found"] == name for name in rows), "what was found before is kept"
    assert "and more" in (tmp_path / "wrong.log").read_text(), "the log has the traceback"


def test_a_part_that_hangs_is_killed_with_what_it_started_and_its_time_is_bounded(tmp_path):
    began = time.monotonic()
    rows = check(tmp_path, 12, parent=1, hangs=1, good=2)
    assert time.monotonic() - began < 14
    for name in ("parent", "hangs"):
        assert rows[name]["state"] == "out of time"
        assert rows[name]["why"].startswith("killed after its ")
        assert facts(tmp_path, name)["found"] == name
    assert rows["good"]["state"] == "done"
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert str(tmp_path / "parent.json") not in left


def test_unused_time_flows_on_and_no_time_is_no_part(tmp_path):
    rows = check(tmp_path / "a", 100, good=1, absent=1)
    assert rows["good"]["limit_s"] == pytest.approx(50, abs=1)
    assert rows["absent"]["limit_s"] > 90
    rows = check(tmp_path / "b", 1, good=1, absent=1)
    assert {row["state"] for row in rows.values()} == {"no time left"}


def test_ctrl_c_and_sigterm_leave_what_is_done(tmp_path):
    def stop() -> None:
        while not (tmp_path / "hangs.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with gpu_check.terminated_like_ctrl_c():
        rows = check(tmp_path, 60, good=1, hangs=1, absent=1)
    assert [rows[name]["state"] for name in ("good", "hangs", "absent")] == ["done", "stopped", None]


def test_files_of_an_earlier_run_are_not_taken_for_this_ones(tmp_path):
    check(tmp_path, 60, good=1)
    rows = check(tmp_path, 1, good=1)
    assert rows["good"]["state"] == "no time left"
    assert "found" not in facts(tmp_path, "good")


def test_out_of_memory_of_a_gpu_is_recorded(tmp_path, capsys):
    def work(record: Record) -> None:
        record.keep(found=1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    gpu_check.carry_out(work, Record(tmp_path / "a.json", "a", 10))
    found = facts(tmp_path, "a")
    assert (found["state"], found["found"]) == ("out of memory", 1)
    assert found["why"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB."
    assert "Traceback" in capsys.readouterr().err


RESULTS = {
    "kernels": {
        "evidence": "gpu",
        "cells": [
            {"shape": "llava-1.6-7b", "batch": 1, "copy_gb_s": 4000, "rows": [], "layer_rows": [], "ratios": {"full / core": 2.0}},
            {"shape": "llava-1.6-7b", "batch": 32, "copy_gb_s": 4000, "rows": [], "layer_rows": [], "ratios": {"core / copy": 0.9}},
            {"shape": "llava-1.5-7b", "batch": 32, "copy_gb_s": 4000, "rows": [], "layer_rows": [], "ratios": {"core / copy": 0.1}},
        ],
    },
    "self-check": {"rows": [{"trouble": None, "dtype": "float16", "head_size": 64, "seconds": 1.0}]},
    "tests": {"counts": {"passed": 3, "failed": 2, "skipped": 0}, "failures": ["a.py::b"]},
}


def test_targets_say_what_was_missed_met_and_not_measured():
    rows = targets.compare(RESULTS)
    by_key = {row["key"]: row for row in rows}
    assert (by_key["K1"]["met"], by_key["K1"]["where"], by_key["K1"]["value"]) == (False, "llava-1.6-7b, batch 32", 0.9)
    assert by_key["K1"]["goal"] == "at least 0.95"
    assert by_key["K6a"]["met"] is True
    assert by_key["C1"]["met"] is True
    assert (by_key["C2"]["met"], by_key["C2"]["goal"]) == (False, "at most 0")
    assert by_key["S1a"] == by_key["S1a"] | {"value": None, "met": None}
    assert len({target.key for target in targets.TARGETS}) == len(targets.TARGETS)
    assert all(row["met"] is None for row in targets.compare(RESULTS, judge=False)), "a CPU meets and misses nothing"


def test_the_summary_lists_what_was_missed_last(tmp_path):
    for name, found in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"state": "done", "why": None} | found))
    summary = gpu_check.summarize(list(gpu_parts.PARTS.values()), tmp_path)
    assert summary["missed"] == ["C2, 5 tests", "K1, llava-1.6-7b, batch 32"]
    shown = (tmp_path / "summary.md").read_text()
    assert shown.endswith("Missed:\n\n* C2, 5 tests\n* K1, llava-1.6-7b, batch 32\n")
    assert "| engine, LLaVA-1.6-7B | not run |" in shown
    assert "Not measured: " in shown


def test_a_file_that_was_cut_off_is_a_part_without_an_end(tmp_path):
    (tmp_path / "doctor.json").write_text('{"state": "do')
    assert gpu_check.summarize(list(gpu_parts.PARTS.values()), tmp_path)["parts"][0]["state"] == "running"


@pytest.mark.parametrize(
    ("error", "again", "kept"),
    [
        (RuntimeError("CUDA graphs cannot be used here (an illegal thing)\nmore"), True, "troubles"),
        (RuntimeError("CUDA graphs cannot be used here (CUDA out of memory)"), False, "skipped"),
        (torch.OutOfMemoryError("no"), False, "skipped"),
    ],
)
def test_a_batch_that_fails_is_recorded_and_tried_again_unless_it_is_too_large(error, again, kept, tmp_path):
    def compare():
        raise error

    record = Record(tmp_path / "a.json", "a", 10)
    record.keep(rows=[], skipped=[], troubles=[])
    assert gpu_parts._engine_rows(record, compare, 8) == (not again)
    (row,) = facts(tmp_path, "a")[kept]
    assert row["batch"] == 8
    assert "more" not in str(row)


@pytest.fixture
def _restored(monkeypatch):
    """What a part changes in its own process."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)


@pytest.mark.usefixtures("_restored")
def test_other_libraries_are_compared_last_and_join_their_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_parts, "PEERS", {"FlashInfer, page size 1": "no_such_library", "full: SDPA": "math", "SGLang decode": "cmath"})
    record = Record(tmp_path / "a.json", "kernels", 60)
    gpu_parts._attention_cells(record, torch.device("cpu"), [(cases.Shape("tiny", 4, 2, 16, 40, 8, 20), batch) for batch in (1, 2)])
    found = facts(tmp_path, "a")
    assert found["peers"] == {"FlashInfer, page size 1": "not installed", "full: SDPA": "compared", "SGLang decode": "compared"}
    for cell in found["cells"]:
        names = [row["name"] for row in cell["rows"]]
        assert names[-2:] == ["full: SDPA", "SGLang decode"]
        assert len(names) == len(set(names)) == 8
        assert "full / core" in cell["ratios"]
        assert cell["rows"][-1]["note"], "it loads, and cannot do this: that is its row"
    assert "error" not in found["cells"][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tries the path without a GPU")
@pytest.mark.usefixtures("_restored")
def test_an_engine_whose_graphs_fail_is_measured_eagerly_from_there_on(tmp_path, monkeypatch):
    made, compare = benchmark.made, measure.compare

    def captured(*args, **options):
        subject = made(*args, **options)
        subject.graphs = True
        return subject

    def failing(subject, arms, batch, *rest):
        if subject.graphs and batch == 2:
            raise RuntimeError("CUDA graphs cannot be used here (operation not permitted)")
        return compare(subject, arms, batch, *rest)

    monkeypatch.setattr(benchmark, "made", captured)
    monkeypatch.setattr(measure, "compare", failing)
    gpu_parts.engine("llava-1.5-7b", Record(tmp_path / "engine-1.5.json", "engine-1.5", 60))
    found = facts(tmp_path, "engine-1.5")
    assert [(row["batch"], row["arm"]) for row in found["rows"] if row["arm"] == "avl"] == [(1, "avl"), (2, "avl")]
    assert [one["batch"] for one in found["troubles"]] == [2]
    assert found["decode"] == "eager from batch 2 on, which failed with CUDA graphs"
    (row,) = (row for row in targets.compare({"engine-1.5": found}) if row["key"] == "C3")
    assert (row["met"], row["where"]) == (False, "llava-1.5-7b")


def test_lines_of_pytest_are_counted_as_they_come():
    lines = [
        "[gw0] [  5%] PASSED tests/kernels/test_a.py::test_one[FAILED]",
        "tests/kernels/test_a.py::test_two FAILED                                 [ 10%]",
        "tests/kernels/test_a.py::test_three SKIPPED (no)                         [ 15%]",
        "[gw1] [ 20%] ERROR tests/kernels/test_a.py::test_four",
        "FAILED tests/kernels/test_a.py::test_two - AssertionError",
    ]
    found = gpu_parts.read_pytest(lines)
    assert found["counts"] == {"passed": 1, "failed": 2, "skipped": 1}
    assert found["failures"] == ["tests/kernels/test_a.py::test_two", "tests/kernels/test_a.py::test_four"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tries the path without a GPU")
@pytest.mark.usefixtures("_restored")
def test_a_part_for_another_device_says_so(tmp_path):
    with pytest.raises(NotHereError, match="there is no GPU"):
        gpu_parts.turing(Record(tmp_path / "a.json", "sm_75", 10))


def test_an_unknown_part_is_refused_by_name(tmp_path, capsys):
    assert cli.main(["gpu-check", "--out", str(tmp_path), "--parts", "speed"]) == 1
    assert "there is no part 'speed': use doctor, self-check" in capsys.readouterr().err


def run_command(folder: Path, *more: str) -> tuple[subprocess.CompletedProcess, dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "avl", "gpu-check", "--out", str(folder), "--minutes", "5", *more]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done, json.loads((folder / "summary.json").read_text())


def check_miniature(done: subprocess.CompletedProcess, summary: dict, folder: Path) -> None:
    states = {row["name"]: (row["state"], row["why"]) for row in summary["parts"]}
    assert done.returncode == 0, (states, done.stderr)
    assert states.pop("sm_75", None) in (None, ("not here", "not this device: there is no GPU"))
    assert set(states.values()) == {("done", None)}, states
    assert summary["evidence"] == "cpu"
    assert summary["missed"] == []
    measured = {row["key"] for row in summary["targets"] if row["value"] is not None}
    assert {"C1", "C2", "C3", "S1a", "S4", "S5a", "M2", "P1a", "P1b"} <= measured
    assert [cell["ratios"]["core / copy"] > 0 for cell in facts(folder, "kernels")["cells"]] == [True]
    assert facts(folder, "kernels")["peers"]["FlashInfer, page size 1"]
    assert {row["arm"] for row in facts(folder, "engine-1.6")["rows"]} == {"full", "evict", "avl", "prune"}
    assert done.stdout.endswith((folder / "summary.md").read_text() + "\n")
    for name in ("machine", "missed", "targets"):
        assert name in summary


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tries the path without a GPU")
def test_the_whole_command_runs_in_miniature(tmp_path):
    done, summary = run_command(tmp_path)
    check_miniature(done, summary, tmp_path)
    assert [row["name"] for row in summary["parts"]] == list(gpu_parts.PARTS)
