"""The runner: what a measurement holds, and how sensors and wrong answers decide what becomes of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from harness import codec, registry
from harness.cluster import task
from harness.device.cpu import CpuDevice
from harness.device.sampler import FakeSensors, SilentSensors
from harness.measure.rounds import Effort
from harness.measure.runner import measure, measure_together
from harness.model import Job, Outcome, TelemetrySample

GB = 10**9
BRIEF = Effort(
    warmup_s=0.01, budget_s=0.3, samples=3, rounds_min=3, rounds_max=3, half_width_fraction=10, drift_fraction=10
)
JOB = Job(benchmark="launch", version=1, params={"launches": 64}, device_uuid="CPU-test", seed="00000000000000ff")


def sample(**fields: object) -> TelemetrySample:
    return replace(TelemetrySample(at_s=0.0, power_w=50.0), **fields)  # type: ignore[arg-type]


def run(cpu: CpuDevice, sensors: FakeSensors | SilentSensors, job: Job = JOB, effort: Effort = BRIEF) -> Outcome:
    return measure(job, cpu, sensors, effort)


@pytest.mark.parametrize(
    ("reasons", "state"),
    [
        ((), "valid"),
        (("gpu_idle",), "valid"),
        (("sw_power_cap",), "power_capped"),
        (("sw_power_cap", "sw_thermal"), "thermally_limited"),
        (("hw_thermal", "sw_power_cap", "sw_thermal"), "throttled"),
        (("hw_power_brake",), "throttled"),
        (("hw_slowdown", "unknown_0x200"), "throttled"),
    ],
)
def test_what_throttles_decides_the_state(cpu: CpuDevice, reasons: tuple[str, ...], state: str) -> None:
    measured = run(cpu, FakeSensors([sample(throttle_reasons=reasons)])).measurement
    assert measured is not None
    assert measured.state == state, measured.reason
    assert all(name in measured.reason for name in reasons if state == "throttled" and name.startswith("hw_"))


def test_a_device_lost_on_the_way_marks_its_measurement_and_ends_its_samples(cpu: CpuDevice) -> None:
    measured = run(cpu, FakeSensors([sample()], lost_after_reads=1)).measurement
    assert measured is not None
    assert measured.state == "invalid"
    assert "lost" in measured.reason
    assert measured.telemetry_lost
    assert len(measured.telemetry) == 1
    assert len(measured.rounds) == BRIEF.rounds_max  # the timing itself went on


def test_silent_sensors_leave_no_samples_and_no_energy_but_no_mark_either(cpu: CpuDevice) -> None:
    measured = run(cpu, SilentSensors()).measurement
    assert measured is not None
    assert measured.telemetry == ()
    assert measured.energy is None
    assert measured.state == "valid", measured.reason


def test_a_sustained_job_soaks_and_its_energy_is_that_of_the_load(cpu: CpuDevice) -> None:
    effort = replace(BRIEF, soak_min_s=0.5, soak_max_s=2.0, energy_s=1.0, space_s=0.05)
    measured = run(cpu, FakeSensors([sample(power_w=200.0)]), replace(JOB, regime="sustained"), effort).measurement
    assert measured is not None
    assert measured.soak is not None
    assert measured.soak.elapsed_s >= 0.5
    assert measured.energy is not None
    assert measured.energy.source == "power"
    assert measured.energy.window_s >= 0.8
    assert measured.energy.joules == pytest.approx(200.0 * measured.energy.window_s)
    assert measured.energy.run_count > 100


def test_jobs_that_take_turns_have_no_energy_of_their_own(cpu: CpuDevice) -> None:
    measured = run(cpu, FakeSensors([sample(power_w=200.0)])).measurement
    assert measured is not None
    assert measured.energy is None


def test_every_raw_time_is_kept_and_batches_last_at_least_a_sample(cpu: CpuDevice) -> None:
    measured = run(cpu, SilentSensors()).measurement
    assert measured is not None
    assert len(measured.rounds) == 3
    assert all(len(r.times_s) == 3 for r in measured.rounds)
    assert measured.rounds[0].batch > 1  # 64 launches take far less than the millisecond of a sample
    assert measured.warmup_times_s
    assert [r.at_s for r in measured.rounds] == sorted(r.at_s for r in measured.rounds)


def test_a_job_planned_for_another_version_is_skipped_and_says_so(cpu: CpuDevice) -> None:
    skipped = run(cpu, SilentSensors(), replace(JOB, version=99)).skipped
    assert skipped is not None
    assert "99" in skipped.reason


@pytest.mark.parametrize(("verdicts", "words"), [([False], "first run"), ([True, False], "after the timed rounds")])
def test_a_wrong_answer_is_a_failure_whenever_it_comes(
    cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch, verdicts: list[bool], words: str
) -> None:
    failed = run(cpu, SilentSensors(), judged_by(monkeypatch, lambda _: verdicts.pop(0))).failed
    assert failed is not None
    assert failed.outcome == "wrong_answer"
    assert words in failed.reason


def test_a_device_that_claims_more_time_than_passed_is_not_believed(
    cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CpuDevice.stopwatch

    class Liar(CpuDevice):
        def stopwatch(self, *, hold: bool = False):  # type: ignore[no-untyped-def]  # noqa: ANN202
            return _Stretched(honest(self, hold=hold))

    measured = run(Liar(cpu.device), SilentSensors()).measurement
    assert measured is not None
    assert measured.state == "invalid"
    assert "passed at the host" in measured.reason


class _Stretched:
    """A stopwatch whose device reading is twice the host's."""

    def __init__(self, inner) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        self._inner = inner

    def __enter__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204
        self._watch = self._inner.__enter__()
        return self._watch

    def __exit__(self, *exc: object) -> None:
        self._inner.__exit__(*exc)
        self._watch.device_s *= 2


def test_jobs_that_come_together_take_turns_round_by_round(cpu: CpuDevice) -> None:
    jobs = [replace(JOB, params={"launches": n}) for n in (64, 512)] + [replace(JOB, seed="01")]
    effort = replace(BRIEF, rounds_min=6, rounds_max=6, budget_s=10.0)
    outcomes = list(measure_together(jobs, cpu, SilentSensors(), effort))
    measured = [o.measurement for o in outcomes if o.measurement]
    assert len(measured) == len(jobs)
    turns = sorted((r.at_s, i) for i, m in enumerate(measured) for r in m.rounds)
    for sweep in range(6):
        assert {i for _, i in turns[3 * sweep : 3 * sweep + 3]} == {0, 1, 2}
    orders = {tuple(i for _, i in turns[3 * sweep : 3 * sweep + 3]) for sweep in range(6)}
    assert len(orders) > 1, "always in the same order"


def test_a_round_that_the_hardware_throttled_is_kept_but_does_not_count(cpu: CpuDevice) -> None:
    """Throttled in one spell: that round is tried again, and the result is good."""

    def story(at_s: float) -> TelemetrySample:
        return sample(at_s=at_s, throttle_reasons=("hw_thermal",) if spell[0] <= at_s < spell[1] else ())

    effort = replace(BRIEF, samples=50, sample_s=2e-3, rounds_min=4, rounds_max=4, budget_s=10.0)
    spell = (0.1, 0.16)  # shorter than a round of 0.1 s, longer than the period of sampling
    measured = run(cpu, FakeSensors(story), effort=effort).measurement
    assert measured is not None
    discarded = [r for r in measured.rounds if r.discarded]
    assert [r.discarded for r in discarded] == ["hw_thermal in a round"] * len(discarded)
    assert 1 <= len(discarded) <= 2
    assert len(measured.rounds) == 4 + len(discarded)
    assert measured.state == "valid", measured.reason
    assert "more discarded: hw_thermal" in measured.reason


def test_a_device_that_never_cools_gives_a_throttled_result_and_no_empty_table(cpu: CpuDevice) -> None:
    measured = run(cpu, FakeSensors([sample(throttle_reasons=("hw_thermal", "sw_power_cap"))])).measurement
    assert measured is not None
    assert measured.state == "throttled"
    assert all(r.discarded for r in measured.rounds)
    assert len(measured.rounds) == 3  # the first, and two tries more
    assert 0 < measured.interval.low_s <= measured.time_s <= measured.interval.high_s


def test_one_good_round_and_then_only_throttled_ones_is_a_throttled_result_that_can_be_told(cpu: CpuDevice) -> None:
    def story(at_s: float) -> TelemetrySample:
        return sample(at_s=at_s, throttle_reasons=("hw_thermal",) if at_s > 0.3 else ())

    effort = replace(BRIEF, warmup_max_s=0.01, rounds_min=4, rounds_max=6, budget_s=10.0, sweep_s=0.4, cool_max_s=0.0)
    outcome = run(cpu, FakeSensors(story), effort=effort)
    measured = outcome.measurement
    assert measured is not None
    assert [bool(r.discarded) for r in measured.rounds] == [False, True, True, True]
    assert measured.state == "throttled"
    assert measured.interval.high_s > max(min(r.times_s) for r in measured.rounds)
    assert codec.decode(codec.encode(outcome), Outcome) == outcome


def test_what_no_report_can_hold_is_a_failure_and_no_crash(monkeypatch: pytest.MonkeyPatch, cpu: CpuDevice) -> None:
    good = run(cpu, SilentSensors())
    assert good.measurement
    odd = replace(good.measurement, clock_mhz=float("inf"))
    monkeypatch.setattr(task, "measure_together", lambda *_, **__: iter([Outcome(measurement=odd), good]))
    asked = task.Task(kind="measure", jobs=(JOB, JOB), device=cpu.device, effort=BRIEF)
    first, second = (codec.decode(line[:-1], Outcome) for line in task.perform(codec.encode(asked)))
    assert first.failed
    assert "clock_mhz" in first.failed.reason
    assert second == good


def test_a_job_for_which_memory_ran_out_in_company_has_its_turn_alone(
    cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    @registry.benchmark(version=1)
    def hungry(backend: object, seed: int) -> registry.Case:
        """Take all the memory there is."""
        if not tried:
            tried.append("in company")
            raise MemoryError
        return registry.Case(run=zeros, work=registry.Work(flops=1), check=lambda _: True)

    tried: list[str] = []
    known = {**registry.benchmarks(), "hungry": hungry.__harness_benchmark__}  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "benchmarks", lambda: known)
    jobs = [JOB, replace(JOB, benchmark="hungry", params={})]
    outcomes = list(measure_together(jobs, cpu, SilentSensors(), BRIEF))
    assert [o.measurement.job.benchmark for o in outcomes if o.measurement] == ["launch", "hungry"]


@pytest.mark.parametrize("order", ["abcd", "acbd"])
def test_who_has_its_turn_alone_has_all_the_memory(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    held: weakref.WeakSet[Held] = weakref.WeakSet()

    class Small(CpuDevice):
        def free_bytes(self) -> int:
            return 10 * GB - sum(each.size_bytes for each in held)

    def holding(name: str, size_bytes: int) -> registry.Benchmark:
        def body(backend: CpuDevice, seed: int) -> registry.Case:
            """Hold memory, by an object that refers to itself."""
            registry.require_memory(backend, size_bytes)
            mine = Held(size_bytes)
            held.add(mine)
            return registry.Case(run=mine.run, work=registry.Work(flops=1), check=lambda _: True)

        body.__name__ = name
        return registry.benchmark(version=1)(body).__harness_benchmark__  # type: ignore[attr-defined,no-any-return]

    sizes_gb = {"a": 2, "b": 4, "c": 8, "d": 7}  # c and d have no room beside a and b, nor beside each other
    known = {name: holding(name, size * GB) for name, size in sizes_gb.items()}
    monkeypatch.setattr(registry, "benchmarks", lambda: known)
    jobs = [replace(JOB, benchmark=name, params={}) for name in order]
    outcomes = list(measure_together(jobs, Small(cpu.device), SilentSensors(), BRIEF))
    assert sorted(o.measurement.job.benchmark for o in outcomes if o.measurement) == ["a", "b", "c", "d"]


class Held:
    """So many bytes of a device, as long as it lives."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.itself = size_bytes, self

    def run(self) -> object:
        return zeros()


def judged_by(monkeypatch: pytest.MonkeyPatch, check: Callable[[object], bool]) -> Job:
    """Register a benchmark with this check, and return a job for it."""

    @registry.benchmark(version=1)
    def judged(backend: object, seed: int) -> registry.Case:
        """Nothing but a verdict."""
        return registry.Case(run=zeros, work=registry.Work(flops=1), check=check)

    known = {**registry.benchmarks(), "judged": judged.__harness_benchmark__}  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "benchmarks", lambda: known)
    return replace(JOB, benchmark="judged", params={})


def zeros() -> object:
    return np.zeros(4)
