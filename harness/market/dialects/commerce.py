"""commerce-payments: an offer as the `PaymentInfo` of Coinbase's AuthCaptureEscrow, which holds a ceiling, captures what was used and gives back the rest.

The nonce of the buyer's EIP-3009 transfer is a hash of the `PaymentInfo` with its salt, and the salt is the EIP-712 digest of the offer: so the
buyer's money moves for this very offer or not at all. Format: AuthCaptureEscrow.sol at github.com/base/commerce-payments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import KEY, agree, at, carried, number, taken, text
from harness.market.offers.abi import ZERO_ADDRESS, Value, checked, encode
from harness.market.offers.eip712 import Fields, struct_hash
from harness.market.offers.envelope import Envelope
from harness.market.offers.keccak import keccak256
from harness.market.offers.offer import Offer, digest_of

__all__ = ["PaymentInfo", "check_payment_info", "from_payment_info", "nonce_of", "payment_hash", "to_payment_info"]

_FIELDS: Fields = (
    ("operator", "address"),
    ("payer", "address"),
    ("receiver", "address"),
    ("token", "address"),
    ("maxAmount", "uint120"),
    ("preApprovalExpiry", "uint48"),
    ("authorizationExpiry", "uint48"),
    ("refundExpiry", "uint48"),
    ("minFeeBps", "uint16"),
    ("maxFeeBps", "uint16"),
    ("feeReceiver", "address"),
    ("salt", "uint256"),
)
_BPS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentInfo:
    """The struct of the contract, field by field. Times are seconds since 1970.

    Raises:
        MisuseError: a value does not fit its type, or the contract would refuse it.
    """

    operator: str
    payer: str
    receiver: str
    token: str
    max_amount: int  # atoms
    pre_approval_expiry: int
    authorization_expiry: int
    refund_expiry: int
    min_fee_bps: int
    max_fee_bps: int
    fee_receiver: str
    salt: int

    def __post_init__(self) -> None:
        """Refuse what does not fit, and what the contract refuses."""
        for name, kind in _FIELDS:
            checked(kind, self.values()[name], name)
        if not self.pre_approval_expiry <= self.authorization_expiry <= self.refund_expiry:
            message = f"expiries {self.pre_approval_expiry}, {self.authorization_expiry}, {self.refund_expiry} should not fall"
            raise MisuseError(message)
        if not self.min_fee_bps <= self.max_fee_bps <= _BPS:
            message = (
                f"fees of {self.min_fee_bps} to {self.max_fee_bps} basis points should rise, to {_BPS} at the most"
            )
            raise MisuseError(message)

    def values(self) -> dict[str, Value]:
        """Return the fields by the contract's names."""
        return dict(zip((name for name, _ in _FIELDS), (getattr(self, f.name) for f in fields(self)), strict=True))


def to_payment_info(  # noqa: PLR0913 - each is a field that the offer does not have
    offer: Offer,
    *,
    operator: str,
    payer: str,
    lease_s: int,
    refund_s: int,
    max_fee_bps: int = 0,
    fee_receiver: str = ZERO_ADDRESS,
) -> PaymentInfo:
    """Return the payment of an offer: its most is held until it ends, captured within the lease, refundable for a while.

    Args:
        offer: what is paid for; its escrow is the contract.
        operator: who may authorise and capture.
        payer: whose money it is.
        lease_s: from the end of the offer to the last moment to capture.
        refund_s: from then to the last moment to refund.
        max_fee_bps: what the operator may keep, in basis points.
        fee_receiver: who gets that.

    Raises:
        MisuseError: the offer names no escrow, or a value does not fit: amounts have 120 bits there.
    """
    if offer.escrow == ZERO_ADDRESS:
        message = "the offer names no escrow, so its digest is not bound to one"
        raise MisuseError(message)
    if lease_s < 0 or refund_s < 0:
        message = f"lease_s {lease_s}, refund_s {refund_s}: neither should be below 0"
        raise MisuseError(message)
    return PaymentInfo(
        operator=operator,
        payer=payer,
        receiver=offer.pay_to,
        token=offer.asset,
        max_amount=offer.max_total_atomic,
        pre_approval_expiry=offer.valid_until,
        authorization_expiry=offer.valid_until + lease_s,
        refund_expiry=offer.valid_until + lease_s + refund_s,
        min_fee_bps=0,
        max_fee_bps=max_fee_bps,
        fee_receiver=fee_receiver,
        salt=int.from_bytes(digest_of(offer), "big"),
    )


def check_payment_info(
    info: PaymentInfo, offer: Offer, *, operator: str, capture_by: int, max_fee_bps: int = 0
) -> None:
    """Return if a payment is for an offer and will pay it: the provider's check before he works.

    Args:
        info: the payment, as it was authorised.
        offer: what was sold.
        operator: whom the provider trusts to capture for him; nobody else can.
        capture_by: seconds since 1970, when that is done at the latest. From the authorization's end on it is the payer who may take the money back.
        max_fee_bps: what the operator may keep of it, in basis points.

    Raises:
        ForgeryError: receiver, token, amount, expiry or salt is another, or so is the operator; it ends too early, or lets too much be kept.
    """
    _is_for(info, offer)
    if info.operator != operator:
        what = f"the payment says {info.operator!r}; {operator!r} was agreed on"
        raise ForgeryError(what, "$.operator")
    if info.authorization_expiry <= capture_by:
        what = f"the payment can be captured before {info.authorization_expiry}; it may be as late as {capture_by}"
        raise ForgeryError(what, "$.authorization_expiry")
    if info.max_fee_bps > max_fee_bps:
        what = f"{info.max_fee_bps} basis points may be kept from the provider; {max_fee_bps} were agreed on"
        raise ForgeryError(what, "$.max_fee_bps")


def _is_for(info: PaymentInfo, offer: Offer) -> None:
    wanted = {
        "receiver": offer.pay_to,
        "token": offer.asset,
        "max_amount": offer.max_total_atomic,
        "pre_approval_expiry": offer.valid_until,
        "salt": int.from_bytes(digest_of(offer), "big"),
    }
    for name, value in wanted.items():
        if getattr(info, name) != value:
            what = f"the payment says {getattr(info, name)!r}; the offer gives {value!r}"
            raise ForgeryError(what, f"$.{name}")


def payment_hash(info: PaymentInfo, offer: Offer) -> str:
    """Return the contract's `getHash`: bound to the offer's chain and escrow."""
    inner = "0x" + struct_hash("PaymentInfo", _FIELDS, info.values()).hex()
    return "0x" + keccak256(encode(("uint256", "address", "bytes32"), (offer.chain_id, offer.escrow, inner))).hex()


def nonce_of(info: PaymentInfo, offer: Offer) -> str:
    """Return the nonce of the buyer's EIP-3009 transfer: the hash with no payer in it."""
    return payment_hash(replace(info, payer=ZERO_ADDRESS), offer)


def plain(info: PaymentInfo, envelope: Envelope) -> dict[str, Any]:
    """Return a payment with its offer, as JSON: numbers as decimal text."""
    return {
        "paymentInfo": {name: str(value) for name, value in info.values().items()},
        "paymentInfoHash": payment_hash(info, envelope.offer),
        "nonce": nonce_of(info, envelope.offer),
        KEY: carried(envelope),
    }


def from_payment_info(document: Any) -> tuple[Envelope, PaymentInfo]:
    """Return the offer and the payment of such a document; the payment must be for the offer.

    Operator, fees and the times after the offer are the document's own word: before you work, `check_payment_info`.

    Raises:
        ForgeryError: it is not.
    """
    envelope, given = taken(document, KEY), at(document, "paymentInfo")
    if not isinstance(given, dict) or set(given) != {name for name, _ in _FIELDS}:
        what = f"should have the fields {', '.join(name for name, _ in _FIELDS)}"
        raise ForgeryError(what, "$.paymentInfo")
    readers = {name: number if kind.startswith("uint") else text for name, kind in _FIELDS}
    values: list[Any] = [read(document, "paymentInfo", name) for name, read in readers.items()]
    try:
        info = PaymentInfo(**dict(zip((f.name for f in fields(PaymentInfo)), values, strict=True)))
    except MisuseError as err:
        raise ForgeryError(str(err), "$.paymentInfo") from err
    _is_for(info, envelope.offer)
    agree(plain(info, envelope), document)
    return envelope, info
