"""Runs jobs on an opened device: set up, check, warm up, time in rounds, check again, judge.

Burst jobs that come together take turns, round by round in an order drawn from their seeds, so that a slow spell of the machine falls on
all of them and shows as spread between rounds. A sustained job has the device for itself and never lets it rest. The clock that times is
the device's; the host's clock is read beside it and must not contradict it.
"""

from __future__ import annotations

import hashlib
import random
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness import registry, stats, units
from harness.device.backend import Backend
from harness.device.cuda import is_out_of_memory
from harness.device.sampler import Sampler, Sensors
from harness.errors import FailureError, HarnessError
from harness.measure.ceiling import Reach, ceiling, measured_ceiling, reach
from harness.measure.energy import spent
from harness.measure.moment import Teller
from harness.measure.rounds import Effort, enough
from harness.measure.timing import Clockwork
from harness.measure.validity import RETRIES_MOST, judge, objections, throttle_shares
from harness.model import (
    Ceiling,
    Device,
    Energy,
    Failed,
    FailureKind,
    Inputs,
    Interval,
    Job,
    Measurement,
    Metric,
    Outcome,
    Skipped,
    Soak,
    TelemetrySample,
)

__all__ = ["answer_digest", "measure", "measure_together", "now"]

_DIGESTED = 1 << 16  # elements of an answer that its digest covers, evenly spaced
_ENTROPY_BYTES = 1 << 16


def now() -> str:
    """Return the time in UTC to the second, as RFC 3339 spells it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def measure(job: Job, backend: Backend, sensors: Sensors, effort: Effort) -> Outcome:
    """Carry out one job. Never raises for what the benchmark does."""
    (outcome,) = measure_together([job], backend, sensors, effort)
    return outcome


def measure_together(  # noqa: PLR0913 - what is told apart stays apart
    jobs: Sequence[Job],
    backend: Backend,
    sensors: Sensors,
    effort: Effort,
    *,
    idle_w: float | None = None,
    teller: Teller | None = None,
) -> Iterator[Outcome]:
    """Carry out jobs of one device, the burst ones in turns, and yield each outcome as it is known.

    An outcome is a measurement; `Skipped` where the device cannot run the point; or `Failed` with what went wrong. A point for which
    memory ran out while others held theirs has its turn after them, alone. `idle_w` is what the device takes at rest; `teller` hears
    between rounds what is being done.
    """
    teller = teller or Teller()
    together = [job for job in jobs if job.regime == "burst"]
    crowded: list[Job] = []
    seats: list[_Seat] = []
    for job in together:
        teller.tell(job, "setting up")
        seat, outcome = _sit_down(job, backend)
        if outcome is not None and seats and _wants_room(outcome):
            crowded.append(job)
        elif outcome is not None:
            yield outcome
        elif seat is not None:
            seats.append(seat)
    yield from _in_turns(seats, backend, sensors, effort, teller)
    seats.clear()
    for job in [*crowded, *(j for j in jobs if j.regime == "sustained")]:
        teller.tell(job, "setting up")
        seat, outcome = _sit_down(job, backend)
        if seat is not None:
            seat.idle_w = idle_w
            turns = _sustained if job.regime == "sustained" else _in_turns
            yield from turns([seat], backend, sensors, effort, teller)
        elif outcome is not None:
            yield outcome


def _wants_room(outcome: Outcome) -> bool:
    memory_ran_out = outcome.failed is not None and outcome.failed.outcome == "out_of_memory"
    return memory_ran_out or (outcome.skipped is not None and "memory" in outcome.skipped.reason)


@dataclass(slots=True, kw_only=True)
class _Seat:
    """A job that is set up and takes part in the rounds."""

    job: Job
    bench: registry.Benchmark
    case: registry.Case
    started_at: str
    busy_s: float  # what it has taken of the process's time
    digest: str
    idle_w: float | None = None
    clockwork: Clockwork | None = None
    soak: Soak | None = None
    reached: list[Reach] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)

    def fail(self, kind: FailureKind, reason: str) -> Outcome:
        return _failed(self.job, self.started_at, self.busy_s, kind, reason)


def _failed(job: Job, started_at: str, elapsed_s: float, kind: FailureKind, reason: str) -> Outcome:
    return Outcome(failed=Failed(job=job, started_at=started_at, elapsed_s=elapsed_s, outcome=kind, reason=reason))


def _sit_down(job: Job, backend: Backend) -> tuple[_Seat | None, Outcome | None]:
    """Set a job up and check its first answer; return it, or what became of it instead."""
    started_at, began = now(), time.perf_counter()
    try:
        bench = registry.find([job.benchmark])[0]
        _same_version(bench, job)
        case = bench.build(backend, int(job.seed, 16), job.params)
        _some_work(bench, case)
        first = case.run()
        backend.synchronize()
        right = case.check(first)
        digest = answer_digest(first, backend)
    except registry.Skip as skip:
        return None, Outcome(skipped=Skipped(job=job, reason=str(skip)))
    except Exception as err:  # noqa: BLE001 - whatever a benchmark raises is an outcome
        return None, _failed(job, started_at, time.perf_counter() - began, *_what_broke(err))
    seat = _Seat(
        job=job, bench=bench, case=case, started_at=started_at, busy_s=time.perf_counter() - began, digest=digest
    )
    if not right:
        return None, seat.fail("wrong_answer", "the answer of the first run does not pass the benchmark's check")
    return seat, None


def _same_version(bench: registry.Benchmark, job: Job) -> None:
    if bench.version != job.version:
        msg = f"planned for version {job.version}, here is {bench.version}"
        raise registry.Skip(msg)


def _some_work(bench: registry.Benchmark, case: registry.Case) -> None:
    """Refuse a rate of nothing a second: it would look like a measurement, and a price would follow from it."""
    metric = bench.metric or units.metric_of(case.work)
    if units.amount(case.work, metric)[0] <= 0:
        msg = f"benchmark {bench.name!r} declares no work of its metric, {metric}"
        raise FailureError(msg)


def _what_broke(err: Exception) -> tuple[Literal["out_of_memory", "failed"], str]:
    """Say what broke and in which line: a benchmark's author needs both, in one line and of bearable length."""
    kind: Literal["out_of_memory", "failed"] = "out_of_memory" if is_out_of_memory(err) else "failed"
    if isinstance(err, HarnessError):
        return kind, str(err)
    last = traceback.extract_tb(err.__traceback__)[-1]
    said = " ".join(str(err).encode(errors="replace").decode().split())[:500]  # a file's name may hold half a surrogate
    return kind, f"{type(err).__name__}: {said} ({Path(last.filename).name}:{last.lineno})"


def _in_turns(
    seats: Sequence[_Seat], backend: Backend, sensors: Sensors, effort: Effort, teller: Teller
) -> Iterator[Outcome]:
    """Warm each job up, then take rounds in turns until all have enough."""
    if not seats:
        return
    order = random.Random("".join(seat.job.seed for seat in seats))  # noqa: S311 - to mix, not to hide
    with Sampler(sensors) as sampler:
        playing = []
        for seat in seats:
            teller.tell(seat.job, "warming up", sampler=sampler)
            outcome = _attempt(seat, lambda seat=seat: _begin(seat, backend, sampler, effort, alone=len(seats) == 1))
            if outcome is None:
                playing.append(seat)
            else:
                yield outcome
        began_s = sampler.at_s()
        while playing:
            order.shuffle(playing)
            sweep_began = sampler.at_s()
            for seat in tuple(playing):
                outcome = _attempt(seat, lambda seat=seat: _turn(seat, effort))
                teller.tell(seat.job, "measuring", round_count=len(_clockwork(seat).rounds), sampler=sampler)
                # Its share of the wait counts, too: a quick job does not go on alone, mostly resting, when the slow ones are done.
                share_s = (sampler.at_s() - began_s) / len(seats)
                if outcome is not None or _has_enough(seat, effort, share_s):
                    playing.remove(seat)
                    yield outcome or _stand_up(seat, backend, sampler, effort)
            if playing:
                time.sleep(max(0.0, sweep_began + effort.sweep_s - sampler.at_s()))


def _sustained(
    seats: Sequence[_Seat], backend: Backend, sensors: Sensors, effort: Effort, teller: Teller
) -> Iterator[Outcome]:
    """Load the device until it is as warm as it gets, then take rounds without ever letting it rest."""
    (seat,) = seats
    with Sampler(sensors) as sampler:
        yield _attempt(seat, lambda: _endure(seat, backend, sampler, effort, teller)) or _stand_up(
            seat, backend, sampler, effort
        )


def _endure(seat: _Seat, backend: Backend, sampler: Sampler, effort: Effort, teller: Teller) -> None:
    _begin(seat, backend, sampler, effort, alone=True)
    clockwork = _clockwork(seat)
    seat.soak = clockwork.soak(effort, lambda: teller.tell(seat.job, "soaking", sampler=sampler))
    began = sampler.at_s()
    while not (_has_enough(seat, effort) and sampler.at_s() - began >= effort.energy_s):
        _turn(seat, effort)
        teller.tell(seat.job, "measuring", round_count=len(clockwork.rounds), sampler=sampler)
        clockwork.load(effort.space_s)


def _attempt(seat: _Seat, what: Any) -> Outcome | None:
    """Do a part of a job on its own account of time; return its failure if it raises."""
    began = time.perf_counter()
    try:
        what()
    except Exception as err:  # noqa: BLE001 - whatever a benchmark raises is an outcome
        seat.busy_s += time.perf_counter() - began
        return seat.fail(*_what_broke(err))
    seat.busy_s += time.perf_counter() - began
    return None


def _begin(seat: _Seat, backend: Backend, sampler: Sampler, effort: Effort, *, alone: bool) -> None:
    seat.clockwork = Clockwork(seat.case, backend, sampler, alone=alone)
    seat.clockwork.warm_up(effort)
    _reach(seat, backend)


def _reach(seat: _Seat, backend: Backend) -> None:
    """Measure a case's roof, where it has one: once before its rounds and once after them."""
    if seat.case.roof is not None:
        seat.reached.append(reach(seat.case.roof, backend))


def _clockwork(seat: _Seat) -> Clockwork:
    assert seat.clockwork is not None  # noqa: S101 - a seat takes no turn before it has begun
    return seat.clockwork


def _turn(seat: _Seat, effort: Effort) -> None:
    clockwork = _clockwork(seat)
    taken = clockwork.round(effort)
    if taken.discarded is not None:
        seat.discarded.append(taken.discarded)
        if len(seat.discarded) <= RETRIES_MOST:
            clockwork.cool_down(effort)


def _has_enough(seat: _Seat, effort: Effort, share_s: float = 0.0) -> bool:
    if len(seat.discarded) > RETRIES_MOST:
        return True
    clockwork = _clockwork(seat)
    counted = [r.times_s for r in clockwork.rounds if r.discarded is None]
    return enough(counted, max(clockwork.timed_s, share_s), effort)


def _stand_up(seat: _Seat, backend: Backend, sampler: Sampler, effort: Effort) -> Outcome:
    """Check the last answer and write down what was measured."""
    right: list[bool] = []
    broken = _attempt(seat, lambda: right.append(bool(seat.case.check(_clockwork(seat).answer))))
    if broken is not None:
        return broken
    if not all(right):
        reason = "the answer after the timed rounds, though not the first one, does not pass the benchmark's check"
        return seat.fail("wrong_answer", reason)
    made: list[Measurement] = []
    broken = _attempt(seat, lambda: made.append(_record(seat, backend, sampler, effort)))
    return broken or Outcome(measurement=made[0])


def _record(seat: _Seat, backend: Backend, sampler: Sampler, effort: Effort) -> Measurement:
    case, clockwork, device = seat.case, _clockwork(seat), backend.device
    metric = seat.bench.metric or units.metric_of(case.work)
    counted = stats.counting(clockwork.rounds)
    times = [r.times_s for r in counted]
    centre, low, high = stats.interval(stats.medians(times), stats.step(times))
    clocks = [r.clock_mhz for r in counted if r.clock_mhz is not None]
    clock_mhz = sum(clocks) / len(clocks) if clocks else None
    telemetry = clockwork.telemetry(counted)
    activity = clockwork.activity(centre)
    lost = sampler.lost
    highest = _ceiling(seat, backend, metric, centre, clock_mhz, telemetry)
    state, reason = judge(
        times,
        telemetry,
        effort=effort,
        lost=lost,
        power_limit_w=device.power_limit_w,
        power_default_limit_w=device.power_default_limit_w,
        timers_disagree=clockwork.timers_disagree,
        objections=tuple(
            objections(
                device,
                cache=case.cache,
                footprint_bytes=case.footprint_bytes,
                metric=metric,
                ceiling=highest,
                telemetry=telemetry,
                dtype=str(seat.job.params.get("dtype", "")),
                activity=activity,
            )
        ),
        discarded=seat.discarded,
        soak=seat.soak,
        shares=throttle_shares(clockwork.spans(counted)),
    )
    return Measurement(
        job=seat.job,
        started_at=seat.started_at,
        elapsed_s=seat.busy_s,
        work=case.work,
        metric=metric,
        state=state,
        reason=reason,
        time_s=centre,
        # No mean of times is below the fastest of them: a wide interval is cut there, not at an infinite rate.
        interval=Interval(
            low_s=max(low, min(min(t) for t in times)), high_s=high, confidence_fraction=stats.CONFIDENCE
        ),
        warmup_times_s=clockwork.warmup_times_s,
        rounds=tuple(clockwork.rounds),
        telemetry=tuple(filter(_says_something, clockwork.told())),
        telemetry_lost=lost,
        answer_digest=seat.digest,
        loaded_s=clockwork.loaded_s,
        cache=case.cache,
        footprint_bytes=case.footprint_bytes,
        inputs=_inputs(case, backend),
        launches_hidden=clockwork.held,
        clock_mhz=clock_mhz,
        soak=seat.soak,
        energy=_energy(seat, device, sampler, effort),
        ceiling=highest,
        activity=activity,
    )


def _ceiling(  # noqa: PLR0913 - as `ceiling`
    seat: _Seat,
    backend: Backend,
    metric: Metric,
    time_s: float,
    clock_mhz: float | None,
    telemetry: Sequence[TelemetrySample],
) -> Ceiling | None:
    case = seat.case
    if case.roof is not None:
        _reach(seat, backend)
        return measured_ceiling(case.roof, seat.reached, case.work, metric, time_s)
    return ceiling(
        backend.device,
        seat.job.params,
        case.work,
        metric,
        time_s,
        cache=case.cache,
        clock_mhz=clock_mhz,
        telemetry=telemetry,
    )


def _energy(seat: _Seat, device: Device, sampler: Sampler, effort: Effort) -> Energy | None:
    """Return the energy of a sustained load; jobs that take turns share the device, and nobody can tell theirs apart."""
    if seat.job.regime != "sustained":
        return None
    return spent(
        sampler.samples,
        _clockwork(seat).marks,
        window_min_s=0.8 * effort.energy_s,
        scope="package" if device.kind == "cpu" else device.energy_scope or "gpu",
        idle_w=seat.idle_w,
        power_limit_w=device.power_limit_w,
    )


def _says_something(sample: TelemetrySample) -> bool:
    """Tell an answer from the silence of a device without sensors, which is not worth keeping."""
    return sample != TelemetrySample(at_s=sample.at_s)


def answer_digest(answer: Any, backend: Backend) -> str:
    """Hash an answer: its shapes, types and up to 65,536 evenly spaced elements of each array."""
    state = hashlib.sha256()
    for part in answer if isinstance(answer, tuple) else (answer,):
        flat = part.reshape(-1) if hasattr(part, "reshape") else np.asarray([part])
        kept = flat[:: max(1, flat.size // _DIGESTED)]
        state.update(f"{flat.dtype.str}:{flat.size};".encode())
        state.update(np.ascontiguousarray(backend.to_host(kept)).tobytes())
    return state.hexdigest()


def _inputs(case: registry.Case, backend: Backend) -> Inputs | None:
    """Describe a case's random inputs by the one with the least entropy."""
    if not case.inputs:
        return None
    entropies = [_entropy_bits_per_byte(backend.to_host(_sample_of(array))) for array in case.inputs]
    return Inputs(distribution=case.distribution, entropy_bits_per_byte=min(entropies))


def _sample_of(array: Any) -> Any:
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size * flat.dtype.itemsize // _ENTROPY_BYTES)]


def _entropy_bits_per_byte(array: np.ndarray[Any, Any]) -> float:
    """Return Shannon's entropy of the bytes' histogram: an estimate, which is enough to tell noise from a constant."""
    counts = np.bincount(np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))
