"""What an offer names by a hash: its evidence, the promise it makes, and how its price was made. Each is canonical JSON, and its Keccak-256 is signed.

Whoever holds the scoring quote computes the same bytes; whoever holds the bytes sees what was promised and from what.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import rfc8785

from harness import codec
from harness.errors import MisuseError
from harness.market.offers.keccak import keccak256
from harness.model import Quote
from harness.scoring.exact import plain

__all__ = ["committed", "epoch_s", "evidence", "hashed", "salted", "scoring", "sla", "tolerated"]

_SALT = re.compile(r"0x[0-9a-f]{64}")


def evidence(quote: Quote, *, journal_head: str | None = None) -> bytes:
    """Return what an offer's `evidenceRoot` is the hash of: the quote, its report and outcomes, and the journal up to it.

    Args:
        quote: the price with its derivation.
        journal_head: of the seller's journal, so that each offer fixes all that came before it.
    """
    return _document(
        schema="harness.evidence/1",
        quote=codec.digest(quote),
        report=quote.report_digest,
        outcomes=list(quote.evidence),
        sealedAt=quote.issued_at,
        journalHead=journal_head,
    )


def sla(quote: Quote, *, tolerance: Decimal = Decimal("0.05"), validators: int = 1, agreeing: int = 1) -> bytes:
    """Return what `slaHash` is the hash of: the speed that is promised, and when a benchmark during the lease contradicts it.

    Broken if and only if at least `agreeing` of `validators` find an upper confidence bound below `floor` x (1 - `tolerance`).

    Raises:
        MisuseError: a number is out of range.
    """
    tolerated(tolerance)
    if not 1 <= agreeing <= validators:
        message = f"{agreeing} of {validators} validators: they should be 1 of 1 or more"
        raise MisuseError(message)
    return _document(
        schema="harness.sla/1",
        metric="cycles_per_s",
        profile=quote.profile,
        unit=quote.unit,
        floor=None if quote.cycles_per_s is None else str(quote.cycles_per_s),
        tolerance=plain(tolerance),
        validators=validators,
        agreeing=agreeing,
        device=quote.device_name,
    )


def tolerated(tolerance: Decimal) -> Decimal:
    """Return a share by which a promised speed may be missed, if it is one.

    Raises:
        MisuseError: it is not from 0 to below 1.
    """
    if not (tolerance.is_finite() and 0 <= tolerance < 1):
        message = f"tolerance is {tolerance}; it should be from 0 to below 1"
        raise MisuseError(message)
    return tolerance


def scoring(quote: Quote, *, usd_per_asset: Decimal, units_per_s: Decimal | None = None) -> bytes:
    """Return what `scoringHash` is the hash of: the data and terms that the price follows from, and what a token was taken to be worth."""
    return _document(
        schema="harness.scoring/1",
        method=quote.method,
        digests=codec.plain(quote.digests),
        terms=codec.plain(quote.terms),
        usdPerAsset=plain(usd_per_asset),
        unitsPerS=None if units_per_s is None else plain(units_per_s),
    )


def hashed(document: bytes) -> str:
    """Return the Keccak-256 of a document: `0x` and 64 hex digits."""
    return "0x" + keccak256(document).hex()


def committed(device_uuid: str, salt: str) -> str:
    """Return what names a device to nobody but those who are shown the salt, `0x` and 64 hex digits.

    Raises:
        MisuseError: the salt has another form.
    """
    return hashed(bytes.fromhex(salted(salt)[2:]) + device_uuid.encode())


def salted(salt: str) -> str:
    """Return a salt, if it is one.

    Raises:
        MisuseError: it is not `0x` and 64 lower-case hex digits.
    """
    if not _SALT.fullmatch(salt):
        message = "a salt is 0x and 64 lower-case hex digits; it is not repeated here, for it may be secret"
        raise MisuseError(message)
    return salt


def epoch_s(stamp: str) -> int:
    """Return a record's time, UTC and RFC 3339, in whole seconds since 1970.

    Raises:
        MisuseError: it is no such time.
    """
    try:
        found = datetime.fromisoformat(stamp)
    except ValueError as err:
        message = f"{stamp!r} is not a time as 2026-11-25T12:00:00Z"
        raise MisuseError(message) from err
    return int(found.replace(tzinfo=found.tzinfo or UTC).timestamp())


def _document(**parts: Any) -> bytes:
    return rfc8785.dumps(parts)
