"""The one door from measured numbers to exact ones: behind it there is no float, and nothing is rounded unless it says so.

Money modules take `Decimal`, `Fraction` and `int` only; a test reads their sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

__all__ = [
    "MICRO",
    "Measured",
    "decimal_of",
    "exponential",
    "fraction_of",
    "logarithm",
    "measured_of",
    "plain",
    "precise",
    "ratio_rounded",
    "rounded",
    "shared_out",
]

MICRO = Decimal("0.000001")
Measured = float  # what a sensor or a clock gave: no money
# 60 digits: an amount below 10^12 dollars keeps 40 beyond the micro-dollar through every product and logarithm.
_DIGITS = 60
_DIGITS_OF_FACTORS = 40


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
    return ratio_rounded(value.numerator, value.denominator, step)


def ratio_rounded(above: int, below: int, step: Decimal = MICRO) -> Decimal:
    """Round the quotient of two whole numbers, the lower one positive, in the same way."""
    digits = -int(step.as_tuple().exponent)
    count, rest = divmod(above * 10**digits, below)
    count += 2 * rest > below or (2 * rest == below and count % 2)
    return Decimal(f"{count}E{-digits}")  # exact in any context


_PRECISE_ENOUGH = Context(prec=_DIGITS_OF_FACTORS, rounding=ROUND_HALF_EVEN)
_GUARDED = Context(
    prec=_DIGITS_OF_FACTORS + 12, rounding=ROUND_HALF_EVEN
)  # so that a product of three is right to the digits above
_EXACT = Context(prec=_DIGITS, rounding=ROUND_HALF_EVEN)


@lru_cache(4096)
def exponential(log: Decimal) -> Decimal:
    """Return e to a power, to 40 digits whatever the context.

    A power of nine decimals, as all logarithms of prices are, is the sum of three parts that many devices share: of a fleet, the last
    takes two multiplications.
    """
    scaled = log.scaleb(9, _EXACT)
    nanos = int(scaled)
    if nanos != scaled:
        return log.exp(_PRECISE_ENOUGH)
    thousands, ones = divmod(nanos, 1000)
    millions, thousands = divmod(thousands, 1000)
    rest = _GUARDED.multiply(_part(thousands, -6), _part(ones, -9))
    return _PRECISE_ENOUGH.multiply(_part(millions, -3), rest)


@lru_cache(1 << 16)
def _part(count: int, exponent: int) -> Decimal:
    return Decimal(f"{count}E{exponent}").exp(_GUARDED)


def ratio_of(measured: float) -> tuple[int, int]:
    """Turn a measured number into the quotient of whole numbers that it is."""
    return measured.as_integer_ratio()


def measured_of(value: Fraction) -> float:
    """Return the float nearest to a fraction, for whoever computes with measured numbers."""
    return float(value)


def logarithm(value: Decimal) -> Decimal:
    """Return the natural logarithm of a positive number, to 40 digits whatever the context."""
    return value.ln(_PRECISE_ENOUGH)


def plain(value: Decimal) -> str:
    """Return a decimal as text, without an exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shared_out(total: Decimal, parts: Mapping[str, Decimal], step: Decimal = MICRO) -> dict[str, Decimal]:
    """Round parts to multiples of a step so that they sum to the total: each down, and the largest remainders up.

    Ties go to the name that comes first. The parts must sum to the total up to their own rounding.
    """
    scale = _EXACT.divide(Decimal(1), step)
    scaled = {name: value * scale for name, value in parts.items()}
    counts = {name: int(value.to_integral_value(rounding="ROUND_FLOOR")) for name, value in scaled.items()}
    whole = int(total * scale)
    short = whole - sum(counts.values())
    if short > 0:
        remainders = sorted((counts[name] - value, name) for name, value in scaled.items())
        for _, name in remainders[:short]:
            counts[name] += 1
        short = whole - sum(counts.values())
    if short:
        message = f"parts that sum to {sum(parts.values())} were to be shared out of {total}"
        raise AssertionError(message)
    return {name: count * step + 0 for name, count in counts.items()}
