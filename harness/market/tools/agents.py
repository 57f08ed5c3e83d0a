"""What an agent is told by the tools of a market, and the one check that needs no market: of a signed offer, offline.

The records have no slots, as others have: `mcp` takes a class attribute for a field's default, and a slot is one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import FailureError, ForgeryError, MisuseError
from harness.market.offers import envelope as envelopes
from harness.market.offers.offer import Offer, held_atomic

__all__ = ["Benchmark", "Checked", "Dispute", "ForSale", "Offered", "OnSale", "Proven", "mcp", "verify_quote"]


# --- what is handed to an agent ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OnSale:
    """A device as its market lists it: a claim until `get_benchmark` has checked it. Numbers are decimal text."""

    device: str
    name: str
    kind: str
    usd_per_hour: str
    low_usd_per_hour: str | None
    high_usd_per_hour: str | None
    profile: str
    cycles_per_s: str | None
    measured_at: str
    available: bool


@dataclass(frozen=True, kw_only=True)
class ForSale:
    """What a market sells, and by whose key."""

    market: str
    provider: str
    network: str
    asset: str
    seconds_least: int
    seconds_most: int
    devices: tuple[OnSale, ...]


@dataclass(frozen=True, kw_only=True)
class Proven:
    """A rate that a report bears out, with its 95 % interval."""

    work_class: str
    low_per_s: float
    high_per_s: float
    unit: str
    state: str
    measured_by: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a device was measured to do. The report was verified here; its price follows from it to the last digit, or `price_faults` say where not."""

    device: str
    name: str
    measured_at: str
    report_sha256: str
    signed_by: str | None
    emulated: bool
    rates: tuple[Proven, ...]
    usd_per_hour: str | None
    price_recomputed: bool
    price_faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What checking a signed offer showed. A wrong one is an answer, not an error: `valid` is false and `fault` says why."""

    valid: bool
    fault: str | None
    quote_id: str | None = None
    provider: str | None = None  # who signed
    pay_to: str | None = None
    asset: str | None = None
    chain_id: int | None = None
    unit: str | None = None
    units_least: str | None = None
    units_most: str | None = None
    amount_atomic: str | None = None  # of the most units, rounded up
    asset_decimals: int | None = None
    valid_until_s: int | None = None  # seconds since 1970
    seconds_left: int | None = None
    escrow: str | None = None
    evidence: str | None = None  # Keccak-256 of the document that backs it
    not_checked: tuple[str, ...] = (
        "that the token's contract has these decimals",
        "that the evidence says what its hash stands for",
        "a signature of a contract's wallet (ERC-1271)",
    )


@dataclass(frozen=True, kw_only=True)
class Offered:
    """A signed offer, checked, and where it is bought."""

    checked: Checked
    accept_url: str
    envelope: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Dispute:
    """Where a dispute stands. With `payment_required`, a bond is due first: pay it, and call again with the payment."""

    state: str
    dispute_id: str | None = None
    seed: str | None = None
    deadline_s: int | None = None
    verdict: str | None = None
    payment_required: dict[str, Any] | None = None


# --- offline ----------------------------------------------------------------------------------------------------------


def verify_quote(envelope: Mapping[str, Any], *, now_s: int | None = None) -> Checked:
    """Check a signed offer, offline: its form, its identity, who signed it, and whether it is good.

    Args:
        envelope: as JSON gives it; the order of keys is not minded.
        now_s: seconds since 1970; this machine's clock where it is left out.

    Raises:
        MisuseError: extra `sign` is missing.
    """
    now = int(time.time()) if now_s is None else now_s
    try:
        found = envelopes.of_plain(envelope)
        envelopes.verify(found, now_s=None)
    except ForgeryError as err:
        return Checked(valid=False, fault=str(err))
    try:
        envelopes.fresh(found.offer, now_s=now)
    except MisuseError as err:
        return _checked(found.offer, now, str(err))
    return _checked(found.offer, now, None)


def _checked(offer: Offer, now_s: int, fault: str | None) -> Checked:
    return Checked(
        valid=fault is None,
        fault=fault,
        quote_id=offer.quote_id,
        provider=offer.provider,
        pay_to=offer.pay_to,
        asset=offer.asset,
        chain_id=offer.chain_id,
        unit=offer.unit,
        units_least=str(offer.min_units),
        units_most=str(offer.max_units),
        amount_atomic=str(held_atomic(offer, offer.max_units)),
        asset_decimals=offer.asset_decimals,
        valid_until_s=offer.valid_until,
        seconds_left=max(offer.valid_until - now_s, 0),
        escrow=offer.escrow,
        evidence=offer.evidence_root,
    )


# --- the command ------------------------------------------------------------------------------------------------------


def mcp(url: str) -> None:
    """Serve the tools of an agent over stdin and stdout (MCP), until the client goes.

    Args:
        url: of the market that the tools are for.

    Raises:
        MisuseError: the URL is none of HTTP.
        FailureError: extra `mcp` is not installed.
    """
    from harness.market.tools.stall import Stall

    stall = Stall(url)
    try:
        from harness.market.tools.mcp_tools import server
    except ImportError as err:
        message = f"agents need the extras mcp and sign: pip install 'gpu-assay[mcp,sign]' ({err})"
        raise FailureError(message) from err
    server(stall).run("stdio")
