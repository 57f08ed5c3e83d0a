"""The few statistics a measurement needs, over plain floats.

The interval is Student's t over the medians of rounds, with the quantile widened from 0.975 to 0.985: rounds are added until
the interval is narrow enough, and looking several times costs coverage that the widening pays back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median, stdev

from harness.model import Round

__all__ = ["CONFIDENCE", "counting", "drift", "interval", "medians", "slope", "step"]

CONFIDENCE = 0.95

# 0.985 quantiles of Student's t for 1 to 30 degrees of freedom (scipy.stats.t.ppf; a test recomputes them).
_T985 = (
    21.204949, 5.642778, 3.896046, 3.297630, 3.002875, 2.828928, 2.714573, 2.633814, 2.573804, 2.527484,
    2.490664, 2.460700, 2.435845, 2.414898, 2.397005, 2.381545, 2.368055, 2.356180, 2.345648, 2.336242,
    2.327792, 2.320160, 2.313231, 2.306913, 2.301130, 2.295815, 2.290914, 2.286380, 2.282175, 2.278262,
)  # fmt: skip


def medians(rounds: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the median of each round."""
    return tuple(median(r) for r in rounds)


def step(rounds: Sequence[Sequence[float]]) -> float:
    """Return the smallest difference between two unequal times: the timer's step where it shows, next to nothing elsewhere."""
    known = sorted({t for times in rounds for t in times})
    return min((later - earlier for earlier, later in pairwise(known)), default=0.0)


def interval(values: Sequence[float], step: float = 0.0) -> tuple[float, float, float]:
    """Return mean, low and high end of the mean's confidence interval, no narrower than one `step` of the timer.

    Medians of a coarse timer may all be equal, which says that the truth is within a step, not that it is known exactly.
    One value has no spread to judge by: its interval is unbounded above and starts at zero.
    """
    centre = fmean(values)
    if len(values) < 2:  # noqa: PLR2004 - two values are what a spread needs
        return centre, 0.0, math.inf
    quantile = _T985[min(len(values) - 1, len(_T985)) - 1]
    half = max(quantile * stdev(values) / math.sqrt(len(values)), step / 2)
    return centre, max(centre - half, 0.0), centre + half


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of the straight line fitted to values over positions by least squares; 0 where all stand at one."""
    middle, centre = fmean(at), fmean(values)
    spread = sum((x - middle) ** 2 for x in at)
    if not spread:
        return 0.0
    return sum((x - middle) * (v - centre) for x, v in zip(at, values, strict=True)) / spread


def drift(values: Sequence[float]) -> float:
    """Return the fitted change from the first to the last value, relative to their mean; signed."""
    centre = fmean(values)
    return slope(range(len(values)), values) * (len(values) - 1) / centre if centre else 0.0


def counting(rounds: Sequence[Round]) -> tuple[Round, ...]:
    """Return the rounds that count: all but the discarded ones, or all where fewer than two are left, which have no spread to judge by."""
    left = tuple(r for r in rounds if r.discarded is None)
    return left if len(left) >= 2 else tuple(rounds)  # noqa: PLR2004 - as `interval`
