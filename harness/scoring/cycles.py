"""The unit of work: what a reference node that never changes does in an hour, and a millionth of its second.

    1 CU-hour = 3.6e9 cycles = the work that the reference node does in one hour on a profile
    1 cycle = a microsecond of the reference node; 1 Mcycle = one second of it

Time adds. A profile shares out the reference node's time among classes of work, so a device whose speeds in them are s needs
sum(share / s) of that time, and its speed on the profile is one over it: the weighted harmonic mean. It grows with every speed, doubles
when all double, and is never more than s / share of any class: excelling in one cannot buy the others.

All arithmetic here is in fractions: the order of inputs and the units that they came in cannot change a digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from harness.errors import MisuseError

__all__ = [
    "CYCLES_PER_CU_HOUR",
    "CYCLES_PER_MCYCLE",
    "CYCLES_PER_S",
    "Window",
    "cycles_of",
    "harmonic_speed",
    "whole_cycles_per_s",
]

CYCLES_PER_S = 10**6  # of the reference node
CYCLES_PER_MCYCLE = 10**6
CYCLES_PER_CU_HOUR = 3600 * CYCLES_PER_S


def harmonic_speed(
    shares: Mapping[str, Fraction], rates: Mapping[str, Fraction], reference: Mapping[str, Fraction] | None = None
) -> Fraction:
    """Return the speed on a mix of work: one over the sum of the shares, each divided by the speed in its class.

    Args:
        shares: by class of work; they sum to 1.
        rates: speeds, or, with a reference, rates in its units.
        reference: the rate that is a speed of 1.
    """
    above, below = 0, 1  # one sum over a common denominator, reduced once: a fleet has many devices
    for work_class, share in shares.items():
        rate = rates[work_class]
        numerator, denominator = share.numerator * rate.denominator, share.denominator * rate.numerator
        if reference:
            one = reference[work_class]
            numerator, denominator = numerator * one.numerator, denominator * one.denominator
        above, below = above * denominator + numerator * below, below * denominator
    return Fraction(below, above)


def whole_cycles_per_s(speed: Fraction) -> int:
    """Return the cycles of work that a device of this speed does in a second, rounded down."""
    return math.floor(speed * CYCLES_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A span of time in which a device worked at a speed."""

    cycles_per_s: int
    duration_us: int

    def __post_init__(self) -> None:
        """Refuse time that runs backwards."""
        if self.cycles_per_s < 0 or self.duration_us < 0:
            message = f"a window of {self.duration_us} us at {self.cycles_per_s} cycles/s; both should be 0 or more"
            raise MisuseError(message)


def cycles_of(windows: Iterable[Window]) -> int:
    """Return the cycles that windows hold together, rounded down once: one window cut into many holds the same."""
    return sum(w.cycles_per_s * w.duration_us for w in windows) // 10**6
