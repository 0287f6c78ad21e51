"""Tables, sentences and plots from a result's JSON; the README's table against the committed results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avl import charts
from avl.bench import plots, report

ROOT = Path(__file__).resolve().parents[2]
BATCHES = (1, 8, 64)
TIMES = {"full": (4.0, 6.0, 27.0), "avl": (4.2, 5.9, 13.0)}
FLOORS = {"full": (3.4, 6.0, 26.5), "avl": (3.2, 4.2, 12.0)}


def spread(value, width=0.02):
    return {"median": value, "q1": value * (1 - width), "q3": value * (1 + width)}


@pytest.fixture
def result():
    """A result of two arms over three batches, written by hand: A-VL loses at batch 1, is level at 8 and wins at 64."""
    rows = []
    for place, batch in enumerate(BATCHES):
        for arm in ("full", "avl"):
            ms, floor = TIMES[arm][place], FLOORS[arm][place]
            row = {
                "batch": batch, "arm": arm, "ttft_ms": spread(70.0 * batch), "tpot_ms": spread(ms), "step_mean_ms": ms,
                "step_p99_ms": ms * 1.5, "tokens_per_s": 1e3 * batch / ms, "stored_bytes": 1.5e9 * batch, "read_bytes": 1.4e9 * batch,
                "kv_peak_bytes": 1.6e9 * batch, "kv_peak_ratio": 1.02, "torch_peak_bytes": 20e9, "floor_ms": floor,
                "floor_share": floor / ms, "ratio": None,
            }  # fmt: skip
            if arm == "avl":
                row["ratio"] = spread(TIMES["full"][place] / ms) | {"to": "full"}
                row["floor_ratio"] = FLOORS["full"][place] / floor
                row |= {"core_ms": spread(ms * 0.9), "core_floor_ms": floor, "update_ms": spread(ms * 1.2), "update_floor_ms": floor}
            rows.append(row)
    floors = {arm: {str(batch): FLOORS[arm][place] for place, batch in enumerate(BATCHES)} for arm in TIMES}
    return {
        "schema": "avl.bench/1", "date": "2026-01-02T03:04:05+00:00", "evidence": "gpu",
        "machine": {"gpu": "Some GPU", "cpu": "Some CPU", "threads": 1, "cores": 2, "python": "3.12", "torch": "2.11", "triton": "3.6"},
        "model": {"name": "llava-1.6-7b", "weights": "random", "dtype": "bfloat16", "device": "cuda"},
        "request": {"n_image": 2928, "n_text": 65, "new_tokens": 128}, "implementation": "triton", "repeats": 5,
        "arms": {"full": {"label": "Full attention"}, "avl": {"label": "A-VL S=45 C=30 K=3 T=70"}},
        "bandwidth": {"copy": 4300.0, "triad": 4100.0, "read": 4400.0, "tflops": 780.0},
        "roofline": {
            "weight_bytes": 13.2e9,
            "arms": {arm: {"stored_bytes": 1.5e9, "read_bytes": 0.6e9, "floor_ms": floors[arm]} for arm in TIMES},
        },
        "rows": rows,
        "skipped": [{"batch": 128, "arm": "full", "reason": "predicted to need 300.0 GB beside the weights, 120.0 GB are free"}],
        "references": [{"batch": 1, "name": "HF generate, DynamicCache", "ttft_ms": spread(90.0), "tpot_ms": spread(21.0)},
                       {"batch": 1, "name": "HF generate, static cache", "tpot_ms": None, "note": "RuntimeError: no"}],
        "largest": {"full": {"predicted": 67, "confirmed": 70, "tokens_per_s": 2400.0},
                    "avl": {"predicted": 118, "confirmed": None, "tokens_per_s": None}},
    }  # fmt: skip


def test_tables_show_every_measured_number(result):
    text = report.tables(result)
    assert "| 1 | full attention | 70.00 | 4.00 | 6.00 | 250.0 |  | 3.40 | 85% | 1.50 GB | 1.40 GB | 1.60 GB | 20.00 GB |" in text
    assert "| 64 | A-VL | 4480 | 13.00 | 19.50 | 4923 | 2.08 (2.04–2.12) |" in text
    assert "| 1 | HF generate, DynamicCache | 90.00 | 21.00 | 5.00 |" in text
    assert "RuntimeError: no" in text
    assert "| full attention | 67 | 70 | 2400 |" in text
    assert "| 1 | A-VL | 3.78 | 3.20 | 5.04 | 3.20 |" in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")
    for hardware in ("Some GPU", "bfloat16", "2928 image + 65 text tokens", "128 new tokens", "2026-01-02", "random weights"):
        assert hardware in text


def test_it_says_where_a_vl_does_not_pay(result):
    lines = report.sentences(result)
    assert lines[0].startswith("A-VL at batch 1 does not pay: a token takes 1.05 times as long as with full attention")
    assert lines[1].startswith("A-VL at batch 8 takes about as long as full attention")
    assert not any("batch 64" in line for line in lines)
    assert "Batch 128, full attention: skipped" in lines[2]


def test_header_names_bandwidth_floor_and_machine(result):
    text = report.header(result)
    assert "copy 4300.0, triad 4100.0, read 4400.0" in text
    assert "3.400 ms at batch 1" in text
    assert "CPU" not in text
    assert "No GPU" in report.header(result | {"evidence": "cpu"})


def test_draw_writes_plots_that_stay_within_their_margins(result, tmp_path):
    files = plots.draw(result, tmp_path / "new")
    assert [file.name for file in files] == ["kv.png", "tpot.png", "ratio.png"]
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert pixels.shape == (plots.HEIGHT, plots.WIDTH, 3)
        assert (pixels[:, -4:] == 255).all(), "something runs out of the picture on the right"
        assert (pixels[-2:] == 255).all(), "something runs out of the picture at the bottom"
    tpot = np.asarray(Image.open(files[1]).convert("RGB")).reshape(-1, 3)
    for color in charts.PALETTE[:2]:
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (tpot == wanted).all(axis=1).sum() > 100


def test_plots_of_one_policy_and_of_nothing(result, tmp_path):
    alone = result | {"rows": [row for row in result["rows"] if row["arm"] == "full"]}
    assert [file.name for file in plots.draw(alone, tmp_path)] == ["kv.png", "tpot.png"]
    assert [file.name for file in plots.draw(result | {"rows": []}, tmp_path)] == ["kv.png"]


def test_render_replaces_what_stands_between_the_markers(result):
    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.render(readme, [result])
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert report.render(once, [result]) == once
    assert once.count("| batch | policy |") < report.render(once, [result, result]).count("| batch | policy |")
    for broken in ("nothing", report.BEGIN, report.END + report.BEGIN, readme + readme):
        with pytest.raises(ValueError, match="needs the lines"):
            report.render(broken, [result])


def committed():
    """The results of this benchmark under assets/bench, by name."""
    found = []
    for path in sorted((ROOT / "assets" / "bench").glob("*.json")):
        read = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(read, dict) and read.get("schema") in ("avl.bench/1", "avl.widths/1"):
            found.append(read)
    return found


def test_readme_shows_the_committed_results():
    results = committed()
    if not results:
        pytest.skip("no result of python -m avl bench is committed under assets/bench")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == report.render(readme, results), "run: python -m avl bench --render README.md assets/bench/bench-*.json"


def test_without_matplotlib_nothing_is_measured_before_it_is_missed(monkeypatch, capsys, tmp_path):
    from avl import cli

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["bench", "--device", "cpu", "--plots", str(tmp_path)]) == 1
    assert cli.main(["eval-sweep", "--device", "cpu", "--out", str(tmp_path)]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("drawing needs matplotlib, which is not installed") == 2
