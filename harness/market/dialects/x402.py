"""x402, version 2: an offer as the body of a 402 response, with the extension `offer-receipt` in its EIP-712 variant, and receipts.

Formats: specs/x402-specification-v2.md and extensions/extension-offer-and-receipt.md (payload version 1) of the x402 repository. The signatures
bind what a client pays to the URL of a resource, and the URL must hold the quote's id: that is what ties a payment to this very offer.

Covers: payment flow `upfront`, in which money moves before work begins; one whole number of units, its amount rounded up.
Does not cover: schemes `upto`, `batch-settlement` and `auth-capture`, and that a signer may speak for a URL: compare with the offer's provider.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import KEY, agree, at, carried, number, taken, text
from harness.market.offers.abi import Value, checksummed
from harness.market.offers.eip712 import Domain, Fields, digest
from harness.market.offers.envelope import Envelope
from harness.market.offers.envelope import schema as envelope_schema
from harness.market.offers.offer import Offer, held_atomic
from harness.market.offers.secp256k1 import Signer, recover

__all__ = ["from_x402", "receipt_signer", "sign_receipt", "to_x402", "units_within"]

EXTENSION = "offer-receipt"
_OFFER: Fields = (
    ("version", "uint256"),
    ("resourceUrl", "string"),
    ("scheme", "string"),
    ("network", "string"),
    ("asset", "string"),
    ("payTo", "string"),
    ("amount", "string"),
    ("validUntil", "uint256"),
)
_RECEIPT: Fields = (
    ("version", "uint256"),
    ("network", "string"),
    ("resourceUrl", "string"),
    ("payer", "string"),
    ("issuedAt", "uint256"),
    ("transaction", "string"),
)
# The specification fixes chain 1 for both, whatever chain the payment is on.
_OFFERS = Domain(name="x402 offer", version="1", chain_id=1)
_RECEIPTS = Domain(name="x402 receipt", version="1", chain_id=1)


class _Token(NamedTuple):
    """The EIP-712 domain of a token's contract, without its address and chain."""

    name: str
    version: str


def network(offer: Offer) -> str:
    """Return the chain of an offer by CAIP-2, as `eip155:8453`."""
    return f"eip155:{offer.chain_id}"


def units_within(offer: Offer, most_atomic: int) -> int:
    """Return the most units that cost no more than an amount: a slice, since clients refuse more than a dollar at once by default.

    Raises:
        MisuseError: not even the offer's least number does.
    """
    scaled = (most_atomic * 10**offer.price_scale) // offer.unit_price_atomic
    if scaled < offer.min_units:
        message = f"{offer.min_units} units cost {held_atomic(offer, offer.min_units)} atoms, more than {most_atomic}"
        raise MisuseError(message)
    return min(int(scaled), offer.max_units)


def to_x402(  # noqa: PLR0913 - what the document has that the offer has not
    envelope: Envelope,
    signer: Signer,
    *,
    resource_url: str,
    token_name: str,
    token_version: str,
    units: int | None = None,
    timeout_s: int = 60,
) -> dict[str, Any]:
    """Return the `PaymentRequired` of an offer.

    Args:
        envelope: the signed offer, which is carried whole.
        signer: of the x402 offer: the provider's key.
        resource_url: what is paid for; holds the quote id.
        token_name: of the token's own EIP-712 domain, as its contract says: `USD Coin`.
        token_version: of the same: `2`.
        units: how many are paid for; the most by default.
        timeout_s: how long the seller may take to settle.

    Raises:
        MisuseError: the URL does not hold the quote id, the number of units is out of range, or the key is another's.
    """
    offer = envelope.offer
    if signer.address != offer.provider:
        message = f"the key is of {signer.address}; the offer's provider is {offer.provider}"
        raise MisuseError(message)
    units = offer.max_units if units is None else units
    payload = _payload(offer, resource_url, units)
    signature = signer.sign(digest(_OFFERS, "Offer", _OFFER, payload))
    return _document(envelope, resource_url, _Token(token_name, token_version), units, timeout_s, signature)


def _payload(offer: Offer, resource_url: str, units: int) -> dict[str, Value]:
    if offer.quote_id not in resource_url:
        message = f"the resource {resource_url!r} does not hold the quote id {offer.quote_id}: a payment would not be bound to it"
        raise MisuseError(message)
    if not offer.min_units <= units <= offer.max_units:
        message = f"{units} units; the offer is for {offer.min_units} to {offer.max_units}"
        raise MisuseError(message)
    return {
        "version": 1,
        "resourceUrl": resource_url,
        "scheme": "exact",
        "network": network(offer),
        "asset": checksummed(offer.asset),
        "payTo": checksummed(offer.pay_to),
        "amount": str(held_atomic(offer, units)),
        "validUntil": offer.valid_until,
    }


def _document(  # noqa: PLR0913 - what the document has that the offer has not
    envelope: Envelope, resource_url: str, token: _Token, units: int, timeout_s: int, signature: str
) -> dict[str, Any]:
    offer = envelope.offer
    payload = _payload(offer, resource_url, units)
    accepted = {name: payload[name] for name in ("scheme", "network", "asset", "payTo", "amount")}
    extra = {
        "name": token.name,
        "version": token.version,
        "paymentFlow": "upfront",
        "unit": offer.unit,
        "units": str(units),
        "quoteId": offer.quote_id,
    }
    signed = {"format": "eip712", "acceptIndex": 0, "payload": payload, "signature": signature}
    return {
        "x402Version": 2,
        "resource": {
            "url": resource_url,
            "description": f"{units} x {offer.unit} of quote {offer.quote_id}",
            "mimeType": "application/json",
        },
        "accepts": [{**accepted, "maxTimeoutSeconds": timeout_s, "extra": extra}],
        "extensions": {
            EXTENSION: {"info": {"offers": [signed]}, "schema": _SCHEMA},
            KEY: {"info": carried(envelope), "schema": envelope_schema()},
        },
    }


def from_x402(document: Any) -> Envelope:
    """Return the offer that a `PaymentRequired` of ours was made from; every field of it must follow from that offer.

    Raises:
        ForgeryError: a field does not, or the x402 offer is not signed by the offer's provider.
        MisuseError: extra `sign` is missing.
    """
    envelope = taken(document, "extensions", KEY, "info")
    signature = text(document, "extensions", EXTENSION, "info", "offers", 0, "signature")
    extra = at(document, "accepts", 0, "extra")
    timeout_s, units = at(document, "accepts", 0, "maxTimeoutSeconds"), number(extra, "units")
    if type(timeout_s) is not int or timeout_s < 0:
        what = f"{str(timeout_s)[:80]!r} is not a number of seconds"
        raise ForgeryError(what, "$.accepts[0].maxTimeoutSeconds")
    url, token = text(document, "resource", "url"), _Token(text(extra, "name"), text(extra, "version"))
    try:
        made = _document(envelope, url, token, units, timeout_s, signature)
    except MisuseError as err:
        raise ForgeryError(str(err), "$.accepts[0]") from err
    agree(made, document)
    found = recover(digest(_OFFERS, "Offer", _OFFER, _payload(envelope.offer, url, units)), signature)
    if found != envelope.offer.provider:
        what = f"signed by {found}; the offer's provider is {envelope.offer.provider}"
        raise ForgeryError(what, f"$.extensions.{EXTENSION}")
    return envelope


def sign_receipt(  # noqa: PLR0913 - each is a field of a receipt
    offer: Offer, signer: Signer, *, resource_url: str, payer: str, issued_at_s: int, transaction: str = ""
) -> dict[str, Any]:
    """Return a signed receipt: that what was paid for at a URL was delivered to a payer. With no transaction it keeps the payment private.

    Raises:
        MisuseError: the URL does not hold the quote id, or the payer is no address.
    """
    if offer.quote_id not in resource_url:
        message = f"the resource {resource_url!r} does not hold the quote id {offer.quote_id}"
        raise MisuseError(message)
    payload: dict[str, Value] = {
        "version": 1,
        "network": network(offer),
        "resourceUrl": resource_url,
        "payer": checksummed(payer),
        "issuedAt": issued_at_s,
        "transaction": transaction,
    }
    signature = signer.sign(digest(_RECEIPTS, "Receipt", _RECEIPT, payload))
    return {"format": "eip712", "payload": payload, "signature": signature}


def receipt_signer(receipt: Any) -> str:
    """Return the address whose key signed a receipt.

    Raises:
        ForgeryError: it is no receipt, or its signature is none.
        MisuseError: extra `sign` is missing.
    """
    payload = at(receipt, "payload")
    if text(receipt, "format") != "eip712" or not isinstance(payload, dict):
        what = "not a receipt in the EIP-712 variant"
        raise ForgeryError(what)
    try:
        signed = digest(_RECEIPTS, "Receipt", _RECEIPT, payload)
    except MisuseError as err:
        raise ForgeryError(str(err), "$.payload") from err
    return recover(signed, text(receipt, "signature"))


_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "offers": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "format": {"type": "string"},
                    "acceptIndex": {"type": "integer"},
                    "payload": {
                        "type": "object",
                        "properties": {
                            name: {"type": "integer" if kind == "uint256" else "string"} for name, kind in _OFFER
                        },
                        "required": [name for name, _ in _OFFER if name != "validUntil"],
                    },
                    "signature": {"type": "string"},
                },
                "required": ["format", "signature"],
            },
        },
    },
    "required": ["offers"],
}
