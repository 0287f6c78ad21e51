"""Readings are those of the model's device, or none: with a stand-in for NVML and for CUDA's numbering of devices."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from avl import telemetry

GPUS = {"GPU-aaaa": 11, "GPU-bbbb": 22, "MIG-cccc": 33}
"""UUID -> GiB in use, as NVML knows them, in NVML's order."""


class Nvml:
    def __init__(self, known=GPUS):
        self.known = known
        self.asked = []

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        if uuid.decode() not in self.known:
            raise LookupError("not found")
        return (uuid.decode(),)

    def nvmlDeviceGetHandleByIndex(self, index):
        raise AssertionError("an index may mean another GPU")

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=self.known[handle[0]] * 2**30, total=80 * 2**30)

    def nvmlDeviceGetPowerUsage(self, handle):
        return 1000 * self.known[handle[0]]


@pytest.fixture
def devices(monkeypatch):
    """Set which UUIDs CUDA shows, in its order (CUDA_VISIBLE_DEVICES), and which NVML knows."""

    def show(*uuids, known=GPUS, current=0):
        monkeypatch.setattr(telemetry, "_nvml_state", {"module": Nvml(known)})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=uuids[number]))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)

    return show


def read(name):
    device = torch.device(name)
    return telemetry.device_used_bytes(device), telemetry.device_power_watts(device)


def test_devices_are_told_apart_by_uuid(devices):
    devices("bbbb", "aaaa", "cccc")  # CUDA_VISIBLE_DEVICES=1,0 and a slice
    assert read("cuda:0") == (22 * 2**30, 22)
    assert read("cuda:1") == (11 * 2**30, 11)
    assert read("cuda:2") == (33 * 2**30, 33)


def test_a_device_without_a_number_is_the_current_one(devices):
    devices("aaaa", "bbbb", current=1)
    assert read("cuda") == (22 * 2**30, 22)


def test_a_slice_is_not_read_as_its_gpu(devices):
    devices("cccc", known={"MIG-cccc": 5, "GPU-aaaa": 70})
    assert read("cuda:0") == (5 * 2**30, 5)


@pytest.mark.parametrize("uuid", ["dddd", ""])
def test_an_unknown_device_has_no_reading(devices, uuid):
    """Never another GPU's; and the page says why."""
    devices(uuid)
    assert read("cuda:0") == (None, None)
    found = telemetry._nvml(torch.device("cuda:0"))
    assert found == "n/a (LookupError)"
    assert telemetry._nvml_state["module"].asked == [f"GPU-{uuid}".encode(), f"MIG-{uuid}".encode()]  # and asked once


def test_cuda_that_cannot_say_has_no_reading(devices, monkeypatch):
    devices()
    assert read("cuda:0") == (None, None)
    assert telemetry._nvml(torch.device("cuda:0")) == "n/a (IndexError)"


def test_the_machine_is_described_by_the_models_device(devices, monkeypatch):
    devices("aaaa", "bbbb")
    properties = [SimpleNamespace(name=name, total_memory=size) for name, size in (("A", 1), ("B", 2))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties[number])
    assert telemetry.machine_card(torch.device("cuda:1"))["gpu"] == "B"
    assert telemetry.machine_card()["gpu"] == "A"
    assert telemetry.machine_card(torch.device("cpu"))["gpu"] == "A"
