"""One cost of the harness, as a line of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

__all__ = ["Line", "line", "timed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A cost: the median, the quartiles around it, how it was measured, and what it must stay below, if that was promised."""

    what: str
    value: float
    low: float
    high: float
    unit: str
    count: int
    how: str
    limit: float | None = None

    @property
    def kept(self) -> bool:
        """Tell whether it is below its limit."""
        return self.limit is None or self.value < self.limit


def line(what: str, values: Sequence[float], unit: str, how: str, *, limit: float | None = None) -> Line:
    """Make a line of the values, of which one alone has no spread to show."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Line(what=what, value=median(values), low=low, high=high, unit=unit, count=len(values), how=how, limit=limit)


def timed(work: Callable[[], object], times: int) -> list[float]:
    """Return how many milliseconds each of some calls took."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append((time.perf_counter() - start) * 1e3)
    return found
