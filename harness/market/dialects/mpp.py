"""MPP, the Machine Payments Protocol: an offer as an OpenAPI document with `x-payment-info`, by which payable operations are discovered.

Format: draft-payment-discovery-00 of the `Payment` HTTP authentication scheme. Discovery is a hint: what is paid is what the 402 challenge says.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import SplitResult, urlsplit

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import KEY, agree, at, carried, number, taken, text
from harness.market.offers.abi import checksummed
from harness.market.offers.envelope import Envelope
from harness.market.offers.offer import Offer, held_atomic

__all__ = ["from_mpp", "payment_info", "to_mpp"]

_UNITS = f"x-{KEY}-units"
_TITLE = "GPU compute by signed quote"


def payment_info(offer: Offer, *, units: int | None = None) -> dict[str, Any]:
    """Return the `x-payment-info` of the operation that accepts an offer; with no number of units the amount is dynamic.

    Raises:
        MisuseError: the number of units is out of range.
    """
    if units is not None and not offer.min_units <= units <= offer.max_units:
        message = f"{units} units; the offer is for {offer.min_units} to {offer.max_units}"
        raise MisuseError(message)
    how_many = f"{offer.min_units} to {offer.max_units}" if units is None else str(units)
    return {
        "offers": [
            {
                "intent": "charge",
                "method": "evm",
                "amount": None if units is None else str(held_atomic(offer, units)),
                "currency": checksummed(offer.asset),
                "description": f"{how_many} x {offer.unit} on chain {offer.chain_id}, quote {offer.quote_id}",
            }
        ]
    }


def to_mpp(envelope: Envelope, *, url: str, units: int | None = None) -> dict[str, Any]:
    """Return the OpenAPI document of the one operation that accepts an offer.

    Args:
        envelope: the signed offer, which is carried whole.
        url: of the operation, with origin and path; holds the quote id.
        units: how many are paid for; the amount is dynamic without it.

    Raises:
        MisuseError: the URL has no origin or does not hold the quote id, or the number of units is out of range.
    """
    parts, offer = _split(url), envelope.offer
    if parts is None or not (parts.scheme and parts.netloc) or offer.quote_id not in parts.path:
        message = f"{url!r} should have an origin, and the quote id {offer.quote_id} in its path"
        raise MisuseError(message)
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": "1"},
        "servers": [{"url": f"{parts.scheme}://{parts.netloc}"}],
        "x-service-info": {"categories": ["compute"]},
        "paths": {
            parts.path: {
                "post": {
                    "operationId": "acceptQuote",
                    "summary": f"Accept quote {offer.quote_id}",
                    "x-payment-info": payment_info(offer, units=units),
                    f"x-{KEY}": carried(envelope),
                    _UNITS: None if units is None else str(units),
                    "responses": {"200": {"description": "Accepted"}, "402": {"description": "Payment Required"}},
                }
            }
        },
    }


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:
        return None


def from_mpp(document: Any) -> Envelope:
    """Return the offer that such a document was made from; every field of it must follow from that offer.

    Raises:
        ForgeryError: a field does not.
    """
    paths = at(document, "paths")
    if not isinstance(paths, dict) or len(paths) != 1:
        what = "should hold the one operation that accepts a quote"
        raise ForgeryError(what, "$.paths")
    (path,) = paths
    envelope = taken(document, "paths", path, "post", f"x-{KEY}")
    here = ("paths", path, "post", _UNITS)
    units = None if at(document, *here) is None else number(document, *here)
    url = text(document, "servers", 0, "url") + path
    try:
        agree(to_mpp(envelope, url=url, units=units), document)
    except MisuseError as err:
        raise ForgeryError(str(err), "$.paths") from err
    return envelope
