"""The offer: a scoring quote's price made payable in a token on a chain, in whole numbers, as it is signed and as each view shows it.

A price here is `unit_price_atomic` x 10^-`price_scale` atoms of the token a unit. It is rounded once, down, when the offer is made; a total that is
held or asked for is rounded up to an atom, one that is captured is rounded down. No float and no division is in between.

Covers: an offer names its chain, token, decimals, unit, bounds, times, evidence, promise and price inputs, and its identity is a hash of them all.
Does not cover: that the token is worth a dollar, or that its contract says the same decimals: read them on the chain before you pay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import rfc8785

from harness import codec
from harness.errors import MisuseError
from harness.market.offers import evidence
from harness.market.offers.abi import ZERO_ADDRESS, ZERO_BYTES32, Value, checked
from harness.market.offers.eip712 import Domain, Fields, digest, typed_data
from harness.market.offers.keccak import keccak256
from harness.model import Quote

__all__ = [
    "FIELDS",
    "SCALE_MOST",
    "SCHEMA",
    "Offer",
    "OfferTerms",
    "Unit",
    "captured_atomic",
    "digest_of",
    "held_atomic",
    "kinds",
    "make_offer",
    "of_values",
    "plain",
    "price_fraction",
    "quote_of",
    "typed_data_of",
    "units",
    "usd_of",
    "worth",
]

SCHEMA = "harness-quote/1"
Unit = Literal["gpu-second", "mcycle", "token-in", "token-out"]
_DOMAIN, _VERSION, _STRUCT = "GPU Compute Quote", "1", "ComputeQuote"
SCALE_MOST = 36
_S_PER_HOUR = 3600
_TOKENS = ("token-in", "token-out")
_CPU_REFUSED = "this quote is not for a GPU market ({reasons}); sell it nevertheless with gpu_only=False"

FIELDS: Fields = (
    ("quoteId", "bytes32"),
    ("revision", "uint32"),
    ("supersedes", "bytes32"),
    ("provider", "address"),
    ("agentRegistry", "address"),
    ("agentId", "uint256"),
    ("payTo", "address"),
    ("asset", "address"),
    ("assetDecimals", "uint8"),
    ("unit", "string"),
    ("unitPriceAtomic", "uint256"),
    ("priceScale", "uint8"),
    ("minUnits", "uint256"),
    ("maxUnits", "uint256"),
    ("maxTotalAtomic", "uint256"),
    ("validAfter", "uint64"),
    ("validUntil", "uint64"),
    ("evidenceUntil", "uint64"),
    ("nonce", "uint256"),
    ("evidenceRoot", "bytes32"),
    ("slaHash", "bytes32"),
    ("scoringHash", "bytes32"),
    ("deviceCommitment", "bytes32"),
    ("evaluator", "address"),
    ("escrow", "address"),
)
_KINDS = dict(FIELDS) | {"chainId": "uint256"}  # the chain is signed in the domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One price, payable. Addresses and hashes are `0x` and lower-case hex; times are seconds since 1970, UTC.

    Raises:
        MisuseError: a value does not fit its type, or the offer contradicts itself.
    """

    revision: int
    supersedes: str  # the quote id of the offer that this one replaces; zeros for none
    provider: str  # whose key signs
    agent_registry: str  # ERC-8004's identity registry; zeros for none
    agent_id: int
    pay_to: str
    asset: str  # the token's contract
    asset_decimals: int
    chain_id: int  # of the settlement
    unit: Unit
    unit_price_atomic: int
    price_scale: int
    min_units: int
    max_units: int
    max_total_atomic: int
    valid_after: int
    valid_until: int
    evidence_until: int  # when the benchmark is too old to sell by
    nonce: int
    evidence_root: str
    sla_hash: str
    scoring_hash: str
    device_commitment: str
    evaluator: str  # who judges a dispute; zeros for none
    escrow: str  # the contract that holds the money; zeros for none

    def __post_init__(self) -> None:
        """Refuse what does not fit or contradicts itself."""
        for field in dataclasses.fields(self):
            checked(_KINDS[_camel(field.name)], getattr(self, field.name), _camel(field.name))
        for wrong in _contradictions(self):
            raise MisuseError(wrong)

    @property
    def quote_id(self) -> str:
        """The Keccak-256 of the canonical JSON of all its fields and its schema: `0x` and 64 hex digits."""
        return "0x" + keccak256(rfc8785.dumps({"schema": SCHEMA, **_texts(self)})).hex()

    @property
    def domain(self) -> Domain:
        """What a signature of it is for."""
        return Domain(name=_DOMAIN, version=_VERSION, chain_id=self.chain_id, verifying_contract=self.escrow)


def _contradictions(offer: Offer) -> Iterator[str]:
    if offer.unit not in get_args(Unit):
        yield f"unit is {offer.unit!r}; it should be one of {', '.join(get_args(Unit))}"
    if not (offer.asset_decimals <= SCALE_MOST and offer.price_scale <= SCALE_MOST):
        yield f"assetDecimals {offer.asset_decimals}, priceScale {offer.price_scale}: neither should be above {SCALE_MOST}"
    if not (offer.unit_price_atomic and 0 < offer.min_units <= offer.max_units):
        yield f"unitPriceAtomic {offer.unit_price_atomic}, {offer.min_units} to {offer.max_units} units: they should be above 0, and minUnits not above maxUnits"
    if offer.max_total_atomic != held_atomic(offer, offer.max_units):
        yield f"maxTotalAtomic is {offer.max_total_atomic}; {offer.max_units} units at this price are {held_atomic(offer, offer.max_units)}"
    if not offer.valid_after < offer.valid_until <= offer.evidence_until:
        yield f"valid from {offer.valid_after} to {offer.valid_until}, its evidence until {offer.evidence_until}: the three should rise, and an offer not outlive its evidence"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _texts(offer: Offer) -> dict[str, str]:
    """Return an offer's fields as its JSON spells them, without its id: numbers as decimal text."""
    return {_camel(field.name): str(getattr(offer, field.name)) for field in dataclasses.fields(offer)}


def plain(offer: Offer) -> dict[str, str]:
    """Return an offer as its JSON spells it."""
    return {"quoteId": offer.quote_id, **_texts(offer)}


def of_values(values: Mapping[str, Value]) -> Offer:
    """Make an offer of its fields by their signed names, `quoteId` left out.

    Raises:
        MisuseError: as `Offer`; a field is missing or unknown.
    """
    names = {_camel(field.name): field.name for field in dataclasses.fields(Offer)}
    odd = sorted(set(values) ^ set(names))
    if odd:
        message = f"an offer has other fields than these: {', '.join(odd)} unknown or missing"
        raise MisuseError(message)
    return Offer(**{names[name]: value for name, value in values.items()})  # type: ignore[arg-type]


def units() -> tuple[str, ...]:
    """Return the units that are sold."""
    return get_args(Unit)


def kinds() -> dict[str, str]:
    """Return the type of each field of an offer's JSON, in Solidity's words."""
    return dict(_KINDS)


# --- what is signed ---------------------------------------------------------------------------------------------------


def _values(offer: Offer) -> dict[str, Value]:
    by_name = {_camel(field.name): getattr(offer, field.name) for field in dataclasses.fields(offer)}
    return {"quoteId": offer.quote_id, **{name: v for name, v in by_name.items() if name != "chainId"}}


def digest_of(offer: Offer) -> bytes:
    """Return the 32 bytes that a provider signs: EIP-712, bound to the chain and to the escrow."""
    return digest(offer.domain, _STRUCT, FIELDS, _values(offer))


def typed_data_of(offer: Offer) -> dict[str, Any]:
    """Return an offer as a wallet is asked to sign it (`eth_signTypedData_v4`)."""
    return typed_data(offer.domain, _STRUCT, FIELDS, _values(offer))


# --- money ------------------------------------------------------------------------------------------------------------


def price_fraction(offer: Offer) -> Fraction:
    """Return the exact price of one unit in whole tokens."""
    return Fraction(offer.unit_price_atomic, 10 ** (offer.price_scale + offer.asset_decimals))


def _scale(offer: Offer) -> int:
    return int(10**offer.price_scale)


def held_atomic(offer: Offer, units: int) -> int:
    """Return what so many units cost at most, in atoms: rounded up. For what is asked for, held or authorised."""
    return -(-units * offer.unit_price_atomic // _scale(offer))


def captured_atomic(offer: Offer, units: int) -> int:
    """Return what is taken for so many units that were used, in atoms: rounded down, and never above what was held.

    Raises:
        MisuseError: more units than the offer holds.
    """
    if not 0 <= units <= offer.max_units:
        message = f"{units} units were used; the offer is for at most {offer.max_units}"
        raise MisuseError(message)
    return units * offer.unit_price_atomic // _scale(offer)


# --- from a quote -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferTerms:
    """What a seller adds to a quote. Nothing is drawn here: the nonce and the salt are given, and fresh for each offer."""

    provider: str
    pay_to: str
    asset: str
    asset_decimals: int
    chain_id: int
    now_s: int  # seconds since 1970, by the seller's clock
    nonce: int
    device_salt: str  # secret until somebody must be shown which device it was
    valid_for_s: int = 300
    unit: Unit = "gpu-second"
    price_scale: int = 12
    min_units: int = 60
    max_units: int = 3600
    usd_per_asset: Decimal = Decimal(1)  # what one whole token is worth; part of what the price follows from
    units_per_s: Decimal | None = (
        None  # how many LLM tokens the device does a second, for the units token-in and token-out
    )
    evidence_max_age_s: int = 86_400
    agent_registry: str = ZERO_ADDRESS
    agent_id: int = 0
    evaluator: str = ZERO_ADDRESS
    escrow: str = ZERO_ADDRESS
    revision: int = 0
    supersedes: str = ZERO_BYTES32
    journal_head: str | None = None
    sla_tolerance: Decimal = Decimal("0.05")


_VALID_MOST_S = 3600


def make_offer(quote: Quote | bytes | str | Path, terms: OfferTerms, *, gpu_only: bool = True) -> Offer:
    """Make an offer of a quote: its dollars turned into atoms of a token, rounded down once.

    Args:
        quote: a record, its canonical bytes, or a file that `harness quote --out` wrote.
        terms: what the seller adds.
        gpu_only: refuse what the quote says is not for a GPU market, such as a CPU's cost floor.

    Raises:
        MisuseError: the quote has no price or no such unit, its evidence is too old, or the terms do not fit.
        ForgeryError: the bytes are no quote.
    """
    quote = quote_of(quote)
    _check(quote, terms, gpu_only=gpu_only)
    atoms = _usd_per_unit(quote, terms) / Fraction(terms.usd_per_asset) * 10**terms.asset_decimals
    unit_price = int(atoms * 10**terms.price_scale)  # a positive fraction: down
    if unit_price < 10**5:
        message = (
            f"a {terms.unit} is {unit_price} x 10^-{terms.price_scale} atoms: fewer than six digits; raise price_scale"
        )
        raise MisuseError(message)
    return Offer(
        revision=terms.revision,
        supersedes=terms.supersedes,
        provider=terms.provider,
        agent_registry=terms.agent_registry,
        agent_id=terms.agent_id,
        pay_to=terms.pay_to,
        asset=terms.asset,
        asset_decimals=terms.asset_decimals,
        chain_id=terms.chain_id,
        unit=terms.unit,
        unit_price_atomic=unit_price,
        price_scale=terms.price_scale,
        min_units=terms.min_units,
        max_units=terms.max_units,
        max_total_atomic=-(-terms.max_units * unit_price // 10**terms.price_scale),
        valid_after=terms.now_s,
        valid_until=terms.now_s + terms.valid_for_s,
        evidence_until=evidence.epoch_s(quote.issued_at) + terms.evidence_max_age_s,
        nonce=terms.nonce,
        evidence_root=evidence.hashed(evidence.evidence(quote, journal_head=terms.journal_head)),
        sla_hash=evidence.hashed(evidence.sla(quote, tolerance=terms.sla_tolerance)),
        scoring_hash=evidence.hashed(
            evidence.scoring(quote, usd_per_asset=terms.usd_per_asset, units_per_s=terms.units_per_s)
        ),
        device_commitment=evidence.committed(quote.device_uuid, terms.device_salt),
        evaluator=terms.evaluator,
        escrow=terms.escrow,
    )


def quote_of(quote: Quote | bytes | str | Path) -> Quote:
    """Return a quote, or the one that bytes or a file hold.

    Raises:
        ForgeryError: they hold none.
    """
    if isinstance(quote, Quote):
        return quote
    return codec.decode(quote, Quote) if isinstance(quote, bytes) else codec.read(Path(quote), Quote)


def _check(quote: Quote, terms: OfferTerms, *, gpu_only: bool) -> None:
    if quote.price_usd_per_hour is None or quote.price_usd_per_hour <= 0:
        message = f"{quote.device_name} has no price to offer: {'; '.join(quote.reasons)}"
        raise MisuseError(message)
    if gpu_only and not quote.for_gpu_market:
        raise MisuseError(_CPU_REFUSED.format(reasons="; ".join(quote.reasons)))
    if not 0 < terms.valid_for_s <= _VALID_MOST_S:
        message = f"valid_for_s is {terms.valid_for_s}; an offer is good for 1 to {_VALID_MOST_S} s"
        raise MisuseError(message)
    worth(terms.usd_per_asset)
    for name in ("price_scale", "asset_decimals"):
        if not 0 <= getattr(terms, name) <= SCALE_MOST:
            message = f"{name} is {getattr(terms, name)}; it should be 0 to {SCALE_MOST}"
            raise MisuseError(message)
    until = evidence.epoch_s(quote.issued_at) + terms.evidence_max_age_s
    if terms.now_s + terms.valid_for_s > until:
        message = f"the benchmark of {quote.issued_at} is too old to sell by: it must be younger than {terms.evidence_max_age_s} s until the offer ends; measure again"
        raise MisuseError(message)


def worth(usd_per_asset: Decimal) -> Decimal:
    """Return what a token is worth in dollars, if it is a rate.

    Raises:
        MisuseError: it is none.
    """
    if not usd_per_asset.is_finite() or usd_per_asset <= 0:
        message = f"usd_per_asset is {usd_per_asset}; a token should be worth more than 0"
        raise MisuseError(message)
    return usd_per_asset


def _usd_per_unit(quote: Quote, terms: OfferTerms) -> Fraction:
    """Return the exact price of a unit in dollars."""
    found, rate = usd_of(quote, terms.unit), terms.units_per_s
    if found is not None:
        return found
    if terms.unit in _TOKENS and rate is not None and rate.is_finite() and rate > 0:
        return Fraction(quote.price_usd_per_hour or 0) / _S_PER_HOUR / Fraction(rate)
    message = f"no price per {terms.unit}: an LLM's token needs units_per_s, as `harness serve-bench` measured it; an mcycle, a quote with a score"
    raise MisuseError(message)


def usd_of(quote: Quote, unit: Unit) -> Fraction | None:
    """Return what a quote alone says that a unit costs."""
    if unit == "gpu-second" and quote.price_usd_per_hour is not None:
        return Fraction(quote.price_usd_per_hour) / _S_PER_HOUR
    if unit == "mcycle" and quote.price_usd_per_mcycle is not None:
        return Fraction(quote.price_usd_per_mcycle)
    return None
