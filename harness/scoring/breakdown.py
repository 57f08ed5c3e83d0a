"""A price that is a product, taken apart into dollars: exact Shapley values, which sum to the price to the last micro-dollar.

A feature's part is what it adds to the price on average over all orders in which the features could have come. For a product of
factors this need not be averaged over orders: it is an integral of a polynomial,

    part_i = base * integral from 0 to 1 of (m_i - 1) * product over j != i of (1 + t * (m_j - 1)) dt

so that fifteen factors take as many multiplications squared, not fifteen factorial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

__all__ = ["shapley"]


def shapley(base: Decimal, factors: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """Return what each factor adds to a base: the parts and the base sum to the product, up to the context's last digit.

    Args:
        base: the price where every factor is 1.
        factors: positive.
    """
    gains = {name: factor - 1 for name, factor in factors.items()}
    whole = _product([gain for gain in gains.values() if gain])
    return {name: base * gain * _integral(_without(whole, gain)) if gain else gain for name, gain in gains.items()}


def _product(gains: Sequence[Decimal]) -> list[Decimal]:
    """Return the coefficients, lowest first, of the product of (1 + gain * t)."""
    coefficients = [Decimal(1)]
    for gain in gains:
        coefficients.append(coefficients[-1] * gain)
        for k in range(len(coefficients) - 2, 0, -1):
            coefficients[k] += coefficients[k - 1] * gain
    return coefficients


def _without(whole: Sequence[Decimal], gain: Decimal) -> list[Decimal]:
    """Divide a polynomial by (1 + gain * t), from the end at which rounding errors shrink."""
    quotient = list(whole[:-1])
    if abs(gain) <= 1:
        for k in range(1, len(quotient)):
            quotient[k] -= gain * quotient[k - 1]
        return quotient
    quotient[-1] = whole[-1] / gain
    for k in range(len(quotient) - 2, -1, -1):
        quotient[k] = (whole[k + 1] - quotient[k + 1]) / gain
    return quotient


def _integral(coefficients: Sequence[Decimal]) -> Decimal:
    """Return the integral of a polynomial from 0 to 1."""
    return sum((c / (k + 1) for k, c in enumerate(coefficients)), Decimal(0))
