"""The one door from measured numbers to exact ones: behind it there is no float, and nothing is rounded unless it says so.

Money modules take `Decimal`, `Fraction` and `int` only; a test reads their sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction

__all__ = ["MICRO", "Measured", "decimal_of", "fraction_of", "measured_of", "plain", "precise", "rounded", "shared_out"]

MICRO = Decimal("0.000001")
Measured = float  # what a sensor or a clock gave: no money
# 60 digits: an amount below 10^12 dollars keeps 40 beyond the micro-dollar through every product and logarithm.
_DIGITS = 60


def precise() -> AbstractContextManager[Context]:
    """Return the context that prices are computed in: the caller's own must not change one."""
    return localcontext(Context(prec=_DIGITS, rounding=ROUND_HALF_EVEN))


def decimal_of(measured: float) -> Decimal:
    """Turn a measured number, which is no money, into the decimal that it prints as."""
    return Decimal(repr(measured))


def fraction_of(measured: float) -> Fraction:
    """Turn a measured number into the very fraction that it is."""
    return Fraction(measured)


def rounded(value: Fraction, step: Decimal = MICRO) -> Decimal:
    """Round a fraction once, half to even, to a multiple of a step that is a power of ten."""
    digits = -int(step.as_tuple().exponent)
    count = round(value * 10**digits)
    with localcontext(Context(prec=_DIGITS + digits + len(str(abs(count))))):
        return Decimal(count).scaleb(-digits) + 0  # + 0: no price of minus zero


def measured_of(value: Fraction) -> float:
    """Return the float nearest to a fraction, for whoever computes with measured numbers."""
    return float(value)


def plain(value: Decimal) -> str:
    """Return a decimal as text, without an exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shared_out(total: Decimal, parts: Mapping[str, Decimal], step: Decimal = MICRO) -> dict[str, Decimal]:
    """Round parts to multiples of a step so that they sum to the total: each down, and the largest remainders up.

    Ties go to the name that comes first. The parts must sum to the total up to their own rounding.
    """
    counts = {name: int((value / step).to_integral_value(rounding="ROUND_FLOOR")) for name, value in parts.items()}
    short = int(total / step) - sum(counts.values())
    for name in _largest_remainders(parts, counts, step)[: max(short, 0)]:
        counts[name] += 1
    short = int(total / step) - sum(counts.values())
    if short:
        message = f"parts that sum to {sum(parts.values())} were to be shared out of {total}"
        raise AssertionError(message)
    return {name: count * step + 0 for name, count in counts.items()}


def _largest_remainders(parts: Mapping[str, Decimal], counts: Mapping[str, int], step: Decimal) -> list[str]:
    remainders: Iterable[tuple[Decimal, str]] = ((counts[name] - value / step, name) for name, value in parts.items())
    return [name for _, name in sorted(remainders)]
