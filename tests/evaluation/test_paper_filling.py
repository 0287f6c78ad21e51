"""Cells of a table by several processes, on one disk or none in common, fresh or gone on with; and the report of what was found."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from avl.evaluation.cells import Answer, Cells
from avl.evaluation.paper import report
from avl.evaluation.paper.filling import Place, check_fresh, filled, places
from avl.evaluation.paper.methods import Method, methods
from avl.evaluation.paper.processes import Processes
from avl.evaluation.paper.published import BENCHMARKS, MIXED
from avl.evaluation.rows import Row, paired
from avl.policies import AVL, FastV, Full, Policy, PromptShape
from avl.policies.presets import UNMEASURED

MADE = {"model": "toy"}
FACTS = {
    **MADE,
    "revision": None,
    "dtype": "float32",
    "device": "cpu",
    "avl": "1",
    "torch": "2",
    "transformers": "3",
    "evaluator": "lmms-eval",
}
FACTS |= {"processes": 1, "paper_model": None, "asked": ["avl:S=40"]}


class Task:
    """Every second answer is right under full attention, every fourth under other policies."""

    made: Mapping[str, Any] = {"seed": 1}

    def __init__(self, name: str = "toy", size: int = 8, of: int = 8) -> None:
        self.name, self.size, self.of, self.asked = name, size, of, []  # type: ignore[var-annotated]

    def ask(self, policy: Policy, numbers: Sequence[int]) -> list[Answer]:
        self.asked += numbers
        every = 2 if isinstance(policy, Full) else 4
        return [Answer(n, "right" if n % every == 0 else "wrong", 1 + n, n, 2 + 2 * n, 0.1) for n in numbers]

    def scores(self, texts: Mapping[int, str]) -> dict[int, float]:
        return {number: float(text == "right") for number, text in texts.items()}

    def shape(self) -> PromptShape:
        return PromptShape(576, 44, 32, 32)


@dataclass(frozen=True)
class Threads(Processes):
    """Processes that are threads: what they tell one another goes through a list."""

    barrier: threading.Barrier | None = None
    told: Any = None

    def gather(self, value: Any) -> list[Any]:
        assert self.barrier is not None
        self.told[self.rank] = value
        self.barrier.wait(30)
        found = list(self.told)
        self.barrier.wait(30)
        return found


def together(folders: Sequence[Path], tasks: Sequence[Task], resume: bool = False) -> list[Any]:
    """What each of as many threads as folders ends with: its rows, or its error."""
    barrier, told, found = threading.Barrier(len(folders)), [None] * len(folders), [None] * len(folders)

    def one(rank: int) -> None:
        here = Threads(rank, len(folders), rank, barrier, told)
        cells = Cells(folders[rank], MADE, rank)
        asked = places([Method("Full", Full()), Method("A-VL", AVL(S=40))], [tasks[rank]])
        try:
            if not resume:
                check_fresh(cells, asked, here)
            found[rank] = [row for _, row in filled(cells, asked, here, 2, lambda *_: None)]
        except ValueError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.mark.parametrize("shared", [True, False], ids=["one-disk", "no-disk-in-common"])
def test_two_processes_find_what_one_finds(tmp_path: Path, shared: bool):
    (alone,) = together([tmp_path / "alone"], [Task()])
    folders = [tmp_path / "a", tmp_path / ("a" if shared else "b")]
    tasks = [Task(), Task()]
    main, other = together(folders, tasks)
    assert [(row.points, row.stored, row.read) for row in main] == [(row.points, row.stored, row.read) for row in alone]
    assert other == [None, None], "only the first process reports"
    assert [sorted(set(task.asked)) for task in tasks] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_folder_that_holds_answers_needs_resume(tmp_path: Path):
    """Also where only another process sees them: all refuse alike, and none waits for the others."""
    Cells(tmp_path / "b", MADE, 1).fill(Full(), Task(), [1, 3])
    tasks = [Task(), Task()]
    for error in together([tmp_path / "a", tmp_path / "b"], tasks):
        assert "holds answers to this already (toy under Full attention, 2 of 8 documents): go on with --resume" in str(error)
    assert not tasks[0].asked
    main, _ = together([tmp_path / "a", tmp_path / "b"], tasks, resume=True)
    assert len(main[0].points["toy"]) == 8
    assert sorted(tasks[1].asked) == [1, 3, 5, 5, 7, 7], "the first policy asks only what is missing"


def test_one_process_of_a_machine_downloads_first():
    barrier, told, order = threading.Barrier(3), [None] * 3, []  # type: ignore[var-annotated]

    def one(rank: int, local: int) -> None:
        here = Threads(rank, 3, local, barrier, told)
        assert here.fetched(lambda: order.append(local) or "data") == "data"  # type: ignore[func-returns-value]

    threads = [threading.Thread(target=one, args=place) for place in ((0, 0), (1, 1), (2, 0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert order == [0, 0, 1], "two machines, of which one has two processes"


def test_processes_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    second = Processes(3, 4, 1)
    assert second.device("auto", None) == second.device("cuda", None) == "cuda:1"
    assert second.device("cpu", None) == "cpu"
    assert Processes().device("cuda:1", "auto") == "cuda:1"
    for device, device_map, local, said in (
        ("cuda:0", None, 1, "put the models of 4 processes on one device"),
        ("auto", "auto", 1, "each of several processes loads its own"),
        ("auto", None, 2, "there are 2 GPUs for more processes"),
    ):
        with pytest.raises(ValueError, match=said):
            Processes(3, 4, local).device(device, device_map)


def reported(tmp_path: Path, rows: Sequence[Method], tasks: Sequence[Task], cut: int | None = None, **facts: Any) -> dict[str, Any]:
    asked = places(rows, tasks)
    cells = Cells(None, MADE)
    found = list(filled(cells, asked, Processes(), 2, lambda *_: None))[:cut]
    made = {task.name: dict(task.made) for task in tasks}
    record = report.record({**FACTS, **facts}, made, [(place, row) for place, row in found if row is not None], asked)
    report.write(record, tmp_path)
    assert json.loads((tmp_path / report.RESULTS).read_text(encoding="utf-8")) == record
    return record


def test_a_table_of_the_papers(tmp_path: Path):
    tasks = [Task(name, 8, 8 if name == "ocrbench" else 5349) for name in BENCHMARKS]
    record = reported(tmp_path, methods(["table2"], "llava-1.5-7b"), tasks, paper_model="llava-1.5-7b", asked=["table2"])
    cell = next(one for one in record["cells"] if one["task"] == "docvqa_val" and one["method"] == "A-VL")
    assert (cell["paper"], cell["ours"], cell["difference"], cell["to_full"], cell["paper_to_full"]) == (31.26, 25.0, -6.26, -25.0, 0.06)
    right = [float(n % 2 == 0) for n in range(8)]
    low, high = paired([float(n % 4 == 0) for n in range(8)], right)
    assert cell["interval"] == [round(100 * low, 2), round(100 * high, 2)]
    assert (cell["stored"], cell["read"]) == (50.0, pytest.approx(100 * 28 / 72, abs=0.1))
    assert {one["method"]: (one["paper"], one["ours"]) for one in record["averages"]} == {
        **{"Full": (55.23, 50.0), "FastV": (53.57, 25.0)},
        **{"H2O": (54.94, 25.0), "A-VL": (55.42, 25.0)},
    }
    assert MIXED in record["notes"]
    assert UNMEASURED not in record["notes"]
    text = (tmp_path / report.TABLE).read_text(encoding="utf-8")
    assert "| DocVQA, ANLS | Full attention | 8 of 5349 | 31.20 | 50.00 | +18.80 | – | – | 50 % | 39 % |" in text
    ends = f"{100 * low:+.2f} to {100 * high:+.2f}".replace("-", "−")
    assert f"|  | A-VL S=40 K=3 | 8 | 20.90 | 25.00 | +4.10 | +0.30 | −25.00 ({ends}) | 50 % | 39 % |" in text
    assert "Not finished" not in text
    assert "Only the first documents of docvqa_val, flickr30k_test, nocaps_val, textvqa_val were asked" in text


def test_table_3_shows_what_the_paper_stores(tmp_path: Path):
    reported(tmp_path, methods(["table3"], "llava-1.5-7b"), [Task("nocaps_val")], paper_model="llava-1.5-7b", asked=["table3"])
    text = (tmp_path / report.TABLE).read_text(encoding="utf-8")
    assert "| 50 % (paper 46 %) | 39 % (paper 39 %) |" in text
    assert MIXED not in text
    assert "Average" not in text


def test_what_is_left_out_or_missing_is_said(tmp_path: Path):
    rows = [Method("Full", Full()), Method("FastV", FastV(), share=0.01)]
    record = reported(tmp_path, rows, [Task(), Task("second")], cut=1, asked=["table2"])
    assert record["finished"] is False
    text = (tmp_path / report.TABLE).read_text(encoding="utf-8")
    assert "**Not finished.**" in text
    assert "- FastV on toy is left out: FastV cannot store 1.0% of 620 tokens" in text
    assert UNMEASURED in text


def test_intervals_are_of_pairs(tmp_path: Path):
    """Scores that differ alike on every document differ for sure, however much documents differ among themselves."""
    task = Task(size=4, of=4)
    full, other = ({"toy": tuple(shift + n / 10 for n in range(4))} for shift in (0.5, 0.4))
    make = lambda policy, points: Row(policy.label, policy.to_dict(), points, 0.5, 0.5, 1.0, "2026-01-01")  # noqa: E731
    asked = [Place(Method("Full", Full()), task, Full()), Place(Method("A", AVL(S=40)), task, AVL(S=40))]
    rows = [(asked[0], make(Full(), full)), (asked[1], make(AVL(S=40), other))]
    record = report.record(FACTS, {}, rows, asked)
    assert record["cells"][1]["interval"] == [-10.0, -10.0]
