"""What-if predictions: by hand, against the README's table, the laws of time and memory, data sheets, committed results, bad input."""

from __future__ import annotations

import json
import re

import pytest
from test_roofline import GAINS, PAPER

import avl
from avl._paths import ASSETS
from avl.bench import hardware
from avl.bench.hardware import GPUS, Machine, gpu_called, measured
from avl.bench.roofline import Sizes
from avl.bench.what_if import LEFT_OUT, MODELS, PEAKS, Model, committed, known, machine_called, preset, what_if
from avl.policies import PromptShape
from avl.policies.cost import mean_cost

# a token's K and V: 2 * 2 * 8 * 4 = 128 bytes in each of two layers; weights of a layer 2048 + 1024 + 6144, head 3200
TOY = Model("toy", "Toy", Sizes(layers=2, heads=4, kv_heads=2, head_dim=8, hidden=32, ffn=64, vocab=100, itemsize=4), 30_000, 100)
SLOW = Machine("slow", "Slow", 1e6, 1e9, 10e6, "made up", "slow")


def test_a_step_by_hand():
    found = what_if(TOY, SLOW, [3], n_text=10, new_tokens=3, policy=avl.AVL(S=40, C=20, K=2))
    weights = (2 * 9216 + 3200) * 4
    assert found["model"]["step_bytes"] == weights
    row = found["rows"][0]
    full, policy = row["full"], row["policy"]
    # two decode steps: full attention reads 111 and 112 tokens a layer; A-VL reads 20 + 11, then at the update 40 + 12
    kv_full, kv_policy = 3 * 2 * 111.5 * 128, 3 * 2 * (31 + 52) / 2 * 128
    scores = 3 * 2 * (0 + 40) / 2 * 4 * 8
    assert full["read_bytes"] == pytest.approx(kv_full)
    assert policy["read_bytes"] == pytest.approx(kv_policy)
    assert full["ms"] == pytest.approx((weights + kv_full) / 1e3)
    assert policy["ms"] == pytest.approx((weights + kv_policy + scores) / 1e3)
    for one in (full, policy):
        assert one["ms"] == pytest.approx(one["weights_ms"] + one["kv_ms"] + one["scores_ms"])
        assert one["tokens_per_s"] == pytest.approx(3000 / one["ms"])
    assert row["speedup"] == pytest.approx(full["ms"] / policy["ms"])
    assert full["kv_bytes"] == 3 * 2 * (110 + 3) * 128
    assert policy["kv_bytes"] == 3 * 2 * (40 + 10 + 3) * 128
    assert found["weights"] == {"bytes": 120_000, "fits": True}
    assert 0.9 < kv_full / weights < 1
    assert full["bound"] == policy["bound"] == "weights"
    assert what_if(TOY, SLOW, [4], n_text=10, new_tokens=3)["rows"][0]["full"]["bound"] == "kv"


@pytest.mark.parametrize("name", GAINS)
def test_speedups_are_those_of_the_readme(name):
    _, n_image, kib, gains = GAINS[name]
    found = what_if(known(name), GPUS["h100"], policy=PAPER)
    assert found["request"]["n_image"] == n_image
    assert found["model"]["token_bytes"] == kib * 1024
    assert [row["speedup"] for row in found["rows"]] == pytest.approx(gains, abs=0.006)


@pytest.mark.parametrize("name", MODELS)
def test_time_and_memory_grow_with_batch_and_picture(name):
    found = what_if(known(name), GPUS["a100-80"], [1])
    for curve, key in (("over_batch", "batch"), ("over_image", "n_image")):
        rows = found[curve]
        assert [row[key] for row in rows] == sorted({row[key] for row in rows})
        assert len(rows) >= 9
        for arm in ("full", "policy"):
            for field in ("ms", "kv_bytes", "need_bytes", "read_bytes"):
                values = [row[arm][field] for row in rows]
                assert values == sorted(values), (curve, arm, field)
        assert all(row["policy"]["ms"] <= row["full"]["ms"] for row in rows)
        assert all(row["policy"]["kv_bytes"] <= row["full"]["kv_bytes"] for row in rows)
    speedups = [row["speedup"] for row in found["over_image"]]
    assert speedups == sorted(speedups)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.6-13b", "llava-1.6-34b", "gemma-3-12b"])
def test_the_largest_batch_fits_and_one_more_does_not(name, gpu):
    found = what_if(known(name), GPUS[gpu])
    for arm in ("full", "policy"):
        most = found["largest"][arm]["batch"]
        around = [batch for batch in (most, most + 1) if 1 <= batch <= 4096]
        rows = {row["batch"]: row[arm] for row in what_if(known(name), GPUS[gpu], around)["rows"]} if around else {}
        assert most == 0 or rows[most]["fits"]
        assert most >= 4096 or not rows[most + 1]["fits"]
        if most:
            assert found["largest"][arm]["tokens_per_s"] == pytest.approx(rows[most]["tokens_per_s"])
    assert found["largest"]["policy"]["batch"] >= found["largest"]["full"]["batch"]
    if not found["largest"]["full"]["batch"]:
        assert found["largest"]["ratio"] is None


def test_what_bounds_a_step():
    rows = {row["batch"]: row for row in what_if(known("llava-1.5-7b"), GPUS["t4"], [1, 4096], n_image=64, n_text=1, new_tokens=2)["rows"]}
    assert rows[1]["full"]["bound"] == "weights"
    assert rows[4096]["full"]["bound"] in ("compute", "kv")
    # 2 operations a weight and row, at 65 TFLOP/s
    assert rows[4096]["full"]["weights_ms"] == pytest.approx(1e3 * 2 * known("llava-1.5-7b").sizes.step_weights * 4096 / 65e12)
    grouped = what_if(known("qwen2.5-vl-7b"), GPUS["t4"], [4096], n_image=64, n_text=1, new_tokens=2)["rows"][0]
    assert grouped["full"]["bound"] == "compute", "little is read per row, so multiplying takes longest"
    assert what_if(known("llava-1.6-7b"), GPUS["h100"], [64])["rows"][0]["full"]["bound"] == "kv"


def test_weights_that_do_not_fit_are_said():
    found = what_if(known("llava-1.6-34b"), GPUS["rtx-4090"])
    assert found["weights"]["fits"] is False
    assert found["largest"]["policy"]["batch"] == 0
    assert re.search(r"weights alone take 69\.5 GB, and RTX 4090 24 GB has 24 GB", found["notes"][0])
    assert not any(row["full"]["fits"] for row in found["rows"])


def test_a_prompt_that_is_too_long_for_the_model_is_said():
    assert what_if(known("llava-1.5-7b"), GPUS["h100"])["notes"] == []
    assert "4,096" in what_if(known("llava-1.5-7b"), GPUS["h100"], n_image=5000)["notes"][0]


def test_what_is_left_out_is_said():
    assert what_if(TOY, SLOW)["left_out"] == [*LEFT_OUT, PEAKS]
    unnamed = Machine("x", "X", 1e6, 1e9, 10e6, "measured")
    assert what_if(TOY, unnamed)["left_out"] == list(LEFT_OUT), "measured rates are no peaks"


def test_it_is_json_and_quick_even_at_its_limits():
    found = what_if(known("llava-1.6-34b"), GPUS["h200"], range(1, 33), new_tokens=1024, policy=avl.PyramidKV(keep=50))
    assert json.loads(json.dumps(found, allow_nan=False))["rows"][0]["batch"] == 1
    assert "pattern" not in found["machine"]


@pytest.mark.parametrize("policy", [avl.H2O(keep=50), avl.FastV(), avl.StreamingLLM(keep=30), avl.Full()], ids=str)
def test_any_policy_can_be_asked_about(policy):
    found = what_if(known("llava-1.6-7b"), GPUS["h100"], [8], policy=policy)
    shape = PromptShape(2928, 65, 128, 32)
    assert found["rows"][0]["policy"]["read_bytes"] == pytest.approx(8 * mean_cost(policy, shape).read * 16384)
    assert found["request"]["policy"]["name"] == policy.name


def test_the_paper_sets_the_policy_where_none_is_named():
    assert what_if(known("llava-1.5-7b"), GPUS["h100"])["request"]["policy"] == avl.PRESETS["llava-1.5-7b"].to_dict()
    assert preset("qwen2.5-vl-7b") == avl.PRESETS["llava-1.5-13b"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batches": []}, "0 values"),
        ({"batches": range(1, 40)}, "39 values"),
        ({"batches": [0]}, "batch=0"),
        ({"batches": [4097]}, "batch=4097"),
        ({"batches": [1.5]}, "batch=1.5"),
        ({"batches": "8"}, "not a list"),
        ({"batches": 8}, "not a list"),
        ({"n_image": -1}, "image_tokens=-1"),
        ({"n_image": 10**6}, "image_tokens"),
        ({"n_text": 0}, "text_tokens=0"),
        ({"new_tokens": 1}, "new_tokens=1"),
        ({"new_tokens": 10**9}, "new_tokens"),
        ({"policy": avl.FastV(layer=40)}, "layer"),
    ],
    ids=str,
)
def test_what_cannot_be_predicted_is_one_sentence(options, said):
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        what_if(known("llava-1.5-7b"), GPUS["h100"], **options)
    assert "\n" not in str(raised.value)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"not known: use llava-1\.5-7b"):
        known("gpt")
    for name in ("gtx", None, ["h100"]):
        with pytest.raises(ValueError, match=r"there is no GPU .*: use t4, l4"):
            machine_called(name)


def test_sizes_of_the_bundled_model_and_of_the_largest_one():
    model, _ = avl.load("tiny")
    assert known("tiny").parameters == sum(one.numel() for one in model.parameters())
    large = known("llava-1.6-34b")
    sizes, hidden = large.sizes, large.sizes.hidden
    tower, projector = 303_507_456, 1024 * hidden + hidden + hidden * hidden + hidden
    rest = sizes.vocab * hidden + (2 * sizes.layers + 1) * hidden + hidden
    assert large.parameters == pytest.approx(sizes.step_weights + rest + tower + projector, rel=1e-4)
    # the same sum gives the published count of a checkpoint whose config we have
    seven = known("llava-1.6-7b")
    hidden = seven.sizes.hidden
    rest = seven.sizes.vocab * hidden + (2 * seven.sizes.layers + 1) * hidden + hidden
    assert seven.parameters == pytest.approx(seven.sizes.step_weights + rest + tower + 1024 * hidden + hidden**2 + 2 * hidden, rel=1e-4)


def test_data_sheets_are_plausible_and_named():
    for gpu in GPUS.values():
        assert gpu.source.startswith("NVIDIA")
        assert 3e11 <= gpu.bytes_per_s <= 5e12
        assert 30 <= gpu.flops / gpu.bytes_per_s <= 450, "operations a byte"


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("Tesla T4", "t4"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"), ("NVIDIA A10G", "a10g"), ("NVIDIA A40", "a40"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"), ("NVIDIA A100 80GB PCIe", "a100-80"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None), ("NVIDIA H200", "h200"), ("NVIDIA A10", None), ("Intel(R) Xeon(R) Processor", None),
    ],
)  # fmt: skip
def test_gpus_are_found_by_their_drivers_names(driver, name):
    found = gpu_called(driver)
    assert (found.name if found else None) == name


def test_committed_results_are_points_of_their_model_and_machine():
    file = json.loads((ASSETS / "bench" / "bench-tiny-cpu.json").read_text())
    found = what_if(known("tiny"), machine_called("bench-tiny-cpu"), [1, 8], n_text=11)
    assert len(found["measured"]) == len(file["rows"])
    for point, row in zip(found["measured"], file["rows"], strict=True):
        assert (point["batch"], point["ms"]) == (row["batch"], row["tpot_ms"]["median"])
        assert point["low"] <= point["ms"] <= point["high"]
        assert point["same_prompt"]
    assert found["machine"]["bytes_per_s"] == pytest.approx(file["bandwidth"]["copy"] * 1e9)
    assert not any(point["same_prompt"] for point in what_if(known("tiny"), machine_called("bench-tiny-cpu"))["measured"])
    assert what_if(known("tiny"), GPUS["h100"])["measured"] == []
    assert what_if(known("llava-1.5-7b"), machine_called("bench-tiny-cpu"))["measured"] == []


def test_a_result_of_a_gpu_belongs_to_its_data_sheet_too(tmp_path, monkeypatch):
    result = json.loads((ASSETS / "bench" / "bench-tiny-cpu.json").read_text())
    result["machine"] |= {"gpu": "NVIDIA H100 80GB HBM3", "gpu_memory_bytes": 85e9}
    result["model"]["name"] = "llava-1.6-7b"
    (tmp_path / "bench-h100.json").write_text(json.dumps(result))
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "list.json").write_text("[]")
    monkeypatch.setattr("avl.bench.what_if.committed", lambda: tuple(measured(tmp_path)))
    for machine in ("h100", "bench-h100"):
        assert len(what_if(known("llava-1.6-7b"), machine_called(machine))["measured"]) == len(result["rows"])
    assert what_if(known("llava-1.6-7b"), machine_called("h200"))["measured"] == []
    assert machine_called("bench-h100").memory_bytes == 85e9


def test_without_a_folder_of_results_there_are_none(tmp_path):
    assert measured(tmp_path / "none") == []
    assert hardware.BENCHES.name == "bench"
    assert committed()
