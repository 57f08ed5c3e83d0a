"""What speaks against measuring a device, on devices and nodes that were made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.device.preflight import neighbours, objections
from harness.device.sensors import GpuProcess
from harness.model import Device, Environment, TelemetrySample

GPU = Device(
    uuid="GPU-1",
    name="NVIDIA Example",
    kind="cuda",
    selector="cuda:0",
    pcie_generation_max=4,
    pcie_width_max=16,
    mig_enabled=False,
    ecc_enabled=True,
    power_limit_w=450.0,
    power_default_limit_w=450.0,
    persistence_mode=True,
    compute_mode="default",
    display_active=False,
    remapped_corrected_count=0,
    remapped_uncorrected_count=0,
    remapping_pending=False,
    remapping_failed=False,
    sensors={},
)
NODE = Environment(
    harness_version="0",
    python="3",
    os="Linux",
    packages={},
    cpu_limit_count=8,
    niceness=0,
    load_average_1min=0.5,
    memory_free_bytes=64 << 30,
    governor="performance",
)
BUSY = TelemetrySample(
    at_s=1.0,
    utilization_fraction=0.98,
    pcie_generation=4,
    pcie_width=16,
    ecc_corrected_count=3,
    ecc_uncorrected_count=0,
)
UNKNOWN = Device(uuid="GPU-2", name="NVIDIA Silent", kind="cuda", selector="cuda:1", sensors={})


def test_nothing_speaks_against_a_healthy_gpu_on_a_quiet_node() -> None:
    assert objections(GPU, [BUSY], processes=(), environment=NODE) == ()


def test_what_nobody_could_read_is_not_held_against_a_device() -> None:
    silent = replace(NODE, cpu_limit_count=None, load_average_1min=None, memory_free_bytes=None, governor=None)
    assert objections(UNKNOWN, [TelemetrySample(at_s=0.0, utilization_fraction=1.0)], environment=silent) == ()
    assert objections(UNKNOWN) == ()


@pytest.mark.parametrize(
    ("change", "severity", "what"),
    [
        ({"compute_mode": "prohibited"}, "refuse", "compute mode prohibited: no process may compute on it"),
        (
            {"compute_mode": "exclusive_process"},
            "tag",
            "compute mode exclusive_process: a second process is turned away",
        ),
        ({"mig_enabled": True}, "tag", "MIG on: only a slice of the card can be measured"),
        ({"display_active": True}, "tag", "a display is active: drawing takes memory and time"),
        ({"power_limit_w": 250.0}, "tag", "power limit 250 of 450 W"),
        ({"remapping_failed": True}, "refuse", "a faulty row of memory could not be replaced"),
        ({"remapping_pending": True}, "tag", "a faulty row of memory waits to be replaced"),
        ({"remapped_uncorrected_count": 2}, "info", "2 rows of memory were replaced after uncorrectable errors"),
        ({"ecc_enabled": False}, "info", "ECC off: the card does not notice a wrong bit in its memory"),
        (
            {"persistence_mode": False},
            "info",
            "persistence mode off: the driver may forget the card's settings between processes",
        ),
    ],
)
def test_each_trouble_of_a_device_is_told_with_its_value(change: dict[str, Any], severity: str, what: str) -> None:
    (note,) = objections(replace(GPU, **change), [BUSY], processes=(), environment=NODE)
    assert (note.severity, note.what) == (severity, what)
    assert note.advice


@pytest.mark.parametrize("limit_w", [450.0, 500.0])
def test_a_power_limit_at_or_above_the_default_is_no_trouble(limit_w: float) -> None:
    assert objections(replace(GPU, power_limit_w=limit_w)) == ()


@pytest.mark.parametrize(
    ("change", "severity", "what"),
    [
        ({"pcie_width": 4}, "tag", "PCIe x4 of x16"),
        ({"pcie_generation": 1}, "tag", "PCIe generation 1 of 4 under load"),
        ({"ecc_uncorrected_count": 3}, "refuse", "3 uncorrected memory errors since the driver was loaded"),
    ],
)
def test_each_trouble_in_the_telemetry_is_told_with_its_value(change: dict[str, Any], severity: str, what: str) -> None:
    (note,) = objections(GPU, [replace(BUSY, **change)])
    assert (note.severity, note.what) == (severity, what)
    assert note.advice


def test_a_link_is_judged_under_load_only_and_by_its_best() -> None:
    idle = replace(BUSY, utilization_fraction=0.02, pcie_generation=1, pcie_width=4)
    unknown = replace(idle, utilization_fraction=None)
    waking = replace(BUSY, pcie_generation=1)
    assert objections(GPU, [idle, unknown]) == ()
    assert objections(GPU, [waking, BUSY]) == ()


def test_other_processes_are_counted_and_named() -> None:
    (note,) = objections(GPU, processes=[GpuProcess(7, 3_000_000_000), GpuProcess(9, None)])
    assert (note.severity, note.what) == ("tag", "2 other compute processes on the GPU, holding 3.0 GB")
    assert note.advice == "end them: process 7, 9"
    (silent,) = objections(GPU, processes=[GpuProcess(9, None)])
    assert silent.what == "1 other compute process on the GPU"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"governor": "powersave"}, "CPU governor powersave"),
        ({"load_average_1min": 4.2}, "load average 4.2 on 8 CPUs"),
        ({"memory_free_bytes": 1_200_000_000}, "1.2 GB of memory free"),
    ],
)
def test_each_trouble_of_a_node_is_told_with_its_value(change: dict[str, Any], what: str) -> None:
    (note,) = objections(GPU, environment=replace(NODE, **change))
    assert (note.severity, note.what) == ("tag", what)
    assert note.advice


def test_the_gravest_comes_first() -> None:
    troubled = replace(GPU, persistence_mode=False, power_limit_w=300.0, compute_mode="prohibited")
    assert [note.severity for note in objections(troubled)] == ["refuse", "tag", "info"]


def test_only_a_real_gpu_is_asked_for_its_neighbours() -> None:
    assert neighbours(replace(GPU, emulated=True)) is None
    assert neighbours(replace(GPU, kind="cpu")) is None
    assert neighbours(GPU) is None  # no NVML has heard of it
