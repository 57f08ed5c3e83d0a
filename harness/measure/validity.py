"""The state of a measurement: a pure function of its times and of what the sensors said.

What this does not promise: an honest machine. The sensors are the provider's, and so is the clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from harness import stats
from harness.device.sensors import calibrated
from harness.measure.ceiling import LIMIT_FRACTION
from harness.measure.counters import unexplained
from harness.measure.rounds import Effort
from harness.model import Activity, Cache, Ceiling, Device, Metric, Soak, State, TelemetrySample
from harness.registry import cache_bytes

__all__ = ["RETRIES_MOST", "hard_throttle", "judge", "objections", "throttle_shares", "timers_differ"]

RETRIES_MOST = 2
_HARD = frozenset({"hw_slowdown", "hw_thermal", "hw_power_brake"})
_IDLE = frozenset({"gpu_idle"})
_SOFT_THERMAL = frozenset({"sw_thermal"})
_POWER_CAP = frozenset({"sw_power_cap"})
_SAMPLES_LEAST = 3  # fewer say nothing about how a device spent its time
_EVENT_RESOLUTION_S = 1e-6
_TIMER_FRACTION = 0.1
_TIMER_ALLOWANCE_S = 5e-4  # to wake the host when the device has finished
_LOWERED_FRACTION = 0.99


def judge(  # noqa: PLR0913 - all that can be held against a measurement
    rounds: Sequence[Sequence[float]],
    telemetry: Sequence[TelemetrySample],
    *,
    effort: Effort,
    lost: str | None = None,
    power_limit_w: float | None = None,
    power_default_limit_w: float | None = None,
    timers_disagree: str | None = None,
    objections: Sequence[str] = (),
    discarded: Sequence[str] = (),
    soak: Soak | None = None,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> tuple[State, str]:
    """Return the state and, in words, why. The gravest finding wins.

    Args:
        rounds: the times of each round that counts.
        telemetry: what the sensors said during these rounds.
        effort: how precise and steady the result was meant to be.
        lost: why the sensors stopped answering, if they did.
        power_limit_w: the limit in force.
        power_default_limit_w: the limit that the board was sold with.
        timers_disagree: what the device's timer claimed against the host's.
        objections: reasons why the number cannot be true.
        discarded: why each discarded round was; more than may be retried means that no round could be had.
        soak: how the load before a sustained measurement ended.
        shares: for what part of the time each cause slowed it, by the driver's counters; where unknown, the samples are counted.
    """
    against = [*([f"the sensors were lost while it ran: {lost}"] if lost else []), *filter(None, [timers_disagree])]
    against += objections
    if against:
        return "invalid", "; ".join(against)
    if len(discarded) > RETRIES_MOST:
        return "throttled", f"{discarded[-1]}, again after cooling down {RETRIES_MOST} times"
    throttled = _throttle(telemetry, shares, power_limit_w, power_default_limit_w)
    if throttled:
        return throttled
    if soak is not None and soak.steady is False:
        return "not_steady", f"still moving after {soak.elapsed_s:.0f} s of load: {_slopes(soak)}"
    state, reason = _steadiness(rounds, effort)
    return state, f"{reason}; {len(discarded)} more discarded: {discarded[-1]}" if discarded else reason


def hard_throttle(samples: Sequence[TelemetrySample]) -> str | None:
    """Return what the hardware did to a round by force, if anything: by its counters, or by the reasons it gave."""
    seen = frozenset().union(*(s.throttle_reasons or () for s in samples)) & _HARD
    counted = {cause for cause, lasted_s in _caused_s(samples).items() if lasted_s > 0} & _HARD
    names = sorted(seen | counted)
    return f"{' and '.join(names)} in a round" if names else None


def throttle_shares(spans: Sequence[Sequence[TelemetrySample]]) -> dict[str, float]:
    """Return for what part of some spans of time each cause slowed the device, by cumulative counters.

    A cause is left out where its counter is missing, was reset, or counts in a unit that cannot be told.
    """
    wall_s: dict[str, float] = {}
    lasted: dict[str, float | None] = {}
    for span in spans:
        told = [s for s in span if s.throttle_s is not None]
        elapsed_s = told[-1].at_s - told[0].at_s if told else 0.0
        seen = [frozenset(s.throttle_reasons or ()) for s in told]
        for cause, moved_s in _caused_s(told).items() if elapsed_s > 0 else ():
            share = _share(seen, frozenset({cause}))
            seconds, before = calibrated(moved_s * 1e9, elapsed_s, seen_fraction=share), lasted.get(cause, 0.0)
            lasted[cause] = None if seconds is None or before is None else before + seconds
            wall_s[cause] = wall_s.get(cause, 0.0) + elapsed_s
    return {cause: seconds / wall_s[cause] for cause, seconds in lasted.items() if seconds is not None}


def objections(  # noqa: PLR0913 - as many ways for a number to be impossible
    device: Device,
    *,
    cache: Cache,
    footprint_bytes: int | None,
    metric: Metric,
    ceiling: Ceiling | None,
    telemetry: Sequence[TelemetrySample],
    dtype: str = "",
    activity: Activity | None = None,
) -> Iterator[str]:
    """Yield each reason why a measurement cannot be what it says."""
    if cache == "cold" and footprint_bytes is not None and footprint_bytes <= 2 * cache_bytes(device):
        size, cached = footprint_bytes / 1e6, cache_bytes(device) / 1e6
        yield f"its operands of {size:.3g} MB stay in a cache of {cached:.3g} MB: not a memory rate"
    if ceiling is not None and ceiling.reached_fraction > LIMIT_FRACTION:
        yield f"{ceiling.reached_fraction:.0%} of what is physically possible ({ceiling.basis})"
    told = [frozenset(s.throttle_reasons) for s in telemetry if s.throttle_reasons is not None]
    if metric in {"compute", "bandwidth"} and len(told) >= _SAMPLES_LEAST and _share(told, _IDLE) == 1:
        yield "the driver called the GPU idle all the while: the load did not run there"
    contradiction = unexplained(activity, metric=metric, dtype=dtype, cache=cache, ceiling=ceiling)
    if contradiction is not None:
        yield contradiction


def timers_differ(device_s: float, host_s: float) -> str | None:
    """Say so if two readings of one span cannot both be right: the device's fits inside the host's, and nearly fills it."""
    if device_s > host_s * 1.01 + _EVENT_RESOLUTION_S:
        return f"the device's timer says {device_s:.6f} s, but only {host_s:.6f} s passed at the host"
    if host_s > device_s * (1 + _TIMER_FRACTION) + _TIMER_ALLOWANCE_S:
        return f"{host_s:.6f} s passed at the host, but the device's timer says only {device_s:.6f} s"
    return None


def _caused_s(samples: Sequence[TelemetrySample]) -> Mapping[str, float]:
    """Return how long each cause lasted between the first and the last sample that know; a counter that fell was reset."""
    told = [s.throttle_s for s in samples if s.throttle_s is not None]
    if len(told) < 2:  # noqa: PLR2004 - a difference needs two
        return {}
    return {cause: told[-1][cause] - before for cause, before in told[0].items() if told[-1].get(cause, -1) >= before}


def _share(seen: Sequence[frozenset[str]], reasons: frozenset[str]) -> float:
    return sum(bool(s & reasons) for s in seen) / len(seen)


def _throttle(
    telemetry: Sequence[TelemetrySample], shares: Mapping[str, float], limit_w: float | None, default_w: float | None
) -> tuple[State, str] | None:
    seen = [frozenset(s.throttle_reasons) for s in telemetry if s.throttle_reasons is not None]

    def share(cause: frozenset[str]) -> tuple[float, str]:
        (name,) = cause
        if name in shares:
            return shares[name], "of the time"
        return (_share(seen, cause) if seen else 0.0), "of the samples"

    hard = sorted(frozenset().union(*seen) & _HARD)
    if hard:
        return "throttled", f"{' and '.join(hard)} in {_share(seen, _HARD):.0%} of the samples"
    thermal, of_what = share(_SOFT_THERMAL)
    if thermal:
        return "thermally_limited", f"the driver slowed it for its temperature in {thermal:.0%} {of_what}"
    capped, of_what = share(_POWER_CAP)
    if capped:
        limit = f" of {limit_w:.0f} W" if limit_w else ""
        lowered = bool(limit_w and default_w and limit_w < _LOWERED_FRACTION * default_w)
        default = f", lowered from {default_w:.0f} W," if lowered else ""
        return "power_capped", f"at the power limit{limit}{default} in {capped:.0%} {of_what}"
    return None


def _slopes(soak: Soak) -> str:
    told = [
        f"{soak.temperature_c_per_min:+.2f} degC a minute" if soak.temperature_c_per_min is not None else "",
        f"clock {soak.clock_fraction_per_min:+.2%} a minute" if soak.clock_fraction_per_min is not None else "",
    ]
    return ", ".join(filter(None, told))


def _steadiness(rounds: Sequence[Sequence[float]], effort: Effort) -> tuple[State, str]:
    values = stats.medians(rounds)
    centre, low, high = stats.interval(values, stats.step(rounds))
    half, change = (high - low) / 2 / centre, stats.drift(values)
    # A slope is only a trend where it stands out of the scatter; otherwise noise would be called drift.
    if abs(change) > max(effort.drift_fraction, 2 * half):
        return "drifting", f"{change:+.1%} from the first to the last round"
    if half > effort.half_width_fraction:
        return "noisy", f"interval of ±{half:.1%} after {len(values)} rounds, wanted ±{effort.half_width_fraction:.1%}"
    return "valid", f"±{half:.2%} over {len(values)} rounds"
