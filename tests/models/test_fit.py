"""What cannot work is told from a config, before weights are fetched or read. Sizes are real, memory is made up."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from random_models import shared_model

import avl
from avl import telemetry
from avl.engine.fusable import why_not
from avl.models import loading, memory, random_weights
from avl.models.memory import GIB, Need
from avl.models.source import Source

TOO_OLD = "The NVIDIA driver on your system is too old (found version 12090)."


@pytest.fixture
def ask(monkeypatch):
    """``ask(ram=15, gpus=[12], device="cpu")`` -> what is said instead of loading a 7B model; None where it would be fetched and loaded."""

    class FetchedError(Exception):
        pass

    def fetched(*_):
        raise FetchedError

    monkeypatch.setattr(loading, "_config", lambda _: random_weights.config("llava-1.5-7b"))
    monkeypatch.setattr(loading, "_processor", fetched)

    def run(ram=64.0, gpus=(), **options):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        monkeypatch.setattr(memory, "free_bytes", lambda place: int(GIB * (ram if place.type == "cpu" else gpus[place.index or 0])))
        with pytest.raises((ValueError, FetchedError)) as told:
            avl.load("llava-1.5-7b", **options)
        assert "\n" not in str(told.value)
        return str(told.value) if told.type is ValueError else None

    return run


def test_a_large_model_never_takes_the_cpu_unasked(ask):
    """float32 by default: 26 GiB and seconds per token."""
    told = ask()
    assert "llava-1.5-7b has 7.1 billion parameters and no GPU can be used here" in told
    assert "27.6 GiB in float32" in told
    assert "device='cpu'" in told
    assert "--dtype" in told
    for options in ({"device_map": "auto"}, {"dtype": "fp32"}, {"dtype": "bf16"}):
        assert "no GPU can be used here" in ask(**options)
    told = ask(device="cpu")
    assert "has 7.1 billion parameters: on a CPU it takes 27.6 GiB" in told
    assert ask(device="cpu", dtype="fp32") is None
    assert ask(device=torch.device("cpu"), dtype=torch.bfloat16) is None
    assert ask(gpus=[40]) is None


def test_a_model_that_does_not_fit_is_told_with_numbers(ask):
    told = ask(ram=15, device="cpu", dtype="fp32")
    assert "its 7.1 billion parameters take 26.3 GiB in float32" in told
    assert "1024 tokens of cache with room to work 1.2 GiB, but 15.0 GiB of main memory are free" in told
    assert "--dtype bf16" in told
    assert ask(ram=15, device="cpu", dtype="bf16") is None
    told = ask(ram=13, device="cpu", dtype="bf16")
    assert "take 13.2 GiB in bfloat16" in told
    assert "bf16)" not in told, "it is that already"


def test_memory_of_gpus_is_what_counts_there(ask):
    """The weights go straight to the GPU: main memory may be smaller."""
    assert ask(ram=4, gpus=[16]) is None
    told = ask(gpus=[12])
    assert "12.0 GiB of the memory of cuda are free" in told
    assert "device-map" not in told
    assert "--device-map auto" in ask(gpus=[12, 12])
    assert ask(gpus=[12, 12], device_map="auto") is None
    assert "10.0 GiB of the memory of 2 GPUs are free" in ask(gpus=[5, 5], device_map="auto")
    assert ask(gpus=[12, 24], device="cuda:1") is None
    assert loading._straight_to(torch.device("cuda", 1)) == {"": torch.device("cuda", 1)}
    assert loading._straight_to(torch.device("cpu")) is None


def test_a_plan_of_the_caller_s_own_is_not_judged_and_zero_gpu_neither(ask, monkeypatch):
    assert ask(ram=1, device_map={"": "cpu"}) is None
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    assert ask(ram=1, gpus=[1]) is None
    assert loading._straight_to(torch.device("cuda")) is None, "its library moves the whole model"


def test_sizes_come_from_the_config_alone():
    model = shared_model("next-llama")
    need = Need.of(model.config, torch.float16)
    assert need.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert need.weights == 2 * need.parameters
    assert need.work == need.weights // 8


def test_a_config_that_no_model_can_be_made_of_is_left_to_from_pretrained():
    memory.check_memory(Source("x", "x"), object(), "cpu", torch.device("cpu"), "auto", torch.float32, None)


# ------------------------------------------------------------------------------------------------------------- a CUDA build without a GPU


@pytest.fixture
def too_old(monkeypatch):
    """A CUDA build of torch on a machine whose driver is too old."""

    def fail():
        raise RuntimeError(TOO_OLD + " Please update your GPU driver\nor go away.")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)


def test_a_cuda_build_without_a_gpu_says_so(too_old, caplog):
    with caplog.at_level(logging.WARNING):
        model, _ = avl.load("tiny")
    assert model.device.type == "cpu"
    assert re.search(
        r"CUDA build, but no GPU can be used \(The NVIDIA driver on your system is too old \(found version 12090\)", caplog.text
    )
    caplog.clear()
    avl.load("tiny", device="cpu")
    assert not caplog.records, "that was asked for"
    with pytest.raises(ValueError, match=r"device='cuda' cannot be used, though torch is a CUDA build \(The NVIDIA driver.*too old"):
        avl.load("tiny", device="cuda")


def test_a_large_model_hears_the_driver_s_reason(too_old, ask):
    assert "no GPU can be used here (The NVIDIA driver on your system is too old" in ask()


def test_other_builds_have_no_trouble(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert telemetry.gpu_trouble() is None
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert telemetry.gpu_trouble() is None


# ------------------------------------------------------------------------------------------------------------- a container's own memory


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_s_limit_counts(version, monkeypatch, tmp_path):
    """psutil sees the machine around it, where there is more."""
    monkeypatch.setattr(telemetry, "PROC", tmp_path / "proc")
    monkeypatch.setattr(telemetry, "CGROUPS", tmp_path / "groups")
    free, total = telemetry.main_memory()
    assert total == telemetry.psutil.virtual_memory().total, "no control groups"
    groups = tmp_path / "groups" / ("memory" if version == 1 else "")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    stat = "cache 9\n" + ("total_inactive_file 30000000" if version == 1 else "inactive_file 30000000")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    line = "4:cpu,memory:/pod/box" if version == 1 else "0::/pod/box"
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"1:name=systemd:/\n{line}\n")
    for path, limit in (("pod", 300_000_000), ("pod/box", 2**62 if version == 1 else "max")):
        write(groups / path, **{names[0].replace(".", "__"): limit, names[1].replace(".", "__"): 130_000_000, "memory__stat": stat})
    assert telemetry.main_memory() == (200_000_000, 300_000_000)
    assert telemetry.free_bytes(torch.device("cpu")) == 200_000_000
    for path in ("pod", "pod/box"):
        write(groups / path, memory__stat="broken")
    assert telemetry.main_memory()[1] == total
    # a group of its own that is seen as the root, by a path from outside
    write(groups, **{names[0].replace(".", "__"): 100_000_000, names[1].replace(".", "__"): 130_000_000, "memory__stat": stat})
    assert telemetry.main_memory() == (0, 100_000_000)
    assert free > 0


def test_weights_that_go_straight_to_a_device_make_a_plain_model(monkeypatch):
    """As on a GPU: nothing is hooked in, so that its steps are fused."""
    monkeypatch.setattr(loading, "_straight_to", lambda target: {"": target})
    model, _ = avl.load("tiny", device="cpu")
    assert not [name for name, module in model.named_modules() if hasattr(module, "_hf_hook")]
    with torch.inference_mode():
        assert why_not(model) is None
