"""The tables on local data in the shape of the paper's five data sets, with lmms-eval: one process, two, killed, resumed, its own command.

lmms-eval is in a venv of its own (.ci/install_lmms_eval.sh); AVL_LMMS_PYTHON or .venv-lmms names its Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from paper_data import DOCUMENTS, TASKS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
POLICY = "avl:S=45,C=30,K=3,P=90,T=60"
CAPTIONS = shutil.which("java") is not None
ASKED = [name for name in TASKS if CAPTIONS or name not in ("local_nocaps", "local_flickr30k")]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has lmms-eval; in CI its installation may still go on."""
    found = Path(os.environ.get("AVL_LMMS_PYTHON") or ROOT / ".venv-lmms" / "bin" / "python")
    if os.environ.get("CI", "").lower() == "true":
        deadline = time.monotonic() + 300
        while not (found.parents[1] / "ready").exists():
            assert time.monotonic() < deadline, f"{found} is not ready: .ci/install_lmms_eval.sh failed"
            time.sleep(1)
    elif not found.exists():
        pytest.skip("lmms-eval is not installed: .ci/install_lmms_eval.sh .venv .venv-lmms")
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


def run(python: Path, home: Path, *arguments: object, status: int = 0) -> str:
    """Run Python in the checkout, without a network; return what it wrote."""
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def environment(home: Path) -> dict[str, str]:
    given = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "WORLD_SIZE", "RANK")}
    return {**given, "HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def paper(home: Path, out: Path, tasks: list[str]) -> list[object]:
    return ["-m", "avl", "paper", "--include_path", home / "data", "--tasks", *tasks, "--policies", POLICY, "--batch", 4, "--out", out]


def cells(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    record = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert record["finished"]
    times = ("seconds", "date")
    return {(one["task"], one["method"]): {key: value for key, value in one.items() if key not in times} for one in record["cells"]}


def test_the_tables_on_local_data(python: Path, home: Path, tmp_path: Path):
    run(python, home, "tests/evaluation/paper_data.py", home / "data")

    said = run(python, home, *paper(home, tmp_path / "one", ASKED))
    one = cells(tmp_path / "one")
    assert [task for task, method in one if method == "Full"] == ASKED
    assert (tmp_path / "one" / "table.md").read_text(encoding="utf-8") in said
    for (task, method), cell in one.items():
        assert (cell["n"], cell["of"], cell["paper"]) == (DOCUMENTS, DOCUMENTS, None)
        if method == "Full":
            assert cell["ours"] >= 100, f"{task}: the bundled model knows every answer"
            assert (cell["stored"], cell["read"]) == (100, 100)
        else:
            assert 45 < cell["stored"] < 50
            assert 30 < cell["read"] < cell["stored"]
            low, high = cell["interval"]
            assert low <= cell["to_full"] <= high <= 0 or cell["to_full"] == 0
    assert any(cell["to_full"] for cell in one.values()), "eviction costs something"
    conditions = json.loads((tmp_path / "one" / "results.json").read_text(encoding="utf-8"))["tasks"]
    assert [made["max_new_tokens"] for made in conditions.values()] == [32, 64, 128, 64, 64][: len(ASKED)]
    assert conditions["local_docvqa"]["first prompt"] == "USER: <image>\nwhat does the sign say ASSISTANT:"

    # what one process began, until it was killed after a cell, two go on with, and find the same
    both = ASKED[:2]
    asked = paper(home, tmp_path / "two", both)
    killed_after(python, home, asked, tmp_path / "two" / "results.json")
    before = {file: file.read_text(encoding="utf-8") for file in (tmp_path / "two" / "answers").rglob("*.jsonl")}
    assert before
    run(python, home, "-m", "torch.distributed.run", "--nproc_per_node", 2, *asked, "--resume")
    assert cells(tmp_path / "two") == {key: cell for key, cell in one.items() if key[0] in both}
    for file, text in before.items():
        whole = text[: text.rfind("\n") + 1]  # the kill may have torn a line
        assert file.read_text(encoding="utf-8").startswith(whole), "an answer was asked for again"
    written = {file.name[-7:]: file.read_text(encoding="utf-8") for file in (tmp_path / "two" / "answers" / both[1]).glob("A-VL*")}
    assert {name: text.count("\n") - 1 for name, text in written.items()} == {"0.jsonl": DOCUMENTS // 2, "1.jsonl": DOCUMENTS // 2}

    # lmms-eval's own command finds the model class, and the same score
    model = f"pretrained=tiny,policy={POLICY.replace(',', ';')}"
    own = ["--include_path", home / "data", "--tasks", ASKED[0], "--batch_size", 4, "--output_path", tmp_path / "own"]
    run(python, home, "-m", "lmms_eval", "--model", "avl", "--model_args", model, *own)
    (results,) = (tmp_path / "own").rglob("*_results.json")
    score = json.loads(results.read_text(encoding="utf-8"))["results"][ASKED[0]]["anls,none"]
    assert round(100 * score, 2) == one[ASKED[0], "A-VL S=45 C=30 K=3 P=90 T=60"]["ours"]

    told = (next((tmp_path / "one" / "answers" / "local_nocaps").glob("A-VL*")), "captions") if CAPTIONS else ("-", "-")
    said = run(python, home, "tests/evaluation/paper_probe.py", home / "data", *told)
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert "broken_local_docvqa, document 2 cannot be asked (" in found["broken_local_docvqa"]
    assert found["broken_local_docvqa answered"] == "0 1", "nothing stands for the answer to the broken one"
    assert "document 2 cannot be scored by ocrbench_accuracy" in found["broken_local_ocrbench"]
    assert "holds a task file that cannot be read (" in found["torn"]
    assert "log in with `hf auth login` or set HF_TOKEN" in found["docvqa_val"]
    if not CAPTIONS:
        pytest.skip("there is no java: captions were not asked for and CIDEr was not computed; everything else is right")
    ours, theirs = found["cider"]
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert 100 * ours == pytest.approx(one["local_nocaps", "A-VL S=45 C=30 K=3 P=90 T=60"]["ours"], abs=0.01)


def killed_after(python: Path, home: Path, arguments: list[object], file: Path) -> None:
    """Start a process, and kill it as soon as a file is there."""
    command = [str(python), *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as begun:
        deadline = time.monotonic() + 300
        while not file.exists():
            assert begun.poll() is None, "it ended before a cell was complete"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begun.kill()
