"""A price that is a product, taken apart into dollars: exact Shapley values, which sum to the price to the last micro-dollar.

A feature's part is what it adds to the price on average over all orders in which the features could have come. For a product of
factors this need not be averaged over orders: it is an integral of a polynomial,

    part_i = base * integral from 0 to 1 of (m_i - 1) * product over j != i of (1 + t * (m_j - 1)) dt

so that fifteen factors take as many multiplications squared, not fifteen factorial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

__all__ = ["shapley"]

_ZERO, _ONE = Decimal(0), Decimal(1)
_DIGITS = Context(
    prec=38, rounding=ROUND_HALF_EVEN
)  # what two machine words hold: half the time of 60, for a price below 10^12 dollars enough


def shapley(base: Decimal, factors: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """Return what each factor adds to a base: the parts and the base sum to the product, up to the 36th digit.

    Args:
        base: the price where every factor is 1.
        factors: positive.
    """
    with localcontext(_DIGITS):
        gains = {name: factor - 1 for name, factor in factors.items()}
        whole = _product([gain for gain in gains.values() if gain])
        shares = [_ONE / (k + 1) for k in range(len(whole) - 1)]
        return {name: base * gain * _integral(whole, gain, shares) if gain else gain for name, gain in gains.items()}


def _product(gains: Sequence[Decimal]) -> list[Decimal]:
    """Return the coefficients, lowest first, of the product of (1 + gain * t)."""
    coefficients = [_ONE]
    for gain in gains:
        coefficients.append(coefficients[-1] * gain)
        for k in range(len(coefficients) - 2, 0, -1):
            coefficients[k] += coefficients[k - 1] * gain
    return coefficients


def _integral(whole: Sequence[Decimal], gain: Decimal, shares: Sequence[Decimal]) -> Decimal:
    """Return the integral from 0 to 1 of a polynomial divided by (1 + gain * t), by the integrals of the powers: 1, 1/2, 1/3 and so on.

    Divided from the end at which rounding errors shrink.
    """
    total = coefficient = _ZERO
    if abs(gain) <= 1:
        for c, share in zip(whole, shares, strict=False):  # the last coefficient is what division leaves nothing of
            coefficient = c - gain * coefficient
            total += coefficient * share
        return total
    for c, share in zip(reversed(whole), reversed(shares), strict=False):
        coefficient = (c - coefficient) / gain
        total += coefficient * share
    return total
