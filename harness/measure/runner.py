"""Runs one job on an opened device: set up, check, warm up, time in rounds, check again, judge.

The clock that times is the backend's; the host's clock is read beside it and must not contradict it.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from harness import registry, stats, units
from harness.device.backend import Backend
from harness.device.sampler import Sampler, Sensors, energy_between
from harness.measure.rounds import Effort, batch_for, enough, samples_for
from harness.measure.validity import judge
from harness.model import Failed, Interval, Job, Measurement, Metric, Outcome, Round, Skipped, TelemetrySample

__all__ = ["measure", "now"]

_DIGESTED = 1 << 16  # elements of an answer that its digest covers, evenly spaced
_EVENT_RESOLUTION_S = 1e-6
_WARMUP_RUNS = 1000


def now() -> str:
    """Return the time in UTC to the second, as RFC 3339 spells it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def measure(job: Job, backend: Backend, sensors: Sensors, effort: Effort) -> Outcome:
    """Carry out a job.

    Returns:
        A measurement; or `Skipped` where the device cannot run the point; or `Failed` where an answer was wrong. Whatever
        the benchmark itself raises is let through: the caller knows whether memory ran out or the code broke.
    """
    started_at, began = now(), time.perf_counter()
    bench = registry.find([job.benchmark])[0]
    if bench.version != job.version:
        return Outcome(skipped=Skipped(job=job, reason=f"planned for version {job.version}, here is {bench.version}"))
    try:
        case = bench.build(backend, int(job.seed, 16), job.params)
        first = case.run()
    except registry.Skip as skip:
        return Outcome(skipped=Skipped(job=job, reason=str(skip)))

    def wrong(when: str) -> Outcome:
        reason = f"the answer {when} does not pass the benchmark's check"
        spent = time.perf_counter() - began
        failed = Failed(job=job, started_at=started_at, elapsed_s=spent, outcome="wrong_answer", reason=reason)
        return Outcome(failed=failed)

    backend.synchronize()
    if not case.check(first):
        return wrong("of the first run")
    answer_digest = _digest(first, backend)
    timing = _time(case, backend, sensors, effort)
    if not case.check(timing.answer):
        return wrong("after the timed rounds, though not the first one,")
    metric = bench.metric or units.metric_of(case.work)
    return Outcome(measurement=_record(job, case, metric, timing, backend, effort, started_at, began, answer_digest))


@dataclass(slots=True, kw_only=True)
class _Timing:
    answer: Any
    warmup_times_s: tuple[float, ...]
    rounds: tuple[Round, ...]
    telemetry: tuple[TelemetrySample, ...]
    lost: str | None
    timers_disagree: str | None


def _time(case: registry.Case, backend: Backend, sensors: Sensors, effort: Effort) -> _Timing:
    warmup = _warm_up(case, backend, effort)
    batch = batch_for(min(warmup), effort)
    samples = samples_for(batch * min(warmup), effort)
    answer: Any = None
    rounds: list[Round] = []
    disagreement: str | None = None
    with Sampler(sensors) as sampler:
        while not enough([r.times_s for r in rounds], sampler.at_s(), effort):
            at_s, times = sampler.at_s(), []
            for _ in range(samples):
                with backend.stopwatch() as watch:
                    for _ in range(batch):
                        answer = case.run()
                times.append(watch.device_s / batch)
                disagreement = disagreement or _disagree(watch.device_s, watch.host_s)
            rounds.append(Round(at_s=at_s, batch=batch, times_s=tuple(times)))
    return _Timing(
        answer=answer,
        warmup_times_s=warmup,
        rounds=tuple(rounds),
        telemetry=sampler.samples,
        lost=sampler.lost,
        timers_disagree=disagreement,
    )


def _warm_up(case: registry.Case, backend: Backend, effort: Effort) -> tuple[float, ...]:
    times: list[float] = []
    began = time.perf_counter()
    while not times or (time.perf_counter() - began < effort.warmup_s and len(times) < _WARMUP_RUNS):
        with backend.stopwatch() as watch:
            case.run()
        times.append(max(watch.device_s, 1e-9))  # an event pair may read 0 for a kernel below its resolution
    return tuple(times)


def _disagree(device_s: float, host_s: float) -> str | None:
    """Say so if the device claims more time than passed at the host: that cannot be."""
    if device_s > host_s * 1.01 + _EVENT_RESOLUTION_S:
        return f"the device's timer says {device_s:.6f} s, but only {host_s:.6f} s passed at the host"
    return None


def _digest(answer: Any, backend: Backend) -> str:
    """Hash an answer: its shapes, types and up to 65,536 evenly spaced elements of each array."""
    state = hashlib.sha256()
    for part in answer if isinstance(answer, tuple) else (answer,):
        flat = part.reshape(-1) if hasattr(part, "reshape") else np.asarray([part])
        kept = flat[:: max(1, flat.size // _DIGESTED)]
        state.update(f"{flat.dtype.str}:{flat.size};".encode())
        state.update(np.ascontiguousarray(backend.to_host(kept)).tobytes())
    return state.hexdigest()


def _record(  # noqa: PLR0913 - everything a measurement is made of, once
    job: Job,
    case: registry.Case,
    metric: Metric,
    timing: _Timing,
    backend: Backend,
    effort: Effort,
    started_at: str,
    began: float,
    answer_digest: str,
) -> Measurement:
    times = [r.times_s for r in timing.rounds]
    centre, low, high = stats.interval(stats.medians(times))
    fastest = min(min(t) for t in times)
    state, reason = judge(
        times,
        timing.telemetry,
        effort=effort,
        lost=timing.lost,
        power_limit_w=backend.device.power_limit_w,
        timers_disagree=timing.timers_disagree,
    )
    energy_j, energy_window_s = energy_between(timing.telemetry)
    return Measurement(
        job=job,
        started_at=started_at,
        elapsed_s=time.perf_counter() - began,
        work=case.work,
        metric=metric,
        state=state,
        reason=reason,
        time_s=centre,
        # No mean of times is below the fastest of them: a wide interval is cut there, not at an infinite rate.
        interval=Interval(low_s=max(low, fastest), high_s=high, confidence_fraction=stats.CONFIDENCE),
        warmup_times_s=timing.warmup_times_s,
        rounds=timing.rounds,
        energy_j=energy_j,
        energy_window_s=energy_window_s,
        telemetry=tuple(filter(_says_something, timing.telemetry)),
        telemetry_lost=timing.lost,
        answer_digest=answer_digest,
    )


def _says_something(sample: TelemetrySample) -> bool:
    """Tell an answer from the silence of a device without sensors, which is not worth keeping."""
    return sample != TelemetrySample(at_s=sample.at_s)
