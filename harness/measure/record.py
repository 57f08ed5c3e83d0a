"""What is written down of a job when its rounds are over: the interval, the clock, the energy, the ceiling, and whether to believe it."""

from __future__ import annotations

from collections.abc import Sequence

from harness import stats, units
from harness.device.backend import Backend
from harness.device.sampler import Sampler
from harness.measure.ceiling import ceiling, measured_ceiling
from harness.measure.digests import inputs_of
from harness.measure.energy import spent
from harness.measure.rounds import Effort
from harness.measure.seat import Seat
from harness.measure.validity import judge, objections, throttle_shares
from harness.model import Ceiling, Device, Energy, Interval, Measurement, Metric, TelemetrySample

__all__ = ["record"]


def record(seat: Seat, backend: Backend, sampler: Sampler, effort: Effort) -> Measurement:
    """Return the measurement that follows from a job's rounds, with the judgement of it."""
    case, clockwork, device = seat.case, seat.clock, backend.device
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
        inputs=inputs_of(case, backend),
        launches_hidden=clockwork.held,
        clock_mhz=clock_mhz,
        soak=seat.soak,
        energy=_energy(seat, device, sampler, effort),
        ceiling=highest,
        activity=activity,
    )


def _ceiling(  # noqa: PLR0913 - as `ceiling`
    seat: Seat,
    backend: Backend,
    metric: Metric,
    time_s: float,
    clock_mhz: float | None,
    telemetry: Sequence[TelemetrySample],
) -> Ceiling | None:
    case = seat.case
    if case.roof is not None:
        seat.reach_roof(backend)
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


def _energy(seat: Seat, device: Device, sampler: Sampler, effort: Effort) -> Energy | None:
    """Return the energy of a sustained load; jobs that take turns share the device, and nobody can tell theirs apart."""
    if seat.job.regime != "sustained":
        return None
    return spent(
        sampler.samples,
        seat.clock.marks,
        window_min_s=0.8 * effort.energy_s,
        scope="package" if device.kind == "cpu" else device.energy_scope or "gpu",
        idle_w=seat.idle_w,
        power_limit_w=device.power_limit_w,
    )


def _says_something(sample: TelemetrySample) -> bool:
    """Tell an answer from the silence of a device without sensors, which is not worth keeping."""
    return sample != TelemetrySample(at_s=sample.at_s)
