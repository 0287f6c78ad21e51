"""The benchmark end to end at small sizes: the result's schema, the command's output, skips, bad input."""

from __future__ import annotations

import json
import types

import pytest
import torch
from fake_cuda import install

import avl
from avl import cli
from avl.attention.attachment import is_attached
from avl.bench import benchmark as bench
from avl.bench import measure

SMALL = ["--random-weights", "llava-1.6-mistral-7b", "--scale", "0.03", "--device", "cpu", "--repeats", "2", "--new-tokens", "8"]
USUAL = ("full", "evict", "avl")
ROW = {
    "batch", "arm", "ttft_ms", "prepare_ms", "tpot_ms", "step_mean_ms", "step_p99_ms", "tokens_per_s", "stored_bytes", "read_bytes",
    "kv_peak_bytes", "kv_peak_ratio", "torch_peak_bytes", "floor_ms", "floor_share", "ratio",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """Bandwidth and product are measured elsewhere, on sizes that would be most of these tests' time."""
    bandwidth = {"copy": 10.0, "triad": 11.0, "read": 12.0, "tflops": 0.1}
    monkeypatch.setattr(bench, "measure_rates", lambda *_: (bandwidth, bench.roofline.Rates(1e10, 1e11)))


def small():
    """The subject that SMALL asks for."""
    return bench.made("llava-1.6-mistral-7b", 8, scale=0.03, device="cpu")


def measured(*batches, policies=USUAL, **options):
    subject = small()
    return bench.benchmark(subject, bench.parse_arms(policies, subject), batches, 2, references=False, say=lambda _: None, **options)


def test_the_command_ends_with_one_json_line(capsys, tmp_path):
    file, folder = tmp_path / "kept" / "result.json", tmp_path / "plots"
    assert cli.main(["bench", *SMALL, "--batch", "1", "2", "--json", str(file), "--plots", str(folder)]) == 0
    output = capsys.readouterr().out
    result = json.loads(output.splitlines()[-1])
    assert result == json.loads(file.read_text())
    assert {path.name for path in folder.iterdir()} == {"kv.png", "tpot.png", "ratio.png"}
    assert "roofline at copy bandwidth" in output
    assert "| batch | policy |" in output

    assert result["schema"] == "avl.bench/1"
    assert result["evidence"].startswith("cpu")
    assert {"date", "machine", "model", "request", "implementation", "repeats", "arms", "bandwidth", "roofline"} <= set(result)
    assert {"rows", "skipped", "references", "largest"} <= set(result)
    assert result["request"] == {"n_image": 88, "n_text": 65, "new_tokens": 8}
    assert [(row["batch"], row["arm"]) for row in result["rows"]] == [(b, arm) for b in (1, 2) for arm in ("full", "evict", "avl")]
    for row in result["rows"]:
        assert set(row) >= ROW
        assert row["tpot_ms"]["q1"] <= row["tpot_ms"]["median"] <= row["tpot_ms"]["q3"]
        assert row["kv_peak_ratio"] > 0.9
        assert (row["ratio"] is None) == (row["arm"] == "full")
        assert ("core_ms" in row) == (row["arm"] == "avl")
    stored = {row["arm"]: row["stored_bytes"] for row in result["rows"] if row["batch"] == 2}
    assert stored["avl"] == stored["evict"] < stored["full"]
    assert result["arms"]["avl"]["policy"]["T"] == 70
    assert len(result["references"]) == 4
    assert all(entry["tpot_ms"]["median"] > 0 for entry in result["references"])
    assert set(result["largest"]["avl"]) == {"predicted", "confirmed", "tokens_per_s"}
    assert result["largest"]["avl"]["confirmed"] is None
    assert "/" not in result["model"]["name"]


@pytest.mark.parametrize("decode", ["eager", "graphs"])
def test_the_bundled_model_is_measured_with_either_decoder(capsys, decode):
    small = ["--new-tokens", "6", "--repeats", "1", "--batch", "1", "--policies", "full", "avl", "--no-references", "--decode", decode]
    assert cli.main(["bench", "--model", "tiny", "--device", "cpu", *small]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["model"]["name"] == "tiny"
    assert result["decode"] == decode
    assert all(row["prepare_ms"]["median"] == 0 for row in result["rows"]), "nothing is captured on a CPU"
    assert result["model"]["weights"] == "loaded"
    assert result["request"]["n_image"] == 576
    assert result["arms"]["avl"]["policy"] == avl.AVL(S=45, C=30, K=3, T=50).to_dict()


def test_what_does_not_fit_is_skipped_with_a_reason(monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 150_000)
    result = measured(1, 40)
    assert {row["batch"] for row in result["rows"]} <= {1}
    assert {gap["arm"] for gap in result["skipped"] if gap["batch"] == 40} == {"full", "evict", "avl"}
    assert all("GB are free" in gap["reason"] for gap in result["skipped"])
    assert any("skipped" in line for line in bench.report.sentences(result))


def test_an_arm_that_runs_out_of_memory_is_left_out(monkeypatch):
    real, alone = measure.run, measure.together

    def run(subject, inputs, arms, steps):
        if avl.Full() in arms:
            raise torch.OutOfMemoryError("no")
        return real(subject, inputs, arms, steps)

    monkeypatch.setattr(measure, "run", run)
    monkeypatch.setattr(measure, "together", lambda device, arms: alone(torch.device("cuda"), arms))
    result = measured(1, largest_batch=False)
    assert [row["arm"] for row in result["rows"]] == ["evict", "avl"]
    assert result["rows"][1]["ratio"]["to"] == "evict"
    assert "ran out of memory" in result["skipped"][0]["reason"]


def test_what_was_measured_stays_where_a_run_ends_before_its_time(monkeypatch, tmp_path, capsys):
    """The second cell fails: the first one is on disk, whole, and says that it is not all."""
    real, file = bench.compare, tmp_path / "result.json"

    def compare(subject, arms, batch, repeats, rates):
        if batch == 2:
            raise RuntimeError("an illegal memory access")
        return real(subject, arms, batch, repeats, rates)

    monkeypatch.setattr(bench, "compare", compare)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        cli.main(["bench", *SMALL, "--batch", "1", "2", "--no-references", "--json", str(file)])
    capsys.readouterr()
    result = json.loads(file.read_text())
    assert [(row["batch"], row["arm"]) for row in result["rows"]] == [(1, arm) for arm in USUAL]
    assert not result["finished"]
    assert [one.name for one in tmp_path.iterdir()] == [file.name]
    assert "The run ended before all was measured." in bench.report.sentences(result)
    monkeypatch.undo()
    assert measured(1, largest_batch=False)["finished"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_a_capture_that_runs_out_of_memory_skips_its_arm(error, monkeypatch):
    """As a prompt does: the other arms, and what was measured, stay."""
    install(monkeypatch)
    forward = measure.GraphDecoder._forward

    def fail(self):
        if isinstance(self._cache.policy, avl.Full):
            raise type(error)(*error.args)  # another one, which no parameter keeps with its frames
        return forward(self)

    monkeypatch.setattr(measure.GraphDecoder, "_forward", fail)
    subject = small()
    subject.graphs = True
    monkeypatch.setattr(measure, "together", lambda device, arms: [[arm] for arm in arms])
    result = bench.benchmark(subject, bench.parse_arms(USUAL, subject), [1], 1, references=False, largest_batch=False, say=lambda _: None)
    assert [row["arm"] for row in result["rows"]] == ["evict", "avl"]
    assert [gap["arm"] for gap in result["skipped"]] == ["full"]


def test_inputs_that_run_out_of_memory_skip_their_batch():
    subject = small()
    make = subject.make

    def full(batch):
        if batch == 2:
            raise torch.OutOfMemoryError("no")
        return make(batch)

    subject.make = full
    arms = bench.parse_arms(USUAL, subject)
    result = bench.benchmark(subject, arms, [1, 2], 1, references=False, largest_batch=False, say=lambda _: None)
    assert {row["batch"] for row in result["rows"]} == {1}
    assert [(gap["batch"], gap["arm"]) for gap in result["skipped"]] == [(2, arm) for arm in USUAL]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_arms_alternate_in_both_orders(device, monkeypatch):
    """A GPU's arms run by run, a CPU's step by step."""
    runs, steps = [], []
    real, step, turns = measure.run, measure._Answer.step, measure.together

    def run(subject, inputs, arms, count):
        runs.extend(policy.label for policy in arms)
        return real(subject, inputs, arms, count)

    def one(self):
        steps.append(self._policy.label)
        step(self)

    monkeypatch.setattr(measure, "run", run)
    monkeypatch.setattr(measure._Answer, "step", one)
    monkeypatch.setattr(measure, "together", lambda _, arms: turns(torch.device(device), arms))
    measured(1, policies=("full", "avl"), largest_batch=False)
    warm, first, second = runs[:2], runs[2:4], runs[4:]
    assert first == second[::-1]
    assert set(warm) == set(first)
    last = steps[-4:]
    assert len(set(last)) == (1 if device == "cuda" else 2)
    assert last[:2] == last[2:][::-1]


def test_largest_batch_is_found_by_trying(monkeypatch):
    """Where it can be tried: the search ends at the boundary, from a prediction that is too large or too small."""
    for predicted, limit in ((100, 83), (60, 83), (1, 1), (4, 0)):
        tried = []

        def run(subject, batch, policy, steps, limit=limit, tried=tried):
            tried.append(batch)
            if batch > limit:
                raise torch.OutOfMemoryError("no")
            return [types.SimpleNamespace(times=[2.0])]

        monkeypatch.setattr(measure, "run", run)
        monkeypatch.setattr(measure, "settle", lambda device: None)
        monkeypatch.setattr(measure, "free_bytes", lambda device: 0)
        monkeypatch.setattr(measure.roofline, "largest_batch", lambda *_, predicted=predicted: predicted)
        shape = types.SimpleNamespace(max_new_tokens=8)
        subject = types.SimpleNamespace(device=torch.device("cuda"), sizes=None, shape=shape, make=lambda batch: batch)
        found = measure.largest(subject, avl.Full())
        assert len(tried) <= 8
        if limit == 0:
            assert found["confirmed"] is None
        else:
            assert found["confirmed"] <= limit
            assert found["confirmed"] >= 0.95 * limit
            assert found["tokens_per_s"] == 500 * found["confirmed"]


def test_reference_leaves_the_model_attached():
    subject = small()
    subject.model.generation_config.eos_token_id = 2
    entry = measure.reference(subject, 1, static=False, repeats=1)
    assert entry["tpot_ms"]["median"] > 0
    assert is_attached(subject.model)
    assert subject.model.generation_config.eos_token_id == 2


def test_time_per_token_weighs_the_kinds_of_step():
    done = measure.Run(1.0, 0.0, 0, None, 0, 0, times=[1.0, 1.0, 4.0, 1.0, 90.0, 4.0], updates=[False, False, True] * 2)
    assert done.tpot_ms == pytest.approx((4 * 1.0 + 2 * 4.0) / 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "best"], "there is no policy 'best'"),
        (["--policies", "avl:S=full"], "S='full' is out of range"),
        (["--policies", "avl:Q=3"], "A-VL has no parameter 'Q'"),
        (["--policies", "avl:S=30,C=40"], "C=40 is out of range"),
        (["--new-tokens", "2"], "--new-tokens is at least 4"),
        (["--batch", "0"], "--repeats and --batch at least 1"),
        (["--dtype", "fp7"], "dtype='fp7' is unknown"),
    ],
)
def test_bad_options_are_refused_by_name(arguments, message, capsys):
    assert cli.main(["bench", *SMALL, *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen3-vl-8b", "gemma-3-12b"])
def test_models_of_other_families_are_measured(name, capsys):
    """With their own inputs; and it is said that the paper's settings are another model's."""
    options = ["--scale", "0.02", "--picture", "100x70", "--device", "cpu", "--repeats", "1", "--new-tokens", "8", "--no-largest"]
    assert cli.main(["bench", "--random-weights", name, *options, "--batch", "2"]) == 0
    said = capsys.readouterr()
    assert "The A-VL paper did not measure this model" in said.err
    result = json.loads(said.out.splitlines()[-1])
    assert [row["arm"] for row in result["rows"]] == ["full", "evict", "avl"]
    assert all(row["tpot_ms"]["median"] > 0 for row in result["rows"])
    assert result["references"]


def test_nothing_is_said_of_the_papers_own_models(capsys):
    assert bench.paper_note(small()) is None


@pytest.mark.parametrize("size", ["672", "672x", "672x672x3", "wide", ""])
def test_a_picture_size_that_is_none(size, capsys):
    assert cli.main(["bench", *SMALL, "--picture", size]) == 2
    assert f"{size!r} is not WIDTHxHEIGHT, such as 1024x768" in capsys.readouterr().err
