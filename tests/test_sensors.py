"""What the sensors say, and what they do when they cannot.

NVML is played by a library of our own, which the C compiler makes here. A process loads NVML once and for good, so
the stories run in a child: this file as a script, which answers with what a scenario returns, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.device.rapl import CpuSensors
from harness.device.sampler import FakeSensors, Sampler, Sensors, SensorsLostError
from harness.device.sensors import (
    NvmlSensors,
    calibrated,
    compute_processes,
    nvml_devices,
    nvml_status,
    throttle_names,
)
from harness.model import TelemetrySample

H100 = "GPU-00000000-0000-4000-8000-000000000001"
RTX_4090 = "GPU-00000000-0000-4000-8000-000000000002"
SONAME = "libnvidia-ml.so.1"
SOURCE = Path(__file__).parent / "fakenvml" / "fake_nvml.c"

Json = Any
Child = Callable[..., Json]


@contextmanager
def child(library: Path, script: str = __file__) -> Iterator[Child]:
    """Yield a function that runs a scenario of a script, with its story, in a process that loads NVML from a folder."""
    env = os.environ | {"LD_LIBRARY_PATH": str(library)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), env.get("PYTHONPATH")]))
    command = [sys.executable, script]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def run(scenario: Callable[[], Json], story: str = "") -> Json:
            print(json.dumps([scenario.__name__, story]), file=requests, flush=True)
            return json.loads(answers.readline() or pytest.fail(f"the child died in {scenario.__name__}"))

        yield run


def answer_requests(scenarios: Mapping[str, Any]) -> None:
    """Be the child: one request a line, one answer a line."""
    for line in sys.stdin:
        scenario, os.environ["FAKE_NVML"] = json.loads(line)
        with suppress(OSError):  # there may be no library: that is a story too
            fake().fake_nvml_reset()
        print(json.dumps(scenarios[scenario]()), flush=True)


def build(folder: Path) -> Path:
    """Compile the fake NVML into a folder."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler `cc` to build the fake NVML with")
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", f"-Wl,-soname,{SONAME}"]
    subprocess.run([compiler, *flags, "-o", folder / SONAME, SOURCE], check=True)
    return folder


@pytest.fixture(scope="session")
def tell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """Run a scenario in a child whose NVML tells a story."""
    with child(build(tmp_path_factory.mktemp("fakenvml"))) as run:
        yield run


# --- scenarios: run in the child, return JSON --------------------------------------------------------------------


def fake() -> ctypes.CDLL:
    return ctypes.CDLL(SONAME)


def devices() -> Json:
    return [asdict(device) for device in nvml_devices()]


def status() -> Json:
    return {"status": nvml_status(), "devices": len(nvml_devices())}


def first_read() -> Json:
    sensors = NvmlSensors(H100)
    return {"sensors": sensors.capability, "sample": asdict(sensors.read(1.5))}


def forty_reads() -> Json:
    sensors = NvmlSensors(H100)
    return [sensors.read(float(n)).pcie_tx_bytes_per_s for n in range(40)]


def calls_of_energy_and_clocks() -> Json:
    sensors = NvmlSensors(H100)
    names = (b"nvmlDeviceGetTotalEnergyConsumption", b"nvmlDeviceGetClockInfo")
    probed = [fake().fake_nvml_calls(name) for name in names]
    for n in range(5):
        sensors.read(float(n))
    return [probed, [fake().fake_nvml_calls(name) for name in names]]


def field_calls() -> Json:
    sensors = NvmlSensors(H100)
    probed = fake().fake_nvml_calls(b"nvmlDeviceGetFieldValues")
    for n in range(5):
        sensors.read(float(n))
    return [probed, fake().fake_nvml_calls(b"nvmlDeviceGetFieldValues"), fake().fake_nvml_calls(b"field271")]


def throttle_steps() -> Json:
    sensors = NvmlSensors(H100)
    before = sensors.read(0).throttle_s
    fake().fake_nvml_set(b"throttle_ns=500000000")
    after = sensors.read(1).throttle_s
    assert before is not None
    assert after is not None
    return {cause: round(after[cause] - before[cause], 6) for cause in after}


def processes() -> Json:
    return compute_processes(H100)


def cost_of_sampling() -> Json:
    sensors = NvmlSensors(H100), NvmlSensors(RTX_4090)
    before_s, began_s = time.process_time(), time.perf_counter()
    with Sampler(sensors[0], period_s=0.05) as first, Sampler(sensors[1], period_s=0.05) as second:
        time.sleep(2)
    spent_s = time.process_time() - before_s
    return {"share": spent_s / (time.perf_counter() - began_s), "samples": [len(first.samples), len(second.samples)]}


def passing_error() -> Json:
    sensors = NvmlSensors(H100)
    samples = [sensors.read(0)]
    fake().fake_nvml_set(b"0.field186=999")
    samples.append(sensors.read(1))
    fake().fake_nvml_set(b"0.field186=0")
    samples.append(sensors.read(2))
    return [[sample.power_w, sample.temperature_c] for sample in samples]


def refusals() -> Json:
    def reason(attempt: Callable[[], object]) -> str | None:
        try:
            attempt()
        except SensorsLostError as err:
            return str(err)
        return None

    sensors = NvmlSensors(H100)
    sensors.close()
    sensors.close()
    return {
        "closed": reason(lambda: sensors.read(0)),
        "stranger": reason(lambda: NvmlSensors("GPU-of-somebody-else")),
        "lost": reason(lambda: NvmlSensors(RTX_4090)),
        "still_works": reason(lambda: NvmlSensors(H100).close()),
    }


def lost_mid_run() -> Json:
    with Sampler(NvmlSensors(H100), period_s=0.01) as healthy, Sampler(NvmlSensors(RTX_4090), period_s=0.01) as doomed:
        wait_until(lambda: len(healthy.samples) > 5 and len(doomed.samples) > 5)
        fake().fake_nvml_set(b"1.lost=1")
        wait_until(lambda: doomed.lost is not None)
        before = len(healthy.samples)
        ended = len(doomed.samples)
        wait_until(lambda: len(healthy.samples) > before + 5)
    return {
        "lost": [healthy.lost, doomed.lost],
        "grown": [len(healthy.samples) - before, len(doomed.samples) - ended],
    }


def wait_until(condition: Callable[[], bool]) -> None:
    patience = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < patience, "the sampler did not get there"
        time.sleep(0.005)


# --- NVML: inventory ---------------------------------------------------------------------------------------------


def test_both_gpus_are_listed_with_their_identity_and_limits(tell: Child) -> None:
    first, second = tell(devices)
    assert first["uuid"] == H100
    assert first["name"] == "NVIDIA H100 80GB HBM3"
    assert (first["kind"], first["selector"], first["emulated"]) == ("cuda", "cuda:0", False)
    assert first["compute_capability"] == "9.0"
    assert first["memory_bytes"] == 80 << 30
    assert (first["serial"], first["vbios"], first["driver"]) == ("1650123000001", "96.00.89.00.01", "580.95.05")
    assert first["pci_bus_id"] == "00000000:17:00.0"
    assert (first["pcie_generation_max"], first["pcie_width_max"]) == (5, 16)
    assert (first["mig_enabled"], first["ecc_enabled"]) == (False, True)
    assert (first["power_limit_w"], first["power_default_limit_w"]) == (600.0, 700.0)
    assert (first["power_min_limit_w"], first["power_max_limit_w"]) == (200.0, 700.0)
    assert (first["memory_bus_bits"], first["memory_clock_max_mhz"], first["sm_clock_max_mhz"]) == (
        5120,
        2619.0,
        1980.0,
    )
    assert (first["persistence_mode"], first["display_active"], first["compute_mode"]) == (True, False, "default")
    assert (first["remapped_corrected_count"], first["remapped_uncorrected_count"]) == (2, 0)
    assert (first["remapping_pending"], first["remapping_failed"]) == (False, False)
    assert first["energy_scope"] == "gpu"
    assert (first["sm_count"], first["unusable_reason"]) == (None, None)
    assert set(first["sensors"].values()) == {"ok"}
    assert (second["uuid"], second["selector"], second["compute_capability"]) == (RTX_4090, "cuda:1", "8.9")


def test_what_a_gpu_will_not_tell_of_itself_is_none(tell: Child) -> None:
    silent = (
        "Serial=3 VbiosVersion=3 EccMode=3 MigMode=3 EnforcedPowerLimit=3 PowerManagementDefaultLimit=4 MemoryInfo=3"
    )
    more = "PciInfo_v3=3 CudaComputeCapability=999 MaxPcieLinkGeneration=3 MaxPcieLinkWidth=3"
    newer = "MemoryBusWidth=13 MaxClockInfo=3 PowerManagementLimitConstraints=3 PersistenceMode=3 ComputeMode=3"
    newest = "DisplayActive=3 RemappedRows=3 TotalEnergyConsumption=3"
    words = f"{silent} {more} {newer} {newest}".split()
    device, other = tell(devices, " ".join(f"0.nvmlDeviceGet{word}" for word in words))
    unknown = (
        "serial",
        "vbios",
        "ecc_enabled",
        "mig_enabled",
        "power_limit_w",
        "power_default_limit_w",
        "memory_bytes",
    )
    also = ("pci_bus_id", "compute_capability", "pcie_generation_max", "pcie_width_max", "memory_bus_bits")
    limits = ("power_min_limit_w", "power_max_limit_w", "memory_clock_max_mhz", "sm_clock_max_mhz", "energy_scope")
    modes = ("persistence_mode", "compute_mode", "display_active")
    rows = ("remapped_corrected_count", "remapped_uncorrected_count", "remapping_pending", "remapping_failed")
    names = (*unknown, *also, *limits, *modes, *rows)
    assert {name: device[name] for name in names} == dict.fromkeys(names)
    assert device["uuid"] == H100
    assert None not in [other[name] for name in names]


def test_a_placeholder_text_is_none(tell: Child) -> None:
    assert tell(devices, "name=[N/A]")[0]["name"] == "unknown NVIDIA GPU"


def test_an_emulated_gpu_says_so(tell: Child) -> None:
    assert [gpu["emulated"] for gpu in tell(devices, "0.name=Emulated_NVIDIA_H100")] == [True, False]


@pytest.mark.parametrize(
    ("name", "scope"),
    [("NVIDIA_GH200_480GB", "module"), ("NVIDIA_GB200", "module"), ("NVIDIA_H200", "gpu"), ("NVIDIA_B200", "gpu")],
)
def test_energy_beside_a_grace_cpu_is_the_modules(tell: Child, name: str, scope: str) -> None:
    assert tell(devices, f"0.name={name}")[0]["energy_scope"] == scope


@pytest.mark.parametrize(
    ("mode", "name"), [(0, "default"), (1, "exclusive_thread"), (2, "prohibited"), (3, "exclusive_process"), (9, None)]
)
def test_the_compute_mode_has_a_name(tell: Child, mode: int, name: str | None) -> None:
    assert tell(devices, f"0.mode={mode}")[0]["compute_mode"] == name


@pytest.mark.parametrize(
    ("story", "uuid", "sensors"),
    [
        ("0.lost=1", "unknown:cuda:0", {}),
        ("0.nvmlDeviceGetMemoryInfo=15", H100, None),
        ("0.nvmlDeviceGetPowerUsage=15 0.field186=3", H100, {"power": "error", "ecc": "error"}),
    ],
)
def test_a_lost_gpu_hides_no_other(tell: Child, story: str, uuid: str, sensors: dict[str, str] | None) -> None:
    lost, healthy = tell(devices, story)
    assert (lost["uuid"], lost["selector"]) == (uuid, "cuda:0")
    assert "fell off the bus" in lost["unusable_reason"]
    if sensors is not None:
        assert sensors.items() <= lost["sensors"].items()
    assert (healthy["uuid"], healthy["selector"], healthy["unusable_reason"]) == (RTX_4090, "cuda:1", None)


def test_without_a_driver_there_are_no_devices_and_the_reason_is_clear(tmp_path: Path) -> None:
    (tmp_path / SONAME).touch()  # hides a real one, and cannot be loaded
    with child(tmp_path) as run:
        answer = run(status)
    assert answer == {"status": "no NVIDIA driver: libnvidia-ml.so.1 was not found", "devices": 0}


@pytest.mark.parametrize(
    ("story", "reason"),
    [
        ("init=9", "not loaded"),
        ("init=18", "different versions"),
        ("init=4", "no permission"),
        ("init=999", "NVML answers 'Unknown Error' (code 999)"),
    ],
)
def test_a_driver_that_does_not_start_says_why(tell: Child, story: str, reason: str) -> None:
    answer = tell(status, story)
    assert reason in answer["status"]
    assert answer["devices"] == 0


def test_a_working_driver_needs_no_excuse(tell: Child) -> None:
    assert tell(status) == {"status": None, "devices": 2}


def test_a_driver_that_cannot_count_lists_nothing(tell: Child) -> None:
    assert tell(devices, "nvmlDeviceGetCount_v2=999") == []


# --- NVML: readings ----------------------------------------------------------------------------------------------


def test_a_sample_is_in_the_units_of_its_names(tell: Child) -> None:
    sample = tell(first_read)["sample"]
    assert sample.pop("energy_j") > 0
    expected = TelemetrySample(
        at_s=1.5,
        power_w=650.0,
        power_average_w=649.0,
        temperature_c=64.0,
        memory_temperature_c=71.0,
        sm_clock_mhz=1980.0,
        memory_clock_mhz=2619.0,
        utilization_fraction=0.98,
        memory_utilization_fraction=0.41,
        throttle_reasons=(),
        throttle_s={
            "hw_power_brake": 271e-9,
            "hw_thermal": 270e-9,
            "sw_power_cap": 74e-9,
            "sw_thermal": 269e-9,
            "sync_boost": 76e-9,
        },
        pcie_generation=4,
        pcie_width=8,
        ecc_corrected_count=3,
        ecc_uncorrected_count=0,
    )
    assert sample == {k: v for k, v in json.loads(json.dumps(asdict(expected))).items() if k != "energy_j"}


def test_an_unsupported_sensor_is_none_and_recorded(tell: Child) -> None:
    unsupported = "field82=3 TotalEnergyConsumption=3 TotalEccErrors=3 CurrPcieLinkWidth=3 UtilizationRates=13"
    answer = tell(first_read, " ".join(w if w[0] == "f" else f"nvmlDeviceGet{w}" for w in unsupported.split()))
    states, sample = answer["sensors"], answer["sample"]
    for name in ("memory_temperature", "energy", "ecc", "pcie_link", "utilization"):
        assert states[name] == "not_supported", name
    for field in ("memory_temperature_c", "energy_j", "ecc_corrected_count", "pcie_width", "utilization_fraction"):
        assert sample[field] is None, field
    assert (states["power"], sample["power_w"]) == ("ok", 650.0)


def test_a_forbidden_sensor_is_none_and_recorded(tell: Child) -> None:
    answer = tell(first_read, "nvmlDeviceGetTotalEnergyConsumption=4 nvmlDeviceGetClockInfo=999")
    assert answer["sensors"]["energy"] == "no_permission"
    assert answer["sensors"]["sm_clock"] == "error"
    assert answer["sample"]["energy_j"] is answer["sample"]["sm_clock_mhz"] is None


def test_a_refusal_of_the_better_source_is_kept_when_the_other_is_missing(tell: Child) -> None:
    assert tell(first_read, "field186=4 nvmlDeviceGetPowerUsage=3")["sensors"]["power"] == "no_permission"
    assert tell(first_read, "field186=3 nvmlDeviceGetPowerUsage=4")["sensors"]["power"] == "no_permission"


def test_an_older_driver_is_asked_by_the_older_names(tell: Child) -> None:
    answer = tell(first_read, "field186=2 nvmlDeviceGetCurrentClocksEventReasons=13 throttle=4")
    assert answer["sample"]["power_w"] == 649.0
    assert (answer["sensors"]["power"], answer["sensors"]["power_instant"]) == ("ok", "not_supported")
    assert answer["sample"]["power_average_w"] is None, "there is no instant value to tell it from"
    assert answer["sample"]["throttle_reasons"] == ["sw_power_cap"]


def test_all_throttle_reasons_are_told_at_once_and_new_ones_kept(tell: Child) -> None:
    reasons = tell(first_read, "throttle=0x464")["sample"]["throttle_reasons"]
    assert reasons == ["hw_thermal", "sw_power_cap", "sw_thermal", "unknown_0x400"]


def test_all_fields_are_read_by_one_call_a_sample(tell: Child) -> None:
    assert tell(field_calls) == [1, 6, 6]
    assert tell(field_calls, "field271=3") == [1, 6, 1], "a field that failed its probe is never asked again"


def test_throttle_time_is_counted_per_cause(tell: Child) -> None:
    causes = ("hw_power_brake", "hw_thermal", "sw_power_cap", "sw_thermal", "sync_boost")
    assert tell(throttle_steps) == dict.fromkeys(causes, 0.5)


def test_a_driver_with_some_throttle_counters_gives_these(tell: Child) -> None:
    answer = tell(first_read, "field269=3 field270=3 field271=3")
    assert set(answer["sample"]["throttle_s"]) == {"sw_power_cap", "sync_boost"}
    assert answer["sensors"]["throttle_time"] == "ok"


@pytest.mark.parametrize(
    "missing", ["nvmlDeviceGetFieldValues=13", "field74=2 field76=2 field269=2 field270=2 field271=2"]
)
def test_a_driver_without_throttle_fields_is_asked_for_violations(tell: Child, missing: str) -> None:
    answer = tell(first_read, missing)
    assert answer["sample"]["throttle_s"] == {"sw_power_cap": 0.0, "sw_thermal": 1e-9, "sync_boost": 2e-9}
    assert answer["sensors"]["throttle_time"] == "ok"


def test_a_driver_without_any_throttle_counter_says_so(tell: Child) -> None:
    answer = tell(first_read, "nvmlDeviceGetFieldValues=13 nvmlDeviceGetViolationStatus=3")
    assert answer["sample"]["throttle_s"] is None
    states = {name: answer["sensors"][name] for name in ("throttle_time", "memory_temperature", "power_average")}
    assert states == dict.fromkeys(states, "not_supported")
    assert (answer["sensors"]["power"], answer["sample"]["power_w"]) == ("ok", 649.0)


def test_a_sensor_that_failed_its_probe_is_never_asked_again(tell: Child) -> None:
    probed, after = tell(calls_of_energy_and_clocks, "nvmlDeviceGetTotalEnergyConsumption=3")
    assert probed == [1, 2]
    assert after == [1, 2 + 5 * 2]


def test_a_passing_error_costs_one_value_of_one_sample(tell: Child) -> None:
    assert tell(passing_error) == [[650.0, 64.0], [None, 64.0], [650.0, 64.0]]


def test_pcie_throughput_is_read_at_each_twentieth_sample(tell: Child) -> None:
    values = tell(forty_reads)
    assert {n: value for n, value in enumerate(values) if value is not None} == {19: 1_000_000, 39: 1_000_000}


def test_a_gpu_that_is_gone_or_unknown_raises_one_error(tell: Child) -> None:
    answer = tell(refusals, "1.lost=1")
    assert "Uninitialized" in answer["closed"]
    assert answer["stranger"] == "NVML has no GPU of this uuid"
    assert "fell off the bus" in answer["lost"]
    assert answer["still_works"] is None


def test_a_gpu_lost_mid_run_ends_its_own_samples_only(tell: Child) -> None:
    answer = tell(lost_mid_run)
    assert answer["lost"][0] is None
    assert "fell off the bus" in answer["lost"][1]
    assert answer["grown"][0] > 5
    assert answer["grown"][1] == 0


def test_processes_on_a_gpu_are_listed_without_this_one(tell: Child) -> None:
    assert tell(processes) == []
    assert tell(processes, "0.processes=2") == [[4242, 1 << 30], [4243, 2 << 30]]
    assert tell(processes, "1.processes=2") == [], "they are on the other GPU"
    assert tell(processes, "0.nvmlDeviceGetComputeRunningProcesses_v3=3") is None
    assert tell(processes, "init=9") is None


@pytest.mark.slow
def test_sampling_two_gpus_costs_less_than_a_hundredth_of_a_core(tell: Child) -> None:
    shares: list[float] = []
    while len(shares) < 5 and min(shares, default=1.0) >= 0.01:  # neighbours that empty the caches make it dearer
        cost = tell(cost_of_sampling)
        assert min(cost["samples"]) > 20
        shares.append(cost["share"])
    assert min(shares) < 0.01, shares


@pytest.mark.parametrize(
    ("counter", "wall_s", "seen_fraction", "seconds"),
    [
        (0, 10.0, None, 0.0),
        (4e9, 10.0, None, 4.0),  # as microseconds it were over an hour
        (10.2e9, 10.0, None, 10.0),  # the clocks differ a little
        (20e9, 10.0, None, None),  # longer than the wall time in either unit
        (-5, 10.0, None, None),  # the driver was reloaded
        (4e6, 10.0, None, None),  # 4 ms or 4 s
        (4e6, 10.0, 0.4, 4.0),
        (4e6, 10.0, 0.0, 0.004),
        (4e9, 10.0, 1.0, 4.0),  # what is seen does not overrule what is possible
    ],
)
def test_the_unit_of_a_throttle_counter_is_told_from_what_is_possible(
    counter: float, wall_s: float, seen_fraction: float | None, seconds: float | None
) -> None:
    assert calibrated(counter, wall_s, seen_fraction=seen_fraction) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0x0, ()),
        (0x1, ("gpu_idle",)),
        (0x2 | 0x8 | 0x10, ("applications_clocks", "hw_slowdown", "sync_boost")),
        (0x80 | 0x100, ("display_clocks", "hw_power_brake")),
        (1 << 40 | 0x40, ("hw_thermal", "unknown_0x10000000000")),
    ],
)
def test_each_bit_of_the_throttle_mask_has_a_name(mask: int, names: tuple[str, ...]) -> None:
    assert throttle_names(mask) == names


# --- the sampler -------------------------------------------------------------------------------------------------


def idle(at_s: float) -> TelemetrySample:
    return TelemetrySample(at_s=at_s)


def test_samples_are_taken_at_entry_at_each_period_and_at_exit() -> None:
    with Sampler(FakeSensors(idle), period_s=0.02) as sampler:
        entered = sampler.samples
        time.sleep(0.3)
        leaving_s = sampler.at_s()
    times = [sample.at_s for sample in sampler.samples]
    assert len(entered) >= 1
    assert times == sorted(set(times))
    assert times[0] < leaving_s <= times[-1]
    assert 4 <= len(times) <= 0.3 / 0.02 + 3 or leaving_s > 0.35
    periods = [int(at / 0.02) for at in times[:-1]]
    assert periods == sorted(set(periods)), "at most one sample a period: the schedule does not drift"
    assert sampler.lost is None


def test_a_shorter_period_gives_more_samples() -> None:
    with (
        Sampler(FakeSensors(idle), period_s=0.01) as often,
        Sampler(FakeSensors(idle), period_s=0.1) as seldom,
    ):
        time.sleep(0.4)
    assert len(often.samples) > 1.5 * len(seldom.samples)


def test_deadlines_that_a_slow_read_overran_are_left_out() -> None:
    def slow(at_s: float) -> TelemetrySample:
        time.sleep(0.03)
        return TelemetrySample(at_s=at_s)

    with Sampler(FakeSensors(slow), period_s=0.02) as sampler:
        time.sleep(0.2)
        elapsed_s = sampler.at_s()
    assert 2 <= len(sampler.samples) <= elapsed_s / 0.03 + 2


def test_the_exit_does_not_wait_for_the_next_period() -> None:
    with Sampler(FakeSensors(idle), period_s=60) as sampler:
        pass
    assert len(sampler.samples) == 2
    assert sampler.at_s() < 10


def test_a_lost_device_ends_the_samples_and_nothing_else() -> None:
    sensors = FakeSensors(idle, lost_after_reads=3)
    with Sampler(sensors, period_s=0.005) as sampler:
        wait_until(lambda: sampler.lost is not None)
        work = 6 * 7
    assert work == 42
    assert len(sampler.samples) == 3
    assert sampler.lost == "the fake device was lost after 3 reads"


def test_a_device_lost_from_the_start_has_no_samples() -> None:
    with Sampler(FakeSensors(idle, lost_after_reads=0)) as sampler:
        pass
    assert sampler.samples == ()
    assert sampler.lost is not None


def test_an_odd_error_costs_its_own_sample(caplog: pytest.LogCaptureFixture) -> None:
    reads = iter(range(1_000_000))

    def odd_at_first(at_s: float) -> TelemetrySample:
        if next(reads) < 3:
            msg = "the sensor stutters"
            raise RuntimeError(msg)
        return TelemetrySample(at_s=at_s)

    with Sampler(FakeSensors(odd_at_first), period_s=0.005) as sampler:
        wait_until(lambda: len(sampler.samples) > 3)
    assert sampler.lost is None
    assert len([record for record in caplog.records if record.name == "harness.device.sampler"]) == 1


def test_sensors_that_fail_to_the_end_count_as_lost() -> None:
    def broken(at_s: float) -> TelemetrySample:
        raise ZeroDivisionError(at_s)

    with Sampler(FakeSensors(broken), period_s=0.005) as sampler:
        time.sleep(0.02)
    assert sampler.samples == ()
    assert sampler.lost is not None
    assert "ZeroDivisionError" in sampler.lost


def test_a_driver_that_hangs_does_not_hold_the_program() -> None:
    release = threading.Event()
    reads = iter(range(1_000_000))

    def hang_from_the_second_read(at_s: float) -> TelemetrySample:
        if next(reads) > 0:
            release.wait(30)
        return TelemetrySample(at_s=at_s)

    with Sampler(FakeSensors(hang_from_the_second_read), period_s=0.01, patience_s=0.05) as sampler:
        time.sleep(0.03)
    before = sampler.samples
    release.set()
    time.sleep(0.02)
    assert sampler.lost == "the driver did not answer within 0.05 s"
    assert sampler.samples == before


def test_an_error_of_the_program_passes_through() -> None:
    def program() -> None:
        with Sampler(FakeSensors(idle)):
            raise LookupError  # the program's own

    with pytest.raises(LookupError):
        program()


def test_fake_sensors_replay_their_samples_and_repeat_the_last() -> None:
    sensors: Sensors = FakeSensors([TelemetrySample(at_s=9, power_w=1.0), TelemetrySample(at_s=9, power_w=2.0)])
    samples = [sensors.read(at) for at in (0.0, 0.5, 1.0)]
    assert [(sample.at_s, sample.power_w) for sample in samples] == [(0.0, 1.0), (0.5, 2.0), (1.0, 2.0)]
    assert FakeSensors([]).read(3.0) == TelemetrySample(at_s=3.0)


def test_fake_sensors_remember_being_closed() -> None:
    sensors = FakeSensors([], capability={"power": "ok"})
    sensors.close()
    assert sensors.closed
    assert sensors.capability == {"power": "ok"}


# --- the CPU -----------------------------------------------------------------------------------------------------


def write(root: Path, files: Mapping[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Lay out a node of two packages, one with a part, and a platform domain that includes them."""
    rapl = "class/powercap/intel-rapl"
    energies = {":0": ("package-0", 900_000), ":0:0": ("core", 5), ":1": ("package-1", 100_000), ":2": ("psys", 7)}
    zones = {f"{rapl}{zone}/name": name for zone, (name, _) in energies.items()}
    counters = {f"{rapl}{zone}/energy_uj": uj for zone, (_, uj) in energies.items()}
    ranges = {f"{rapl}{zone}/max_energy_range_uj": 1_000_000 for zone in energies}
    heat = {
        "class/hwmon/hwmon0/name": "nvme",
        "class/hwmon/hwmon0/temp1_input": 99_000,
        "class/hwmon/hwmon1/name": "coretemp",
        "class/hwmon/hwmon1/temp1_input": 54_000,
        "class/hwmon/hwmon2/name": "coretemp",
        "class/hwmon/hwmon2/temp1_input": 61_500,
    }
    clocks = {f"devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": 2_000_000 + 1_000 * n for n in range(3)}
    return write(tmp_path, zones | counters | ranges | heat | clocks)


def joules(before: TelemetrySample, after: TelemetrySample) -> float:
    assert before.energy_j is not None
    assert after.energy_j is not None
    return after.energy_j - before.energy_j


def test_a_node_tells_energy_of_its_packages_the_hottest_and_the_mean_clock(sysfs: Path) -> None:
    sensors: Sensors = CpuSensors(sysfs)
    assert sensors.capability == {"energy": "ok", "temperature": "ok", "sm_clock": "ok"}
    before = sensors.read(0.0)
    write(sysfs, {"class/powercap/intel-rapl:0/energy_uj": 950_000, "class/powercap/intel-rapl:1/energy_uj": 120_000})
    after = sensors.read(1.0)
    sensors.close()
    assert after == TelemetrySample(at_s=1.0, energy_j=0.07, temperature_c=61.5, sm_clock_mhz=2001.0)
    assert joules(before, after) == pytest.approx(0.07)


def test_a_rapl_counter_that_wraps_goes_on(sysfs: Path) -> None:
    sensors = CpuSensors(sysfs)
    before = sensors.read(0.0)
    write(sysfs, {"class/powercap/intel-rapl:0/energy_uj": 50_000})  # 900000 to the range, and 50000 more
    after = sensors.read(1.0)
    assert joules(before, after) == pytest.approx(0.15)


def test_rapl_that_only_root_may_read_is_recorded(sysfs: Path) -> None:
    def as_a_user(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(path)
        return path.read_text()

    sensors = CpuSensors(sysfs, read_text=as_a_user)
    assert sensors.capability["energy"] == "no_permission"
    assert sensors.read(0.0).energy_j is None
    assert sensors.read(0.0).temperature_c == 61.5


def test_a_node_without_sensors_says_not_supported(tmp_path: Path) -> None:
    sensors = CpuSensors(tmp_path)
    assert set(sensors.capability.values()) == {"not_supported"}
    assert sensors.read(2.0) == TelemetrySample(at_s=2.0)


def test_garbage_is_an_error_and_a_passing_one_costs_one_value(sysfs: Path) -> None:
    write(sysfs, {"class/hwmon/hwmon1/temp1_input": "hot"})
    sensors = CpuSensors(sysfs)
    assert sensors.capability["temperature"] == "error"
    write(sysfs, {"class/powercap/intel-rapl:1/energy_uj": ""})
    assert sensors.read(0.0).energy_j is None
    write(sysfs, {"class/powercap/intel-rapl:1/energy_uj": 110_000})
    assert sensors.read(1.0).energy_j == pytest.approx(0.01)


def test_thermal_zones_stand_in_for_hwmon(tmp_path: Path) -> None:
    zones = {
        "class/thermal/thermal_zone0/type": "acpitz",
        "class/thermal/thermal_zone0/temp": 90_000,
        "class/thermal/thermal_zone1/type": "x86_pkg_temp",
        "class/thermal/thermal_zone1/temp": 48_000,
        "class/hwmon/hwmon0/temp1_input": 99_000,
    }
    assert CpuSensors(write(tmp_path, zones)).read(0.0).temperature_c == 48.0


def test_a_wide_node_is_asked_for_some_of_its_clocks(tmp_path: Path) -> None:
    reads: list[Path] = []

    def count(path: Path) -> str:
        reads.append(path)
        return path.read_text()

    files = {f"devices/system/cpu/cpu{n}/cpufreq/scaling_cur_freq": 3_000_000 for n in range(100)}
    sensors = CpuSensors(write(tmp_path, files), read_text=count)
    reads.clear()
    assert sensors.read(0.0).sm_clock_mhz == 3000.0
    assert 8 <= len(reads) <= 16


if __name__ == "__main__":
    answer_requests(globals())
