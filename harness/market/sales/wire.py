"""What the service and its clients say to each other: the shapes in the OpenAPI document, and each error with its status and its word.

Errors are `application/problem+json` (RFC 9457): `code` is for programs and never changes, `detail` is for people.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from harness.errors import FailureError, ForgeryError, HarnessError, MisuseError
from harness.market.offers import envelope
from harness.market.sales.journal import DeviceTakenError, KeyUsedError, PaymentUsedError
from harness.market.sales.life import StateError
from harness.market.sales.shop import UnknownQuoteError
from harness.market.sales.till import OutcomeUnknownError, PaymentRefusedError, SettlementRefusedError

__all__ = [
    "ADDRESS",
    "CODES",
    "HASH",
    "DeviceReply",
    "DevicesReply",
    "DisputeReply",
    "DisputeRequest",
    "ExpiredError",
    "KeyConflictError",
    "Problem",
    "QuoteReply",
    "QuoteRequest",
    "SaleReply",
    "problem_of",
]

HASH, ADDRESS = "^0x[0-9a-f]{64}$", "^0x[0-9a-f]{40}$"
_ATOMS = "^(0|[1-9][0-9]{0,77})$"
_TIME = "UTC, RFC 3339"

Atoms = Annotated[str, Field(pattern=_ATOMS, description="Of the token, in atoms, as decimal text.")]
EnvelopeJson = Annotated[dict[str, Any], WithJsonSchema(envelope.schema())]


class KeyConflictError(MisuseError):
    """An idempotency key came back with another request than it came with."""


class ExpiredError(MisuseError):
    """The offer is no longer, or not yet, good."""


CODES: dict[str, tuple[int, str]] = {
    "already_decided": (409, "The quote is past that step"),
    "bad_request": (400, "This is not a request that can be read"),
    "device_taken": (409, "The device is let"),
    "expired": (410, "The offer is not good at this time"),
    "failed": (503, "The service cannot do this now; nothing was paid"),
    "forged": (422, "A document is not what it says"),
    "idempotency_conflict": (409, "The idempotency key was used for another request"),
    "in_progress": (409, "The first request with this key is still under way"),
    "invalid": (422, "The request does not fit its schema"),
    "method_not_allowed": (405, "There is no such method here"),
    "misuse": (409, "The request cannot be met as it is"),
    "not_found": (404, "There is nothing of this name here"),
    "outcome_unknown": (504, "Nobody can say whether the payment settled; it is not asked for again"),
    "payment_required": (402, "A payment is due"),
    "payment_used": (409, "The payment was used"),
    "rate_limited": (429, "Too many requests"),
    "settlement_refused": (409, "The payment failed when it was settled; nothing moved"),
    "slow": (408, "The request did not arrive in time"),
    "too_large": (413, "The request is too large"),
}
"""Each error's status and title, by its code."""

_OF_ERRORS: tuple[tuple[type[HarnessError], str], ...] = (
    (UnknownQuoteError, "not_found"),
    (ExpiredError, "expired"),
    (KeyConflictError, "idempotency_conflict"),
    (KeyUsedError, "in_progress"),
    (PaymentUsedError, "payment_used"),
    (DeviceTakenError, "device_taken"),
    (SettlementRefusedError, "settlement_refused"),
    (PaymentRefusedError, "payment_required"),
    (StateError, "already_decided"),
    (OutcomeUnknownError, "outcome_unknown"),
    (ForgeryError, "forged"),
    (MisuseError, "misuse"),
    (FailureError, "failed"),
)


def problem_of(err: HarnessError) -> tuple[str, str]:
    """Return the code of an error, and what to say of it."""
    code = next((code for kind, code in _OF_ERRORS if isinstance(err, kind)), "failed")
    return code, str(err)[:500]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(_Shape):
    """What went wrong."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class QuoteRequest(_Shape):
    """What somebody wants a price for."""

    device: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="UUID, as GET /v1/devices shows it. May be left out where one device is for sale."
    )
    seconds: int = Field(ge=1, le=2**31, description="Of use, all paid for.", strict=True)
    supersedes: Annotated[str, Field(pattern=HASH)] | None = Field(
        default=None,
        description="The id of a quote that this one replaces: once this one is accepted, that one cannot be.",
    )


class DeviceReply(_Shape):
    """A device that is for sale; money and whole numbers as decimal text."""

    device: str
    name: str
    kind: Literal["cpu", "cuda"]
    usd_per_hour: str
    low_usd_per_hour: str | None
    high_usd_per_hour: str | None
    profile: str
    cycles_per_s: str | None = Field(description="Promised speed on the profile: a lower confidence bound.")
    measured_at: str = Field(description=_TIME)
    report: str = Field(description="SHA-256 of the report; see GET /v1/evidence/{hash}.")
    quote: str = Field(description="SHA-256 of the price with its derivation.")
    available: bool


class DevicesReply(_Shape):
    """What is for sale, and who sells."""

    provider: str = Field(pattern=ADDRESS, description="Whose key signs offers.")
    network: str
    asset: str = Field(pattern=ADDRESS)
    seconds_least: int
    seconds_most: int
    devices: list[DeviceReply]


class SaleReply(_Shape):
    """What became of a sale."""

    state: str
    quote_id: str = Field(pattern=HASH)
    payer: Annotated[str, Field(pattern=ADDRESS)] | None = None
    amount_atomic: Atoms | None = None
    asset: Annotated[str, Field(pattern=ADDRESS)] | None = None
    network: str | None = None
    transaction: str | None = Field(default=None, description="What the money moved by; the capture's id in a dispute.")
    captured_at: str | None = Field(default=None, description=_TIME)
    delivery: dict[str, Any] | None = Field(default=None, description="Told to who paid, in the answer to the payment.")
    delivery_fault: str | None = None
    receipt: dict[str, Any] | None = Field(
        default=None, description="Signed, in the form of x402's offer-receipt extension."
    )


class QuoteReply(_Shape):
    """A signed offer, and where it stands."""

    state: str
    quote_id: str = Field(pattern=HASH)
    amount_atomic: Atoms
    accept: str = Field(description="The URL that sells it, for a payment.")
    envelope: EnvelopeJson
    sale: SaleReply | None = None


class DisputeRequest(_Shape):
    """A buyer's claim that what was paid for was slower than promised."""

    quote_id: str = Field(pattern=HASH)
    capture_id: str = Field(min_length=1, max_length=200, description="The transaction that paid.")
    metric: Literal["cycles_per_s"]
    from_s: int = Field(ge=0, le=2**40, strict=True, description="Unix time.")
    until_s: int = Field(ge=0, le=2**40, strict=True, description="Unix time.")


class DisputeReply(_Shape):
    """Where a dispute stands. `verdict` is about the buyer's claim."""

    dispute_id: str = Field(pattern=HASH)
    quote_id: str = Field(pattern=HASH)
    state: str
    seed: str | None = Field(description="Measure again with it: harness run --seed SEED.")
    deadline_s: int | None = Field(description="Unix time after which it lapses, if nobody measured.")
    verdict: Literal["supports", "contradicts", "inconclusive"] | None
    reason: str | None
    measured_cycles_per_s: str | None
    reports: list[str]
    refund_atomic: Atoms | None
    refunded_by: str | None
