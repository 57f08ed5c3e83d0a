"""A market price as a product of factors: rounded, kept within its interval and above the floor, and taken apart into lines of dollars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import NamedTuple

from harness.model import CostLine, Factor
from harness.scoring.breakdown import shapley
from harness.scoring.exact import MICRO, exponential, plain, shared_out
from harness.scoring.reliability import Discount
from harness.scoring.worth import Worth

__all__ = ["Product", "Sold"]

_PICO = Decimal("0.000000000001")
_RAISED = "raised to the floor: the market pays less than power, host, wear and fee cost"


class Sold(NamedTuple):
    """What an hour is sold for, within what bounds, and what it is made of."""

    price: Decimal
    low: Decimal
    high: Decimal
    lines: tuple[CostLine, ...]
    factors: tuple[Factor, ...]
    reasons: tuple[str, ...]

    def fields(self) -> dict[str, object]:
        """Return them as a quote names them."""
        return {
            "low_usd_per_hour": self.low,
            "high_usd_per_hour": self.high,
            "breakdown": self.lines,
            "factors": self.factors,
        }


class Product:
    """What the market pays for a device, sold by such a seller on such terms.

    Congestion moves a price within its interval, and not the interval.
    """

    def __init__(self, worth: Worth, deal: Mapping[str, Discount], congestion: Decimal) -> None:
        logs = dict(worth.logs)
        self._worth = worth
        self._base = exponential(logs.pop("base"))
        market = f"market: {worth.basis}"
        self._factors = {name: Discount(exponential(log), market) for name, log in logs.items()}
        self._factors |= deal
        scale = Decimal(1)
        for discount in deal.values():
            scale *= discount.times
        self._ends = [exponential(end) * scale for end in (worth.log_low, worth.log_high)]
        self._factors["congestion"] = Discount(congestion, "given: the controller's multiplier")

    def sold(self, floor: Decimal) -> Sold:
        """Round the product, keep it within its bounds, and take it apart."""
        exact = self._base
        for discount in self._factors.values():
            exact *= discount.times
        found, (low, high) = exact.quantize(MICRO), (end.quantize(MICRO) for end in self._ends)
        kept = max(min(found, high), low)
        price = max(kept, floor)
        return Sold(
            price=price,
            low=max(low, floor),
            high=max(high, floor),
            lines=(*self._lines(found), *_clamps(found, kept, price)),
            factors=tuple(
                Factor(name=name, times=plain(d.times.quantize(_PICO)), basis=d.basis)
                for name, d in self._factors.items()
            ),
            reasons=(*self._worth.reasons, *((_RAISED,) if price > kept else ())),
        )

    def _lines(self, found: Decimal) -> Iterator[CostLine]:
        parts = shapley(self._base, {name: d.times for name, d in self._factors.items()})
        shown = shared_out(found, {"base": self._base} | parts)
        basis = f"market: a card without qualities; {self._worth.basis}"
        yield CostLine(name="base", usd_per_hour=shown["base"], basis=basis)
        for name, discount in self._factors.items():
            yield CostLine(name=name, usd_per_hour=shown[name], basis=discount.basis)


def _clamps(found: Decimal, kept: Decimal, price: Decimal) -> Iterator[CostLine]:
    if kept != found:
        yield CostLine(name="interval", usd_per_hour=kept - found, basis="computed: kept within the interval")
    if price != kept:
        yield CostLine(name="floor", usd_per_hour=price - kept, basis="computed: raised to the floor")
