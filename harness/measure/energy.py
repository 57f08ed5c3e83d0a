"""What the work cost in joules: pure functions over the sensors' trace and the count of runs beside it.

The driver's energy counter ticks about ten times a second and its power reading may be a mean over the last one. So the window is long,
its edges are ticks of the counter, the runs are counted between these edges, and where there are two ways to know, they must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from harness.model import Energy, TelemetrySample

__all__ = ["Mark", "idle_power_w", "spent"]

_DISPUTED_FRACTION = 0.05
_ABOVE_LIMIT = 1.1
_EDGES_LEAST = 10  # a window of fewer ticks is no longer than its own error


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How many runs had ended at a moment under load."""

    at_s: float
    runs: int
    rested: bool = False  # there was a rest between the mark before and this one


def spent(  # noqa: PLR0913 - all that a reading of energy has to be held against
    samples: Sequence[TelemetrySample],
    marks: Sequence[Mark],
    *,
    window_min_s: float,
    scope: Literal["gpu", "module", "package"] = "gpu",
    idle_w: float | None = None,
    power_limit_w: float | None = None,
) -> Energy | None:
    """Return the energy of the longest load that no rest interrupted, by its marks; None where no sensor covers `window_min_s` of it."""
    marks = _longest_load(marks)
    if len(marks) < 2:  # noqa: PLR2004 - a window has two ends
        return None
    under_load = [s for s in samples if marks[0].at_s <= s.at_s <= marks[-1].at_s]
    edges, reset = _ticks(under_load)
    power = [(s.at_s, s.power_w) for s in under_load if s.power_w is not None]
    usable = not reset and len(edges) >= _EDGES_LEAST and edges[-1][0] - edges[0][0] >= window_min_s
    if usable:
        (start_s, before_j), (end_s, after_j) = edges[0], edges[-1]
        joules, integral = after_j - before_j, _integral(power, start_s, end_s)
    elif len(power) >= _EDGES_LEAST and power[-1][0] - power[0][0] >= window_min_s:
        start_s, end_s = power[0][0], power[-1][0]
        joules, integral = _integral(power, start_s, end_s) or 0.0, None
    else:
        return None
    return Energy(
        joules=joules,
        window_s=end_s - start_s,
        run_count=_runs(marks, end_s) - _runs(marks, start_s),
        source="counter" if usable else "power",
        scope=scope,
        integral_j=integral,
        disputed=_disputed(joules, integral, joules / (end_s - start_s), idle_w, power_limit_w, reset=reset),
        idle_power_w=idle_w,
    )


def idle_power_w(samples: Sequence[TelemetrySample]) -> float | None:
    """Return the mean power of a device at rest, or None if it told none."""
    watts = [s.power_w for s in samples if s.power_w is not None]
    return sum(watts) / len(watts) if watts else None


def _longest_load(marks: Sequence[Mark]) -> Sequence[Mark]:
    """Return the marks of the longest time without a rest: what a device takes while it cools is no run's."""
    edges = [0, *(i for i, mark in enumerate(marks) if mark.rested), len(marks)]
    loads = [marks[begin:end] for begin, end in pairwise(edges) if begin < end]
    return max(loads, key=lambda load: load[-1].at_s - load[0].at_s, default=())


def _ticks(samples: Sequence[TelemetrySample]) -> tuple[list[tuple[float, float]], bool]:
    """Return each moment at which the counter was seen to have moved, with its value; and whether it ever went backwards."""
    known = [(s.at_s, s.energy_j) for s in samples if s.energy_j is not None]
    moved = [(at_s, joules) for (_, before), (at_s, joules) in pairwise(known) if joules != before]
    return moved, any(after < before for (_, before), (_, after) in pairwise(known))


def _integral(power: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float | None:
    """Integrate power over a window by the trapezoid rule, with the ends interpolated; None where it is not covered."""
    inside = [p for p in power if start_s < p[0] < end_s]
    first, last = _at(power, start_s), _at(power, end_s)
    if first is None or last is None:
        return None
    points = [(start_s, first), *inside, (end_s, last)]
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(points))


def _at(points: Sequence[tuple[float, float]], at_s: float) -> float | None:
    """Interpolate between the two points around a moment; None outside of them."""
    for (t0, v0), (t1, v1) in pairwise(points):
        if t0 <= at_s <= t1:
            return v0 if t1 == t0 else v0 + (v1 - v0) * (at_s - t0) / (t1 - t0)
    return None


def _runs(marks: Sequence[Mark], at_s: float) -> float:
    return _at([(m.at_s, float(m.runs)) for m in marks], at_s) or 0.0


def _disputed(  # noqa: PLR0913 - as many witnesses
    joules: float,
    integral: float | None,
    mean_w: float,
    idle_w: float | None,
    limit_w: float | None,
    *,
    reset: bool,
) -> str | None:
    if reset:
        return "the energy counter went backwards: it was reset, or it is another device's"
    if integral is not None and abs(joules - integral) > _DISPUTED_FRACTION * max(joules, integral):
        return f"the counter says {joules:.0f} J, power over time {integral:.0f} J"
    if limit_w is not None and mean_w > _ABOVE_LIMIT * limit_w:
        return f"a mean of {mean_w:.0f} W is more than the power limit of {limit_w:.0f} W allows"
    if idle_w is not None and mean_w < idle_w:
        return f"a mean of {mean_w:.0f} W under load is less than the {idle_w:.0f} W at rest"
    return None
