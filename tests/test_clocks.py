"""Watching and holding the clock: stamps, held starts, and the rounds that are timed between them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import recording
from hypothesis import given
from hypothesis import strategies as st

from harness import registry
from harness.device import cuda as cuda_module
from harness.device.clocks import HOLD, STAMP, mean_clock_mhz
from harness.device.cpu import CpuDevice
from harness.device.cuda import CudaDevice
from harness.device.sampler import FakeSensors, Sampler, SilentSensors
from harness.measure.rounds import Effort
from harness.measure.timing import Clockwork
from harness.model import Round, TelemetrySample

if TYPE_CHECKING:
    from numpy.typing import NDArray

BRIEF = Effort(warmup_s=0.01, budget_s=0.1, samples=3, rounds_min=3, rounds_max=3)
SYNCHRONOUS = "launches of this emulator are synchronous: set EMU_ASYNC=1"


def stamp(*rows: tuple[int, int, int]) -> NDArray[Any]:
    """Return a stamp of (multiprocessor, cycles, nanoseconds)."""
    return np.array(rows, dtype=np.uint64).reshape(-1, 3)


# --- the mean clock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "clock_mhz"),
    [
        (stamp((0, 100, 1000)), stamp((0, 2080, 2000)), 1980.0),
        # Counters of two multiprocessors have nothing to do with each other: each is held against itself.
        (stamp((0, 0, 0), (7, 10**15, 0)), stamp((7, 10**15 + 1500, 1000), (0, 1500, 1000)), 1500.0),
        (stamp((0, 0, 0), (1, 0, 0)), stamp((1, 1400, 1000), (2, 9, 1000)), 1400.0),  # some are seen only once
        (stamp((0, 9000, 0), (1, 0, 0), (2, 0, 0)), stamp((0, 10, 1000), (1, 1400, 1000), (2, 1402, 1000)), 1401.0),
        (stamp((0, 0, 0), (0, 0, 0)), stamp((0, 1400, 1000), (0, 1400, 1000)), 1400.0),  # two blocks on one
        (
            stamp((0, 2**63, 2**62)),
            stamp((0, 2**63 + 1000, 2**62 + 1000)),
            1000.0,
        ),  # no float would know the difference
        (stamp((0, 0, 0)), stamp((1, 1000, 1000)), None),
        (stamp((0, 5, 5)), stamp((0, 5, 5)), None),
        (stamp((0, 5, 5)), stamp((0, 9, 5)), None),  # no time has passed
        (stamp((0, 5, 5)), stamp((0, 5, 9)), None),
        (stamp((0, 9, 5)), stamp((0, 5, 9)), None),  # reset
        (stamp((0, 5, 9)), stamp((0, 9, 5)), None),
        (stamp(), stamp(), None),
    ],
)
def test_the_mean_clock_is_cycles_by_time_of_one_multiprocessor(
    first: NDArray[Any], last: NDArray[Any], clock_mhz: float | None
) -> None:
    assert mean_clock_mhz(first, last) == (None if clock_mhz is None else pytest.approx(clock_mhz))


def test_a_few_counters_that_were_reset_do_not_matter() -> None:
    before = stamp(*((sm, 10**9, 0) for sm in range(132)))
    after = stamp(*((sm, 10**9 + 1_755_000 if sm % 5 else 3, 10**6) for sm in range(132)))
    assert mean_clock_mhz(before, after) == pytest.approx(1755)


@given(
    st.floats(200, 3000),
    st.integers(10**6, 10**10),
    st.permutations(range(8)),
    st.lists(st.integers(0, 2**60), min_size=8),
)
def test_a_clock_is_found_whatever_the_counters_began_with_and_in_whatever_order_blocks_ran(
    clock_mhz: float, elapsed_ns: int, order: Sequence[int], starts: Sequence[int]
) -> None:
    before = stamp(*((sm, starts[sm], 7) for sm in range(8)))
    after = stamp(*((sm, starts[sm] + round(clock_mhz * elapsed_ns / 1e3), 7 + elapsed_ns) for sm in order))
    assert mean_clock_mhz(before, after) == pytest.approx(clock_mhz, rel=1e-4)


def test_on_a_cpu_there_is_no_clock_to_read_and_nothing_to_hold(cpu: CpuDevice) -> None:
    assert cpu.stamp() is None
    assert cpu.clock_mhz(cpu.stamp(), cpu.stamp()) is None
    with cpu.stopwatch(hold=True) as watch:
        time.sleep(0.002)
    assert (watch.held, watch.expired) == (False, False)
    assert 0.002 <= watch.device_s == watch.host_s
    STAMP.twin(None)
    HOLD.twin(None, 1, 2, None)


# --- a round ------------------------------------------------------------------------------------------------------


class FakeDevice(CpuDevice):
    """A CPU that holds launches back like a GPU, until `lasting` spans have been held: then it waits in vain."""

    def __init__(self, inner: CpuDevice, *, lasting: int = 10**9, clock_mhz: float | None = None) -> None:
        super().__init__(inner.device)
        self.asked: list[bool] = []
        self._lasting = lasting
        self._clock_mhz = clock_mhz

    @contextmanager
    def stopwatch(self, *, hold: bool = False) -> Iterator[Any]:
        self.asked.append(hold)
        with super().stopwatch() as watch:
            yield watch
        watch.held = hold
        watch.expired = hold and sum(self.asked) > self._lasting

    def clock_mhz(self, first: object, last: object) -> float | None:
        return self._clock_mhz


def case(**more: Any) -> registry.Case:
    return registry.Case(run=lambda: np.zeros(1), work=registry.Work(items=1, item="x"), check=lambda _: True, **more)


def round_of(device: CpuDevice, sensors: FakeSensors | SilentSensors, **more: Any) -> tuple[Round, Clockwork]:
    with Sampler(sensors, period_s=100) as sampler:
        clockwork = Clockwork(case(**more), device, sampler)
        clockwork.warm_up(BRIEF)
        return clockwork.round(BRIEF), clockwork


def test_a_round_has_a_look_at_the_sensors_at_both_of_its_ends(cpu: CpuDevice) -> None:
    taken, clockwork = round_of(cpu, FakeSensors([TelemetrySample(at_s=0.0, power_w=50.0)]))
    told = clockwork.telemetry([taken])
    assert len(told) == 2
    assert told[0].at_s == taken.at_s
    assert told[1].at_s - told[0].at_s >= sum(taken.times_s) * taken.batch


def test_of_what_the_sensors_said_a_report_keeps_the_ends_each_cause_and_an_even_choice(cpu: CpuDevice) -> None:
    begun: list[float] = []

    def story(at_s: float) -> TelemetrySample:
        seen = ("sw_power_cap",) if begun and 0.04 < at_s - begun[0] < 0.12 else ()
        return TelemetrySample(at_s=at_s, power_w=at_s, throttle_reasons=seen)

    def run() -> None:
        time.sleep(0.002)

    with Sampler(FakeSensors(story), period_s=1e-3) as sampler:
        waiting = registry.Case(run=run, work=registry.Work(items=1, item="x"), check=lambda _: True)
        clockwork = Clockwork(waiting, cpu, sampler)
        clockwork.warm_up(BRIEF)
        effort = replace(BRIEF, budget_s=1.0, samples=70)
        begun.append(sampler.at_s())
        rounds = [clockwork.round(effort) for _ in range(3)]
    judged, told = clockwork.telemetry(rounds), clockwork.told()
    assert len(judged) > 60
    assert len(told) <= 32 + 2  # the first of all, and the first that names the cause
    assert {span[i].at_s for span in clockwork.spans(rounds) for i in (0, -1)} <= {s.at_s for s in told}
    assert next(s for s in judged if s.throttle_reasons) in told
    mean_w = [fmean(s.power_w or 0.0 for s in samples[1:]) for samples in (judged, told)]
    assert mean_w[0] == pytest.approx(mean_w[1], rel=0.1)


def test_the_first_mark_after_a_rest_says_so_and_a_device_that_is_cool_has_none(cpu: CpuDevice) -> None:
    hot: list[float] = []

    def story(at_s: float) -> TelemetrySample:
        return TelemetrySample(at_s=at_s, temperature_c=90.0 if hot and at_s < hot[0] + 0.3 else 40.0)

    with Sampler(FakeSensors(story), period_s=0.01) as sampler:
        clockwork = Clockwork(case(), cpu, sampler)
        clockwork.warm_up(BRIEF)
        clockwork.load(0.05)
        clockwork.cool_down(BRIEF)
        clockwork.load(0.05)
        hot.append(sampler.at_s())
        clockwork.round(BRIEF)
        clockwork.cool_down(replace(BRIEF, cool_max_s=0.1))
        clockwork.load(0.05)
    (rested,) = [i for i, mark in enumerate(clockwork.marks) if mark.rested]
    assert clockwork.marks[rested].at_s - clockwork.marks[rested - 1].at_s >= 0.1
    assert rested < len(clockwork.marks) - 1  # the load after it goes on


def test_a_counter_that_grew_during_a_short_round_discards_it(cpu: CpuDevice) -> None:
    def story(at_s: float) -> TelemetrySample:
        return TelemetrySample(at_s=at_s, throttle_s={"hw_thermal": at_s})

    taken, _ = round_of(cpu, FakeSensors(story))
    assert taken.discarded == "hw_thermal in a round"


def test_a_round_remembers_its_clock_and_its_time_by_the_host(cpu: CpuDevice) -> None:
    taken, clockwork = round_of(FakeDevice(cpu, clock_mhz=1980.0), SilentSensors())
    assert taken.clock_mhz == 1980
    assert taken.host_time_s == sorted(taken.times_s)[1]
    assert len(taken.times_s) == BRIEF.samples
    assert clockwork.marks[-1].runs > BRIEF.samples * taken.batch


def test_short_runs_are_held_and_samples_last_a_millisecond_or_all_that_a_stream_takes(cpu: CpuDevice) -> None:
    device = FakeDevice(cpu)
    taken, clockwork = round_of(device, SilentSensors())
    assert clockwork.held
    assert device.asked[-BRIEF.samples :] == [True] * BRIEF.samples
    assert taken.batch <= 256


def test_a_case_that_is_about_launching_is_never_held(cpu: CpuDevice) -> None:
    device = FakeDevice(cpu)
    taken, clockwork = round_of(device, SilentSensors(), hide_launches=False)
    assert not clockwork.held
    assert not any(device.asked)
    assert taken.batch > 256


def test_a_hold_that_expires_at_once_is_not_tried_again(cpu: CpuDevice) -> None:
    device = FakeDevice(cpu, lasting=0)
    taken, clockwork = round_of(device, SilentSensors())
    assert not clockwork.held
    assert sum(device.asked) == 1
    assert len(clockwork.rounds) == 1
    assert len(taken.times_s) == BRIEF.samples


def test_a_round_in_which_a_hold_expires_is_taken_again_without(cpu: CpuDevice) -> None:
    device = FakeDevice(cpu, lasting=2)  # the probe and one sample
    taken, clockwork = round_of(device, SilentSensors())
    assert not clockwork.held
    assert device.asked[-BRIEF.samples - 2 :] == [True, True] + [False] * BRIEF.samples
    assert clockwork.rounds == [taken]
    assert len(taken.times_s) == BRIEF.samples


# --- a GPU --------------------------------------------------------------------------------------------------------


def asynchronous() -> bool:
    """Tell whether a launch returns before its kernel has ended."""
    return recording.emulator() is None or os.environ.get("EMU_ASYNC") == "1"


def count(lane, first, count, step, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Add one."""
    for k in range(count):
        out[first + k * step] += 1


@pytest.fixture
def counting(cuda: CudaDevice) -> tuple[Callable[[], None], Any]:
    """Return what adds one to each element of an array, warm, and the array."""
    launch, out = cuda.compile(count), cuda.xp.zeros(1000, dtype=np.uint64)
    launch(1000, out)
    cuda.synchronize()
    out[:] = 0
    return lambda: launch(1000, out), out


@pytest.mark.gpu
def test_a_stamp_reads_every_block_on_a_multiprocessor_with_both_counters(cuda: CudaDevice) -> None:
    first = cuda.to_host(cuda.stamp())
    last = cuda.to_host(cuda.stamp())
    sms = cuda.device.sm_count or 0
    assert first.shape == last.shape == (2 * sms, 3)
    assert (first[:, 0] < sms).all()
    assert (last[:, 2] >= first[:, 2].min()).all()
    assert len(set(first[:, 0].tolist())) > sms / 2


@pytest.mark.gpu
def test_two_stamps_give_a_clock_that_a_gpu_could_have(cuda: CudaDevice) -> None:
    before = cuda.stamp()
    time.sleep(0.05)
    clock_mhz = cuda.clock_mhz(before, cuda.stamp())
    assert clock_mhz is not None
    assert 100 < clock_mhz < 10_000
    assert cuda.clock_mhz(None, before) is None
    assert cuda.clock_mhz(before, None) is None


@pytest.mark.gpu
def test_what_is_held_runs_all_the_same_and_its_times_begin_with_the_release(
    cuda: CudaDevice, counting: tuple[Callable[[], None], Any]
) -> None:
    if not asynchronous():
        pytest.skip(SYNCHRONOUS)
    run, out = counting
    with cuda.stopwatch(hold=True) as watch:
        for _ in range(5):
            run()
        time.sleep(0.3)  # as if launching took as long
    assert (watch.held, watch.expired) == (True, False)
    assert 0 < watch.host_s < 0.25
    assert watch.device_s < 0.25
    assert (cuda.to_host(out) == 5).all()


@pytest.mark.gpu
def test_what_is_not_held_is_timed_with_its_launches(
    cuda: CudaDevice, counting: tuple[Callable[[], None], Any]
) -> None:
    run, out = counting
    with cuda.stopwatch() as watch:
        run()
        time.sleep(0.1)
    assert (watch.held, watch.expired) == (False, False)
    assert watch.host_s >= 0.1
    assert (cuda.to_host(out) == 1).all()


@pytest.mark.gpu
def test_where_a_launch_waits_for_its_kernel_nothing_is_held(
    cuda: CudaDevice, counting: tuple[Callable[[], None], Any]
) -> None:
    if asynchronous():
        pytest.skip("launches are asynchronous here")
    run, out = counting
    began = time.perf_counter()
    with cuda.stopwatch(hold=True) as watch:
        run()
    assert (watch.held, watch.expired) == (False, False)
    assert time.perf_counter() - began < 2  # a hold that nobody lets go lasts 5 s
    assert (cuda.to_host(out) == 1).all()


@pytest.mark.gpu
def test_a_hold_that_nobody_lets_go_ends_by_itself_and_says_so(
    cuda: CudaDevice, counting: tuple[Callable[[], None], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not asynchronous():
        pytest.skip(SYNCHRONOUS)
    monkeypatch.setattr(cuda_module, "_HOLD_LIMIT_NS", 20_000_000)
    run, out = counting
    with cuda.stopwatch(hold=True) as watch:
        run()
        cuda.synchronize()  # what a held case may not do: it waits for itself
    assert (watch.held, watch.expired) == (True, True)
    assert (cuda.to_host(out) == 1).all()
    monkeypatch.undo()
    with cuda.stopwatch(hold=True) as watch:
        run()
    assert (watch.held, watch.expired) == (True, False)  # the next one is none the worse


@pytest.mark.gpu
def test_an_error_in_what_is_held_lets_the_stream_go(
    cuda: CudaDevice, counting: tuple[Callable[[], None], Any]
) -> None:
    run, out = counting

    def fail() -> None:
        with cuda.stopwatch(hold=True):
            run()
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    began = time.perf_counter()
    cuda.synchronize()
    assert time.perf_counter() - began < 2
    assert (cuda.to_host(out) == 1).all()


@pytest.mark.gpu
def test_a_case_that_waits_for_itself_is_timed_without_a_hold(
    cuda: CudaDevice, counting: tuple[Callable[[], None], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_module, "_HOLD_LIMIT_NS", 20_000_000)
    run, out = counting

    def stubborn() -> Any:
        run()
        cuda.synchronize()
        return out

    with Sampler(SilentSensors()) as sampler:
        clockwork = Clockwork(registry.Case(run=stubborn, work=case().work, check=case().check), cuda, sampler)
        clockwork.warm_up(BRIEF)
        clockwork.round(BRIEF)
    assert not clockwork.held
    assert len(clockwork.rounds) == 1
