"""What a GPU's activity counters say, and which claims they contradict.

NVML is played by our own library, as in `test_sensors`; this file as a script is the child that loads it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from test_sensors import H100, RTX_4090, Child, answer_requests, build, child, fake

from harness import registry
from harness.device.cpu import CpuDevice
from harness.device.rapl import CpuSensors
from harness.device.sampler import FakeSensors, Sampler, Sensors, SilentSensors
from harness.device.sensors import NvmlSensors, nvml_devices
from harness.measure import record
from harness.measure.counters import Witness, unexplained
from harness.measure.rounds import Effort
from harness.measure.runner import measure, measure_together
from harness.model import Activity, Cache, Ceiling, Job, Measurement, Metric, TelemetrySample

Json = Any
LONG_S = 0.35  # what the counters take to tell


@pytest.fixture(scope="module")
def tell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """Run a scenario of this file in a child whose NVML tells a story."""
    with child(build(tmp_path_factory.mktemp("fakenvml")), __file__) as run:
        yield run


# --- scenarios: run in the child, return JSON --------------------------------------------------------------------


def counted(sensors: NvmlSensors, for_s: float = LONG_S) -> Json:
    first = sensors.counters()
    time.sleep(for_s)
    last = sensors.counters()
    activity = sensors.activity(first, last) if first and last else None
    return None if activity is None else asdict(activity)


def one_window() -> Json:
    sensors = NvmlSensors(H100)
    return {"state": sensors.capability["gpm"], "listed": nvml_devices()[0].sensors["gpm"], "seen": counted(sensors)}


def a_change_within_a_window() -> Json:
    sensors = NvmlSensors(H100)
    first = sensors.counters()
    time.sleep(0.2)
    fake().fake_nvml_set(b"sm=0")
    time.sleep(0.2)
    last = sensors.counters()
    assert first is not None
    assert last is not None
    activity = sensors.activity(first, last)
    assert activity is not None
    return activity.sm_fraction


def a_short_window() -> Json:
    return counted(NvmlSensors(H100), 0.1)


def an_older_gpu() -> Json:
    sensors = NvmlSensors(RTX_4090)
    return {
        "state": sensors.capability["gpm"],
        "mark": sensors.counters() is None,
        "others": sensors.capability["power"],
    }


def a_passing_error() -> Json:
    sensors = NvmlSensors(H100)
    fake().fake_nvml_set(b"nvmlGpmSampleGet=999")
    failed = [sensors.counters() is None, fake().fake_nvml_samples_held()]
    fake().fake_nvml_set(b"nvmlGpmSampleGet=0")
    return [*failed, counted(sensors) is not None]


def memory_of_marks() -> Json:
    sensors = NvmlSensors(H100)
    probed = fake().fake_nvml_samples_held()
    marks = [sensors.counters() for _ in range(5)]
    taken = fake().fake_nvml_samples_held()
    marks.clear()
    gc.collect()
    freed, late = fake().fake_nvml_samples_held(), sensors.counters()
    sensors.close()
    frees = fake().fake_nvml_calls(b"nvmlGpmSampleFree")
    del late
    gc.collect()
    after = fake().fake_nvml_calls(b"nvmlGpmSampleFree") - frees
    return {"held": [probed, taken, freed], "freed_after_close": after, "closed": sensors.counters() is None}


def by_a_sampler() -> Json:
    with Sampler(NvmlSensors(H100)) as sampler:
        first = sampler.counters()
        time.sleep(LONG_S)
        activity = sampler.activity(first, sampler.counters())
    return None if activity is None else activity.dram_fraction


# --- NVML --------------------------------------------------------------------------------------------------------


def test_a_hopper_tells_each_counter_as_a_share(tell: Child) -> None:
    answer = tell(one_window, "dram=87.5 fp64=0 tx=3 rx=4")
    assert (answer["state"], answer["listed"]) == ("ok", "ok")
    assert 0.3 < answer["seen"].pop("window_s") < 5
    assert (answer["seen"].pop("during"), answer["seen"].pop("busy_fraction")) == ("rounds", None)
    assert answer["seen"] == pytest.approx(
        {
            "sm_fraction": 0.99,
            "sm_occupancy_fraction": 0.25,
            "integer_fraction": 0.12,
            "tensor_fraction": 0.7,
            "dfma_tensor_fraction": 0.01,
            "hmma_tensor_fraction": 0.68,
            "imma_tensor_fraction": 0.02,
            "dram_fraction": 0.875,
            "fp64_fraction": 0.0,
            "fp32_fraction": 0.3,
            "fp16_fraction": 0.04,
            "pcie_tx_bytes_per_s": 3 << 20,
            "pcie_rx_bytes_per_s": 4 << 20,
        }
    )


def test_a_counter_is_the_mean_over_the_window(tell: Child) -> None:
    assert 0.2 < tell(a_change_within_a_window) < 0.8


def test_a_window_shorter_than_the_counters_refresh_tells_nothing(tell: Child) -> None:
    assert tell(a_short_window) is None


@pytest.mark.parametrize(
    ("story", "lost"),
    [
        ("gpm10=3", {"dram_fraction"}),
        ("gpm10=999 gpm20=3", {"dram_fraction", "pcie_tx_bytes_per_s"}),
        ("sm=nan dram=-1 tx=nan", {"sm_fraction", "dram_fraction", "pcie_tx_bytes_per_s"}),
        ("sm=140737488355328", {"sm_fraction"}),
        ("sm=100.4", set()),
    ],
)
def test_a_counter_that_tells_nothing_or_nonsense_is_none_and_hides_no_other(
    tell: Child, story: str, lost: set[str]
) -> None:
    seen = tell(one_window, story)["seen"]
    assert {name for name, value in seen.items() if value is None} == lost | {"busy_fraction"}
    assert all(seen[name] <= 1 for name in seen if name.endswith("fraction") and seen[name] is not None)


def test_no_counter_at_all_is_no_activity(tell: Child) -> None:
    story = " ".join(f"gpm{number}=3" for number in (*range(2, 14), 20, 21))
    assert tell(one_window, story)["seen"] is None


def test_before_hopper_there_are_no_counters_and_the_capability_says_so(tell: Child) -> None:
    assert tell(an_older_gpu) == {"state": "not_supported", "mark": True, "others": "ok"}


@pytest.mark.parametrize(
    ("story", "state"),
    [
        ("0.gpm=0", "not_supported"),
        ("nvmlGpmQueryDeviceSupport=13", "not_supported"),  # a driver older than the functions
        ("nvmlGpmSampleGet=4", "no_permission"),
        ("nvmlGpmSampleGet=999", "error"),
        ("nvmlGpmSampleAlloc=999", "error"),
    ],
)
def test_counters_that_cannot_be_read_cost_nothing_but_themselves(tell: Child, story: str, state: str) -> None:
    assert tell(one_window, story) == {"state": state, "listed": state, "seen": None}


def test_a_passing_error_costs_its_own_mark_and_leaves_no_memory_behind(tell: Child) -> None:
    assert tell(a_passing_error) == [True, 0, True]


def test_the_sum_may_fail_too(tell: Child) -> None:
    assert tell(one_window, "nvmlGpmMetricsGet=999") == {"state": "ok", "listed": "ok", "seen": None}


def test_a_marks_memory_goes_back_with_it_but_not_to_a_closed_library(tell: Child) -> None:
    assert tell(memory_of_marks) == {"held": [0, 5, 0], "freed_after_close": 0, "closed": True}


def test_the_sampler_hands_the_counters_on(tell: Child) -> None:
    assert tell(by_a_sampler) == pytest.approx(0.85)


# --- devices without counters ------------------------------------------------------------------------------------


def test_who_has_no_counters_has_no_activity(tmp_path: Path) -> None:
    silent: list[Sensors] = [SilentSensors(), CpuSensors(tmp_path), FakeSensors([])]
    for sensors in silent:
        assert sensors.counters() is None
        assert sensors.activity(0.0, 1.0) is None


def test_a_sampler_survives_counters_that_raise(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeSensors):
        def counters(self) -> float | None:
            raise ZeroDivisionError

    with Sampler(Broken([])) as sampler:
        assert sampler.counters() is None
    assert sampler.lost is None
    assert "counters failed" in caplog.text


# --- claims ------------------------------------------------------------------------------------------------------

BUSY = Activity(
    window_s=4.0,
    busy_fraction=0.95,
    sm_fraction=0.98,
    sm_occupancy_fraction=0.5,
    integer_fraction=0.1,
    tensor_fraction=0.0,
    dfma_tensor_fraction=0.0,
    hmma_tensor_fraction=0.0,
    imma_tensor_fraction=0.0,
    dram_fraction=0.02,
    fp64_fraction=0.0,
    fp32_fraction=0.1,
    fp16_fraction=0.0,
)


def claim(
    seen: Activity | None, metric: Metric, reached: float | None, *, dtype: str = "", cache: Cache = "n/a"
) -> str | None:
    ceiling = None if reached is None else Ceiling(rate_per_s=1e12, reached_fraction=reached, basis="test")
    return unexplained(seen, metric=metric, dtype=dtype, cache=cache, ceiling=ceiling)


def seen(**counters: float | None) -> Activity:
    return replace(BUSY, **counters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("activity", "metric", "reached", "words"),
    [
        (seen(dram_fraction=0.86), "bandwidth", 0.92, {"cache": "cold", "dtype": "float64"}),  # stream
        (seen(dram_fraction=0.45), "bandwidth", 0.9, {"cache": "cold"}),  # operands of two caches
        (seen(dram_fraction=0.03), "bandwidth", None, {"cache": "hot"}),  # l2_sweep
        (seen(sm_fraction=0.0), "bandwidth", None, {}),  # pcie: copies by engines of their own
        (seen(tensor_fraction=0.78, hmma_tensor_fraction=0.78), "compute", 0.72, {"dtype": "float16"}),  # gemm
        (seen(tensor_fraction=0.66, imma_tensor_fraction=0.66), "compute", 0.62, {"dtype": "int8"}),  # mma
        (seen(tensor_fraction=0.0, hmma_tensor_fraction=0.6), "compute", 0.6, {"dtype": "bfloat16"}),
        (seen(fp16_fraction=0.97), "compute", 0.13, {"dtype": "float16"}),  # fma: pairs of halves, no tensor core
        (seen(fp32_fraction=0.97), "compute", 0.5, {"dtype": "tfloat32"}),  # a GeForce's float32 units
        (seen(fp64_fraction=0.97), "compute", 0.49, {"dtype": "float64"}),  # fma
        (seen(tensor_fraction=0.9, dfma_tensor_fraction=0.9), "compute", 0.9, {"dtype": "float64"}),  # gemm
        (seen(tensor_fraction=0.7, imma_tensor_fraction=0.7), "compute", 0.9, {"dtype": "float64"}),  # emulated
        (seen(fp32_fraction=0.93), "compute", 0.96, {"dtype": "float32"}),
        (seen(sm_fraction=0.007), "compute", 0.005, {"dtype": "float32"}),  # one block
        (seen(sm_fraction=0.0), "latency", None, {}),
        (seen(sm_fraction=0.0), "throughput", None, {}),
    ],
)
def test_honest_numbers_pass(activity: Activity, metric: Metric, reached: float | None, words: dict[str, Any]) -> None:
    assert claim(activity, metric, reached, **words) is None


@pytest.mark.parametrize(
    ("activity", "metric", "reached", "words", "named"),
    [
        (seen(dram_fraction=0.3), "bandwidth", 0.9, {"cache": "cold"}, "memory gave 30.0%"),
        (seen(dram_fraction=0.0), "bandwidth", 0.2, {"cache": "cold"}, "memory gave 0.0%"),
        (seen(sm_fraction=0.0, dram_fraction=0.9), "bandwidth", 0.9, {"cache": "cold"}, "multiprocessors were idle"),
        (seen(sm_fraction=0.0), "bandwidth", None, {"cache": "hot"}, "multiprocessors were idle"),
        (seen(sm_fraction=0.0), "compute", None, {"dtype": "float32"}, "multiprocessors were idle"),
        (seen(sm_fraction=0.2), "compute", 0.9, {"dtype": "float32"}, "multiprocessors were busy 20.0%"),
        (seen(fp32_fraction=1.0), "compute", 0.7, {"dtype": "float16"}, "tensor cores were busy 0.0%"),
        (seen(fp32_fraction=1.0), "compute", 0.7, {"dtype": "bfloat16"}, "tensor cores"),
        (seen(fp32_fraction=1.0), "compute", 0.7, {"dtype": "int8"}, "tensor cores"),
        (seen(fp32_fraction=1.0), "compute", 0.7, {"dtype": "tfloat32"}, "tensor cores"),
        (seen(tensor_fraction=0.1), "compute", 0.7, {"dtype": "float8_e4m3"}, "tensor cores were busy 10.0%"),
        (seen(fp32_fraction=1.0), "compute", 0.5, {"dtype": "float64"}, "float64 units were busy 0.0%"),
    ],
)
def test_each_contradiction_is_named(
    activity: Activity, metric: Metric, reached: float | None, words: dict[str, Any], named: str
) -> None:
    found = claim(activity, metric, reached, **words)
    assert found is not None
    assert found.startswith("the counters say that ")
    assert named in found


@pytest.mark.parametrize("metric", ["compute", "bandwidth"])
@pytest.mark.parametrize("dtype", ["float16", "float64", "float32", ""])
def test_what_nobody_knows_contradicts_nothing(metric: Metric, dtype: str) -> None:
    blank = Activity(window_s=1.0, busy_fraction=1.0)
    assert claim(None, metric, 1.0, dtype=dtype, cache="cold") is None
    assert claim(blank, metric, 1.0, dtype=dtype, cache="cold") is None
    for busy in (None, 0.01):  # so little load is lost in what else the counters saw
        assert claim(seen(busy_fraction=busy, sm_fraction=0.0), metric, 1.0, dtype=dtype, cache="cold") is None


def test_a_window_that_was_half_rest_takes_half_the_activity() -> None:
    resting = seen(busy_fraction=0.5, dram_fraction=0.3)
    assert claim(resting, "bandwidth", 0.9, cache="cold") is None
    assert claim(replace(resting, busy_fraction=1.0), "bandwidth", 0.9, cache="cold") is not None


# --- windows -----------------------------------------------------------------------------------------------------


class Scripted(FakeSensors):
    """Counters whose marks are times of a script, and whose activity follows from the first mark's time."""

    def __init__(self, marks: list[float | None]) -> None:
        super().__init__([])
        self._marks = iter(marks)

    def counters(self) -> float | None:
        return next(self._marks)

    def activity(self, first: float, last: float) -> Activity | None:
        return Activity(window_s=last - first, sm_fraction=first / 100, dram_fraction=None if first < 10 else 0.5)


def watch(marks: list[float | None], *, alone: bool, counting: tuple[bool, ...] = (True, True)) -> Witness:
    """Let a witness see a script: the warm-up, then rounds of ten runs each, of which some do not count."""
    with Sampler(Scripted(marks)) as sampler:
        witness = Witness(sampler, alone=alone)
        witness.begin("warmup", 0)
        witness.end(100)
        for number, counts in enumerate(counting):
            witness.begin("rounds", 100 + 10 * number)
            if counts:
                witness.end(110 + 10 * number)
    return witness


def test_jobs_that_take_turns_have_the_mean_of_their_rounds() -> None:
    activity = watch([1, 2, 10, 11, 20, 23], alone=False).activity(0.1)
    assert activity is not None
    assert (activity.window_s, activity.during) == (4, "rounds")
    assert activity.sm_fraction == pytest.approx((1 * 0.10 + 3 * 0.20) / 4)
    assert activity.busy_fraction == pytest.approx(20 * 0.1 / 4)
    assert activity.fp64_fraction is None


def test_a_round_that_does_not_count_is_not_counted() -> None:
    activity = watch([1, 2, 10, 20, 23], alone=False, counting=(False, True)).activity(0.1)
    assert activity is not None
    assert (activity.window_s, activity.sm_fraction) == pytest.approx((3, 0.2))


def test_a_job_alone_has_one_window_from_first_to_last() -> None:
    activity = watch([1, 2, 10, 11, 23], alone=True).activity(0.1)
    assert activity is not None
    assert (activity.window_s, activity.sm_fraction) == pytest.approx((13, 0.1))
    assert activity.busy_fraction == pytest.approx(20 * 0.1 / 13)


def test_the_warm_up_stands_in_where_rounds_tell_nothing() -> None:
    activity = watch([1, 3, None, None], alone=False).activity(0.01)
    assert activity is not None
    assert (activity.window_s, activity.during, activity.dram_fraction) == (2, "warmup", None)
    assert activity.busy_fraction == pytest.approx(100 * 0.01 / 2)


@pytest.mark.parametrize("alone", [True, False])
def test_no_marks_no_activity(*, alone: bool) -> None:
    assert watch([None] * 3, alone=alone).activity(0.1) is None


def test_a_job_alone_whose_first_mark_failed_begins_with_the_next() -> None:
    activity = watch([1, 2, None, 20, 23], alone=True).activity(0.1)
    assert activity is not None
    assert (activity.window_s, activity.busy_fraction) == pytest.approx((3, 10 * 0.1 / 3))


def test_runs_claimed_to_take_longer_than_the_window_fill_it() -> None:
    activity = watch([1, 2, 10, 11, 20, 23], alone=False).activity(1e3)
    assert activity is not None
    assert activity.busy_fraction == 1.0


# --- the runner --------------------------------------------------------------------------------------------------

BRIEF = Effort(
    warmup_s=0.01, budget_s=0.3, samples=3, rounds_min=3, rounds_max=3, half_width_fraction=10, drift_fraction=10
)


def job_of(name: str, cpu: CpuDevice, **params: str) -> Job:
    (bench,) = registry.find([name])
    return Job(
        benchmark=name,
        version=bench.version,
        params={**registry.points(bench, cpu.device, small=True)[0], **params},
        device_uuid=cpu.device.uuid,
        seed="00000000000000ff",
    )


def counting(**counters: float | None) -> FakeSensors:
    return FakeSensors([TelemetrySample(at_s=0.0, power_w=50.0)], activity=replace(BUSY, **counters))  # type: ignore[arg-type]


def measured(cpu: CpuDevice, sensors: FakeSensors, **params: str) -> Measurement:
    measurement = measure(job_of("fma", cpu, **params), cpu, sensors, BRIEF).measurement
    assert measurement is not None
    return measurement


def test_a_measurement_records_what_was_counted_of_its_rounds(cpu: CpuDevice) -> None:
    found = measured(cpu, counting(dram_fraction=0.25))
    assert found.state == "valid", found.reason
    activity = found.activity
    assert activity is not None
    assert (activity.during, activity.dram_fraction) == ("rounds", 0.25)
    assert activity.busy_fraction is not None
    assert 0 < activity.busy_fraction <= 1
    span_s = found.rounds[-1].at_s - found.rounds[0].at_s
    assert span_s < activity.window_s < found.elapsed_s  # alone: one window, the last round included


def test_no_counters_leave_no_activity(cpu: CpuDevice) -> None:
    found = measured(cpu, FakeSensors([TelemetrySample(at_s=0.0, power_w=50.0)]))
    assert (found.activity, found.state) == (None, "valid")


def test_arithmetic_on_idle_multiprocessors_is_invalid(cpu: CpuDevice) -> None:
    found = measured(cpu, counting(sm_fraction=0.0))
    assert found.state == "invalid"
    assert "multiprocessors were idle" in found.reason


def test_the_ceiling_and_the_type_reach_the_counters(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        record, "ceiling", lambda *_, **__: Ceiling(rate_per_s=1e12, reached_fraction=0.9, basis="test")
    )
    honest = measured(cpu, counting(fp64_fraction=0.9), dtype="float64")
    false = measured(cpu, counting(), dtype="float64")
    assert honest.state == "valid", honest.reason
    assert false.state == "invalid"
    assert "float64 units were busy 0.0%" in false.reason


def test_jobs_that_take_turns_are_counted_round_by_round(cpu: CpuDevice) -> None:
    jobs = [job_of("fma", cpu), job_of("nbody", cpu)]
    for outcome in measure_together(jobs, cpu, counting(), BRIEF):
        found = outcome.measurement
        assert found is not None
        assert found.activity is not None
        assert found.activity.during == "rounds"
        assert found.activity.busy_fraction is not None
        timed_s = sum(sum(r.times_s) * r.batch for r in found.rounds)
        assert timed_s * 0.5 < found.activity.window_s < found.rounds[-1].at_s - found.rounds[0].at_s + 1


def test_a_sustained_job_is_counted_over_its_whole_load(cpu: CpuDevice) -> None:
    effort = replace(BRIEF, soak_min_s=0.2, soak_max_s=0.5, energy_s=0.5, space_s=0.05)
    job = replace(job_of("fma", cpu), regime="sustained")
    found = measure(job, cpu, counting(), effort).measurement
    assert found is not None
    assert found.activity is not None
    assert found.activity.window_s >= 0.3  # all but the load after the last round


if __name__ == "__main__":
    answer_requests(globals())
