"""When a device is warm: pure functions over what its clock and its thermometer said.

Burst: the clock has stopped climbing. Sustained: neither temperature nor clock moves any more, so that what is measured now is what
the device gives in an hour. A sensor that says nothing decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness import stats
from harness.measure.rounds import Effort
from harness.model import Soak

__all__ = ["Reading", "settled", "soak", "soaked"]

_WINDOWS = 5
_CLOCK_FRACTION = 0.01
_SLOPE_WINDOW_S = 60.0  # a thermometer of whole degrees needs as long to show half a degree a minute
_TEMPERATURE_C_PER_MIN = 0.5
_CLOCK_FRACTION_PER_MIN = 0.005
_READINGS_LEAST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was seen under load, `at_s` seconds after the soak began."""

    at_s: float
    temperature_c: float | None = None
    clock_mhz: float | None = None


def settled(clocks_mhz: Sequence[float | None]) -> bool:
    """Tell whether the clock of the last five windows varied by less than 1 %; also where no clock is known."""
    known = [c for c in clocks_mhz if c is not None]
    if not known:
        return True
    last = known[-_WINDOWS:]
    return len(last) == _WINDOWS and max(last) - min(last) < _CLOCK_FRACTION * max(last)


def soaked(readings: Sequence[Reading], effort: Effort) -> bool:
    """Decide whether to end a soak: steady after the least time, or at the most."""
    elapsed_s = readings[-1].at_s if readings else 0.0
    if elapsed_s >= effort.soak_max_s:
        return True
    return elapsed_s >= effort.soak_min_s and soak(readings).steady is not False


def soak(readings: Sequence[Reading]) -> Soak:
    """Say how a soak ended: the slopes of its last minute, and whether both are flat."""
    elapsed_s = readings[-1].at_s if readings else 0.0
    late = [r for r in readings if r.at_s >= elapsed_s - _SLOPE_WINDOW_S]
    temperature = _per_minute([(r.at_s, r.temperature_c) for r in late if r.temperature_c is not None])
    clocks = [(r.at_s, r.clock_mhz) for r in late if r.clock_mhz is not None]
    slope = _per_minute(clocks)
    mean_mhz = sum(mhz for _, mhz in clocks) / len(clocks) if clocks else 0.0
    fraction = None if slope is None or not mean_mhz else slope / mean_mhz
    flat = [
        abs(value) < limit
        for value, limit in ((temperature, _TEMPERATURE_C_PER_MIN), (fraction, _CLOCK_FRACTION_PER_MIN))
        if value is not None
    ]
    return Soak(
        elapsed_s=elapsed_s,
        steady=all(flat) if flat else None,
        temperature_c_per_min=temperature,
        clock_fraction_per_min=fraction,
    )


def _per_minute(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the fitted slope, or None where there are too few points to fit one."""
    if len(points) < _READINGS_LEAST:
        return None
    return stats.slope([t for t, _ in points], [v for _, v in points]) * 60
