"""The benchmark runs end to end without a GPU, checks what it times, and ends with one line of JSON."""

import json
from pathlib import Path

import pytest
import torch

from avl.kernels.bench import __main__ as command
from avl.kernels.bench import attention, baselines, cases

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="tries the path without a GPU")
SMALL = cases.Shape("tiny", 4, 2, 16, 40, 8, 20)


@CPU_ONLY
@pytest.mark.parametrize("layout", ["tokens", "heads"])
def test_bench_without_a_gpu_runs_end_to_end(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CPU_SHAPES", (SMALL,))
    monkeypatch.setattr(command, "measure_bandwidth", lambda *_: {"copy": 1.0, "triad": 1.0, "read": 1.0})
    file = tmp_path / "bench.json"
    grad = torch.is_grad_enabled()
    try:
        command.main(["--quick", "--layout", layout, "--json", str(file), "--batch", "1", "3"])
    finally:
        torch.set_grad_enabled(grad)
    printed = capsys.readouterr().out
    assert "say nothing about a GPU" in printed
    result = json.loads(printed.splitlines()[-1])
    assert result == json.loads(file.read_text())
    assert result["evidence"].startswith("none")
    assert result["machine"]["implementation"] == "numba"
    names = {row["name"] for row in result["rows"]}
    assert {"core attention, text scores", "full: SDPA", "slice, then SDPA", "FlashInfer, page size 1", "SGLang decode"} <= names
    for row in result["rows"]:
        if row["us"] is None:
            assert row["note"], row
        else:
            assert row["us_min"] <= row["us"] <= row["us_max"]
    timed = {row["name"] for row in result["rows"] if row["us"] is not None}
    assert {"core attention", "core attention, text scores", "full: SDPA", "slice, then SDPA"} <= timed
    assert list(result["shapes"][0]) == ["name", "heads", "groups", "size", "slots", "text", "core"]  # the schema's keys
    assert [row["batch"] for row in result["ratios"]] == [1, 3]
    assert [row["name"] for row in result["layer_rows"][5:]] == [
        *("begin a step", "add and norm", "rotate and store", "SiLU product", "window, 32 layers")
    ]
    assert all(row["us"] > 0 and row["torch_us"] > 0 for row in result["layer_rows"])


def test_bench_wrong_result_gets_no_time() -> None:
    data = cases.Data(SMALL, 2, torch.device("cpu"), torch.float32, "tokens", 0)
    liar = baselines.Baseline("liar", lambda data, i: lambda: torch.zeros_like(data.query[i]))
    (row,) = attention.bench(data, [liar], torch.device("cpu"), 1, 1e-4)
    assert row["us"] is None
    assert "wrong result" in row["note"]


def test_moved_bytes_are_those_of_the_formula() -> None:
    """LLaVA-1.6-7B at batch 1: a core step reads about 16 MB per layer, the full cache about 49 MB (bfloat16)."""
    shape, dtype = cases.GPU_SHAPES[1], torch.bfloat16
    assert cases.kv_bytes(shape, 1, 993, dtype) == 993 * 2 * 32 * 128 * 2
    with_scores, without = (cases.moved_bytes(shape, 1, 993, dtype, columns=columns) for columns in (993, 0))
    assert with_scores - without == 993 * 32 * 8
    assert cases.moved_bytes(shape, 1, 3009, dtype, indexed=False) == cases.kv_bytes(shape, 1, 3009, dtype) + 2 * 32 * 128 * 2


def test_data_copies_exceed_the_cache_to_be_flushed() -> None:
    data = cases.Data(SMALL, 1, torch.device("cpu"), torch.float32, "tokens", 50_000)
    assert data.copies * cases.kv_bytes(SMALL, 1, SMALL.core, torch.float32) >= 50_000
    assert all(len(copies) == data.copies for copies in (data.query, data.key, data.value, *data.index.values()))
