"""``avl doctor``: what a bug report needs, without what it must not hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import torch

from avl import cli
from avl.cli import diagnosis, surroundings
from avl.models.checkpoints import CHECKPOINTS


def details(rows):
    """What -> (state, detail)."""
    return {what: (state, detail) for state, what, detail in rows}


def test_doctor_finds_this_installation_complete(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "missing: " not in shown
    for word in ("torch", "triton", "model tiny", "disk", "attention", "gpu"):
        assert word in shown


def test_doctor_lists_every_short_name(capsys, monkeypatch, tmp_path):
    """Those in the cache one a line, the others together."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    there = tmp_path / "models--Qwen--Qwen3-VL-4B-Instruct" / "snapshots" / "a"
    there.mkdir(parents=True)
    (there / "model.safetensors").touch()
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"ok +model qwen3-vl-4b +downloaded \(Qwen/Qwen3-VL-4B-Instruct\)", line) for line in lines)
    (others,) = [line.partition("not downloaded: ")[2].split(", ") for line in lines if "other models" in line]
    assert others == [name for name in CHECKPOINTS if name != "qwen3-vl-4b"]


def test_doctor_fails_where_something_needed_is_missing(capsys, monkeypatch):
    real = diagnosis.package_version
    monkeypatch.setattr(diagnosis, "package_version", lambda name: None if name in ("numpy", "gradio") else real(name))
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith("missing: numpy"), "the page's libraries are an extra"
    assert "the extra [page] of this package brings it" in shown


def test_doctor_prints_json_for_programs(capsys, monkeypatch):
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ready"], told["missing"]) == (True, [])
    found = {one["what"]: one for one in told["findings"]}
    assert set(found["torch"]) == {"state", "what", "detail"}
    for what in ("avl", "python", "torch build", "driver", "device map", "attention", "not used", "main memory", "downloads", "uploads"):
        assert found[what]["detail"]
    real = diagnosis.package_version
    monkeypatch.setattr(diagnosis, "package_version", lambda name: None if name == "accelerate" else real(name))
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["missing"] == ["accelerate"]


def test_variables_are_shown_without_secrets():
    environment = {
        "AVL_MODEL": "tiny", "HF_TOKEN": "hf_secret", "HUGGING_FACE_HUB_TOKEN": "hf_secret", "HF_HOME": "/cache", "HOME": "/root",
        "CUDA_VISIBLE_DEVICES": "", "https_proxy": "http://me:secret@proxy:3128/x", "GRADIO_SERVER_PORT": "7860", "PATH": "/bin",
        "AVL_API_KEY": "secret", "AWS_SECRET_ACCESS_KEY": "secret",
    }  # fmt: skip
    rows = details(surroundings.variables(environment))
    assert {what: detail for what, (_, detail) in rows.items()} == {
        "AVL_API_KEY": "set", "AVL_MODEL": "tiny", "CUDA_VISIBLE_DEVICES": "empty", "GRADIO_SERVER_PORT": "7860", "HF_HOME": "/cache",
        "HF_TOKEN": "set", "HUGGING_FACE_HUB_TOKEN": "set", "https_proxy": "http://***@proxy:3128/x",
    }  # fmt: skip
    assert surroundings.variables({"PATH": "/bin"}) == [("ok", "environment", "none of the variables that matter is set")]


def test_folders_that_cannot_be_written_are_told(monkeypatch, tmp_path):
    """A read-only container, or a volume of another owner: said before a download fails."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/proc/nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(Path.home() / ".triton"))
    rows = details(surroundings.folders(tmp_path))
    state, detail = rows["downloads"]
    assert (state, detail.startswith(f"{tmp_path}/not/yet, to be made: ")) == ("ok", True)
    state, detail = rows["uploads"]
    assert (state, "/proc/nothing, to be made: cannot be written" in detail) == ("note", True)
    assert rows["triton's cache"][1].startswith("~/.triton"), "no user's name"
    assert rows["numba's cache"][0] == "ok"
    assert not list(tmp_path.iterdir()), "it looked, and left nothing"


def test_a_cuda_build_without_a_gpu_is_noted(monkeypatch):
    def fail():
        raise RuntimeError("Found no NVIDIA driver on your system. Please check\nmore")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    rows = details(diagnosis._devices())
    assert rows["torch build"] == ("ok", "CUDA 13.0")
    assert rows["driver"][0] == "note"
    assert rows["gpu"][0] == "note"
    assert "no GPU can be used (Found no NVIDIA driver on your system" in rows["gpu"][1]


def test_gpus_are_told_with_memory_and_capability(monkeypatch):
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 << 30, major=9, minor=0, uuid="x")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(diagnosis, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr(diagnosis, "resolve_impl", lambda _: "triton")
    monkeypatch.setattr(diagnosis, "triton_trouble", lambda device: "a wrong sum" if device.index else None)
    rows = details([*diagnosis._devices(), *diagnosis._attention()])
    assert rows["driver"] == ("ok", "580.65.06")
    assert rows["gpu 1"] == ("ok", "NVIDIA H100, 80 GiB, compute capability 9.0, no NVML reading")
    assert rows["device map"][1].startswith("auto spreads a model over 2 GPUs")
    assert "without CUDA graphs" in rows["device map"][1]
    assert rows["kernels, gpu 1"] == ("note", "our Triton kernels are not used: a wrong sum")
    assert "our Triton kernel, replayed as CUDA graphs" in rows["attention"][1]
    assert rows["not used"][1].startswith("numba's kernels are for a CPU")
