"""Does an offer follow from a quote? Its promise and its price inputs are signed as hashes, and are made again here from the quote and what the seller added.

Promised: where a hash is the one that is made again, promise and price are the quote's to the last digit, or the offer is refused.
Not promised: anything of an offer whose seller added what was not given here: such a part is named as not compared, which is no word against it.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from harness.errors import ForgeryError
from harness.market.offers import evidence
from harness.market.offers.offer import Offer, quote_of, usd_of, worth
from harness.model import Quote

__all__ = ["check_quote"]


def check_quote(
    offer: Offer,
    quote: Quote | bytes | str | Path,
    *,
    tolerance: Decimal | None = None,
    usd_per_asset: Decimal | None = None,
) -> tuple[str, ...]:
    """Return what could not be compared of an offer that follows from a quote as far as it could: `promise`, `price`, or nothing.

    Args:
        offer: by the second or the Mcycle; what a token of an LLM costs takes a rate that is not in a quote.
        quote: the price, or the bytes or the file that `harness quote --out` wrote.
        tolerance: by which the promised speed may be missed; what sellers say where they say nothing, 0.05, is tried where it is left out.
        usd_per_asset: what the seller takes a token to be worth, in dollars; 1 is tried where it is left out.

    Raises:
        ForgeryError: the price is another, or the offer names another promise or other price inputs than were given; says which.
        MisuseError: the tolerance or the rate is none.
    """
    quote, left = quote_of(quote), []
    promise = evidence.sla(quote) if tolerance is None else evidence.sla(quote, tolerance=tolerance)
    if offer.sla_hash != evidence.hashed(promise):
        if tolerance is not None:
            what = f"is not that of the quote with a tolerance of {tolerance}"
            raise ForgeryError(what, "$.quote.slaHash")
        left.append("promise")
    rate = worth(Decimal(1) if usd_per_asset is None else usd_per_asset)
    usd = usd_of(quote, offer.unit)
    inputs = evidence.hashed(evidence.scoring(quote, usd_per_asset=rate)) == offer.scoring_hash
    if offer.unit.startswith("token-") or not (inputs or usd_per_asset is not None):
        return (*left, "price")
    scale = 10 ** (offer.asset_decimals + offer.price_scale)
    if usd is None or offer.unit_price_atomic != int(usd / Fraction(rate) * scale):
        what = f"is not the price of the quote's {offer.unit}, a token taken for {rate} dollars"
        raise ForgeryError(what, "$.quote.unitPriceAtomic")
    if not inputs:
        what = f"is not that of the quote with a token taken for {rate} dollars"
        raise ForgeryError(what, "$.quote.scoringHash")
    return tuple(left)
