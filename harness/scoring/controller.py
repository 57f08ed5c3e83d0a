"""A slow controller of congestion: full nodes get dearer and idle ones cheaper, by a few per cent an hour and never without bounds.

A pure function of state and utilisation; whoever runs it holds the clock. It works on the logarithm of the multiplier, so that up and
down are alike; the step is proportional to the error and capped; at its bounds it does not wind up. EIP-1559 changes a price by an
eighth every twelve seconds, which on a market whose demand answers in hours is noise and overshoot (benchmarks/controller.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from harness.errors import MisuseError
from harness.scoring.exact import precise

__all__ = ["AT_REST", "Congestion", "Gains", "stepped"]

_STEP = Decimal("0.000000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """How a controller answers."""

    target: Decimal = Decimal("0.70")  # utilisation to hold
    per_hour: Decimal = Decimal("0.15")  # change of the logarithm for an error of 1
    most_per_hour: Decimal = Decimal("0.03")
    least: Decimal = Decimal("0.5")  # bounds of the multiplier
    most: Decimal = Decimal(2)
    memory_s: int = 4 * 3600  # over which the error is averaged: noise of an hour is no news
    lead_s: int = 3 * 3600  # how far the averaged error's own change is looked ahead, which keeps it from swinging


@dataclass(frozen=True, slots=True, kw_only=True)
class Congestion:
    """Where a controller stands; both numbers are rounded to nine decimals at each step."""

    multiplier: Decimal = Decimal(1)
    utilisation: Decimal | None = None  # averaged; None before the first step


AT_REST = Congestion()


def stepped(state: Congestion, utilisation: Decimal, elapsed_s: int, gains: Gains | None = None) -> Congestion:
    """Return the state after a span of time with a utilisation.

    Args:
        state: where it stands.
        utilisation: mean share of the supply that was rented in the span, from 0 to 1.
        elapsed_s: the span, an hour as a rule; more than 0.
        gains: how to answer.

    Raises:
        MisuseError: one of them is out of range.
    """
    gains = gains or Gains()
    if not utilisation.is_finite() or not 0 <= utilisation <= 1 or elapsed_s <= 0:
        message = f"utilisation {utilisation} over {elapsed_s} s; it should be from 0 to 1, over more than 0 s"
        raise MisuseError(message)
    with precise():
        weight = Decimal(elapsed_s) / (elapsed_s + gains.memory_s)
        before = utilisation if state.utilisation is None else state.utilisation
        averaged = (before + weight * (utilisation - before)).quantize(_STEP)
        hours = Decimal(elapsed_s) / 3600
        trend_per_s = (averaged - before) / elapsed_s
        error = averaged - gains.target + trend_per_s * gains.lead_s
        cap = gains.most_per_hour * hours
        change = max(min(gains.per_hour * error * hours, cap), -cap)
        multiplier = max(min(state.multiplier * change.exp(), gains.most), gains.least)
        return Congestion(multiplier=multiplier.quantize(_STEP), utilisation=averaged)
