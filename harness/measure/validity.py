"""The state of a measurement: a pure function of its times and of what the sensors said.

What this does not promise: an honest machine. The sensors are the provider's, and so is the clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness import stats
from harness.measure.rounds import Effort
from harness.model import State, TelemetrySample

__all__ = ["judge"]

_HARD = frozenset({"hw_slowdown", "hw_thermal", "hw_power_brake"})


def judge(  # noqa: PLR0913 - all that can be held against a measurement
    rounds: Sequence[Sequence[float]],
    telemetry: Sequence[TelemetrySample],
    *,
    effort: Effort,
    lost: str | None = None,
    power_limit_w: float | None = None,
    timers_disagree: str | None = None,
) -> tuple[State, str]:
    """Return the state and, in words, why. The gravest finding wins."""
    if lost:
        return "invalid", f"the sensors were lost while it ran: {lost}"
    if timers_disagree:
        return "invalid", timers_disagree
    seen = [frozenset(s.throttle_reasons) for s in telemetry if s.throttle_reasons is not None]
    throttled = _throttle(seen, power_limit_w)
    if throttled:
        return throttled
    return _steadiness(rounds, effort)


def _share(seen: Sequence[frozenset[str]], reasons: frozenset[str]) -> float:
    return sum(bool(s & reasons) for s in seen) / len(seen)


def _throttle(seen: Sequence[frozenset[str]], power_limit_w: float | None) -> tuple[State, str] | None:
    if not seen:
        return None
    hard = sorted(frozenset().union(*seen) & _HARD)
    if hard:
        return "throttled", f"{' and '.join(hard)} in {_share(seen, _HARD):.0%} of the samples"
    thermal = _share(seen, frozenset({"sw_thermal"}))
    if thermal:
        return "thermally_limited", f"the driver slowed it for its temperature in {thermal:.0%} of the samples"
    capped = _share(seen, frozenset({"sw_power_cap"}))
    if capped:
        limit = f" of {power_limit_w:.0f} W" if power_limit_w else ""
        return "power_capped", f"at the power limit{limit} in {capped:.0%} of the samples"
    return None


def _steadiness(rounds: Sequence[Sequence[float]], effort: Effort) -> tuple[State, str]:
    values = stats.medians(rounds)
    centre, low, high = stats.interval(values)
    half, change = (high - low) / 2 / centre, stats.drift(values)
    # A slope is only a trend where it stands out of the scatter; otherwise noise would be called drift.
    if abs(change) > max(effort.drift_fraction, 2 * half):
        return "drifting", f"{change:+.1%} from the first to the last round"
    if half > effort.half_width_fraction:
        return "noisy", f"interval of ±{half:.1%} after {len(values)} rounds, wanted ±{effort.half_width_fraction:.1%}"
    return "valid", f"±{half:.2%} over {len(values)} rounds"
