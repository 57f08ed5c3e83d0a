"""Disputes as they are filed, tried and ended, in the journal. What is decided is decided by `disputes`.

    filed: by the payer of a capture, while its window is open, once, against a bond     CAPTURED > DISPUTED, with a fresh seed
    tried: by a report of that seed on that device                                       DISPUTED > REBENCHMARKED > UPHELD, or a refund is due
    lapsed: nobody measured before the deadline; that is said, and counts for nobody      DISPUTED > CLOSED

The bond is a sale like any other (`till`): its payment, by the very key that paid for the capture, is what proves who files.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import rfc8785

from harness.errors import MisuseError
from harness.market.offers.evidence import committed, epoch_s
from harness.market.sales import disputes
from harness.market.sales.disputes import Finding, finding, judge, promise_of, refund_atomic
from harness.market.sales.facilitator import Payment
from harness.market.sales.journal import Entry, Journal, Row
from harness.market.sales.life import StateError
from harness.market.sales.shop import UnknownQuoteError
from harness.market.sales.till import PaymentRefusedError, Sale, Sold, sold_of
from harness.model import Report

__all__ = ["Claim", "Dispute", "Docket"]

_SEED_BYTES = 16
_FOREVER_S = 2**40  # a capture is disputed once, not once a while
_METRIC = "cycles_per_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a buyer says: in this time, what I paid for was slower than promised."""

    quote_id: str
    capture_id: str  # the transaction that paid
    metric: str
    from_s: int  # Unix time
    until_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """Where a dispute stands."""

    dispute_id: str
    quote_id: str
    state: str
    seed: str | None = None
    deadline_s: int | None = None
    judgement: Mapping[str, Any] | None = None
    refund_atomic: int | None = None
    refunded_by: str | None = None  # the transaction


@dataclass(slots=True)
class Docket:
    """Files and tries disputes."""

    journal: Journal
    now_s: Callable[[], float] = time.time
    window_s: int = 86_400  # after a lease's end
    evaluate_s: int = 86_400  # after which a dispute that nobody measured for lapses
    bond_percent: int = 10

    def sale(self, claim: Claim, *, pay_to: str) -> Sale:
        """Return the bond that a claim costs.

        Raises:
            UnknownQuoteError: nothing was captured for such a quote.
            StateError: it was disputed before, or its window is over.
            MisuseError: it is another capture, metric or time than was sold.
        """
        rows = self.journal.rows(claim.quote_id)
        sold = sold_of(rows)
        if sold is None or sold.transaction is None or sold.amount_atomic is None:
            message = f"nothing was captured for {claim.quote_id}"
            raise UnknownQuoteError(message)
        accepted = next(row for row in rows if row.state == "ACCEPTED")
        self._hold(claim, sold, accepted)
        bond = max(sold.amount_atomic * self.bond_percent // 100, 1)
        told: dict[str, Any] = {"claim": _plain(claim), "bond_atomic": str(bond)}
        return Sale(
            id="0x" + hashlib.sha256(rfc8785.dumps({"nonce": secrets.token_hex(16), **told})).hexdigest(),
            amount_atomic=bond,
            pay_to=pay_to,
            evidence={},
            quoted=told,
            device=f"dispute of {claim.quote_id}",
            until_s=_FOREVER_S,
        )

    def _hold(self, claim: Claim, sold: Sold, accepted: Row) -> None:
        if sold.transaction != claim.capture_id:
            message = f"{claim.quote_id} was captured by another transaction than {claim.capture_id!r}"
            raise MisuseError(message)
        if sold.state != "CAPTURED" or self.journal.is_let(f"dispute of {claim.quote_id}"):
            message = f"this capture was disputed before; there is one dispute a capture (it is {sold.state})"
            raise StateError(message)
        lease_until_s = accepted.until_s or 0
        lease_from_s = int(datetime.fromisoformat(accepted.at).timestamp())
        if self.now_s() > lease_until_s + self.window_s:
            message = "the time to dispute this capture is over"
            raise StateError(message)
        if claim.metric != _METRIC:
            message = f"metric is {claim.metric!r}; what was promised is {_METRIC}"
            raise MisuseError(message)
        so_far_s = min(lease_until_s, int(self.now_s()))
        if not lease_from_s <= claim.from_s < claim.until_s <= so_far_s:
            message = f"the claim is for {claim.from_s} to {claim.until_s}; the lease went from {lease_from_s} to {so_far_s} so far"
            raise MisuseError(message)
        sla_hash = _offer(self.journal.rows(claim.quote_id))["slaHash"]
        promise_of(self._document(sla_hash), sla_hash)

    def _document(self, name: str) -> bytes:
        kept = self.journal.document(name)
        if kept is None:
            message = f"the document {name} is not kept here"
            raise UnknownQuoteError(message)
        return kept

    def check_payer(self, claim: Claim, payment: Payment) -> None:
        """Return if the bond is paid by whose money is at stake.

        Raises:
            PaymentRefusedError: it is somebody else.
        """
        sold = sold_of(self.journal.rows(claim.quote_id))
        if sold is None or sold.payer != payment.payer:
            message = "a capture is disputed by who paid for it, with a bond from the same address"
            raise PaymentRefusedError(message)

    def file(self, claim: Claim, dispute_id: str) -> Mapping[str, Any]:
        """Open the dispute that a bond was paid for, with a seed that is drawn now. The bond's id is the dispute's.

        Raises:
            StateError: it was opened before.
        """
        opened = {
            "dispute_id": dispute_id,
            "quote_id": claim.quote_id,
            "claim": _plain(claim),
            "seed": secrets.token_hex(_SEED_BYTES),
            "deadline_s": int(self.now_s()) + self.evaluate_s,
        }
        self.journal.append(Entry(quote_id=claim.quote_id, expected="CAPTURED", state="DISPUTED", body=opened))
        return opened

    def resume(self) -> tuple[Row, ...]:
        """Open the disputes whose bonds were captured and which could not be opened then; return what was written of the bonds and quotes.

        Only for the one process that sells, before it starts to.
        """
        written: list[Row] = []
        for dispute_id in self.journal.standing("CAPTURED"):
            rows = self.journal.rows(dispute_id)
            quoted = next(row.body for row in rows if row.state == "QUOTED")
            if "claim" not in quoted or any(row.kind == "delivered" for row in rows):
                continue
            claim = Claim(**quoted["claim"])
            if self.journal.state(claim.quote_id) == "CAPTURED":
                self.file(claim, dispute_id)
            opened = next((row for row in self.journal.rows(claim.quote_id) if row.state == "DISPUTED"), None)
            if opened and opened.body["dispute_id"] == dispute_id:
                written += [
                    opened,
                    *self.journal.append(Entry(quote_id=dispute_id, note="delivered", body=opened.body)),
                ]
        return tuple(written)

    # --- what became of it ----------------------------------------------------------------------------------------

    def read(self, dispute_id: str) -> Dispute:
        """Return where a dispute stands.

        Raises:
            UnknownQuoteError: there is none of this id.
        """
        filed = next((row for row in self.journal.rows(dispute_id) if row.state == "QUOTED"), None)
        bond = sold_of(self.journal.rows(dispute_id))
        if filed is None or bond is None or "claim" not in filed.body:
            message = f"there is no dispute {dispute_id}"
            raise UnknownQuoteError(message)
        quote_id = filed.body["claim"]["quote_id"]
        at = {row.state: row for row in self.journal.rows(quote_id) if row.state}
        opened = at.get("DISPUTED")
        if opened is None or opened.body["dispute_id"] != dispute_id:
            return Dispute(dispute_id=dispute_id, quote_id=quote_id, state=f"BOND_{bond.state}")
        told, refunded = at.get("REBENCHMARKED"), at.get("REFUNDED")
        return Dispute(
            dispute_id=dispute_id,
            quote_id=quote_id,
            state=str(list(at)[-1]),
            seed=opened.body["seed"],
            deadline_s=opened.body["deadline_s"],
            judgement=told.body["judgement"] if told else None,
            refund_atomic=int(told.body["refund_atomic"]) if told else None,
            refunded_by=refunded.body["transaction"] if refunded else None,
        )

    def look(self, reports: Sequence[Report]) -> None:
        """Try each open dispute by the reports that were sealed in time and say how fast it is, and end those that nobody measured for until then.

        Asked early or late, it comes to the same: who asks when decides nothing.
        """
        for quote_id in self.journal.standing("DISPUTED"):
            rows = self.journal.rows(quote_id)
            opened = next(row.body for row in rows if row.state == "DISPUTED")
            sla_hash = _offer(rows)["slaHash"]
            promise = promise_of(self._document(sla_hash), sla_hash)
            ours = (r for r in reports if r.seed == opened["seed"] and epoch_s(r.sealed_at) <= opened["deadline_s"])
            found = [one for report in ours for one in _findings(report, rows, promise)]
            if len(found) >= promise.validators:
                self._end(quote_id, rows, promise, found[: promise.validators])
            elif self.now_s() > opened["deadline_s"]:
                why = {"why": "timeout: nobody measured again in time, which counts for neither side"}
                self.journal.append(Entry(quote_id=quote_id, expected="DISPUTED", state="CLOSED", body=why))

    def _end(self, quote_id: str, rows: Sequence[Row], promise: disputes.Promise, found: Sequence[Finding]) -> None:
        sold = sold_of(rows)
        assert sold is not None  # noqa: S101 - it was captured
        judgement = judge(promise, found)
        due = refund_atomic(sold.amount_atomic or 0, promise, judgement)
        body = {"judgement": dict(disputes.plain(judgement)), "refund_atomic": str(due)}
        measured = Entry(quote_id=quote_id, expected="DISPUTED", state="REBENCHMARKED", body=body)
        upheld = Entry(quote_id=quote_id, expected="REBENCHMARKED", state="UPHELD", body={"why": judgement.reason})
        self.journal.append(measured, *([] if due else [upheld]))

    def refunded(self, quote_id: str, transaction: str) -> None:
        """Write down that what was due was paid back.

        Raises:
            StateError: nothing is due for this quote.
        """
        body = {"transaction": transaction, "at": datetime.fromtimestamp(self.now_s(), UTC).isoformat()}
        self.journal.append(Entry(quote_id=quote_id, expected="REBENCHMARKED", state="REFUNDED", body=body))


def _offer(rows: Sequence[Row]) -> Mapping[str, Any]:
    """Return the fields of the offer that was accepted."""
    quoted: Mapping[str, Any] = next(row.body for row in rows if row.state == "QUOTED")
    fields: Mapping[str, Any] = quoted["envelope"]["quote"]
    return fields


def _findings(report: Report, rows: Sequence[Row], promise: disputes.Promise) -> list[Finding]:
    """Return what a report saw of the device that was sold: its commitment, opened by its salt, names it. Nothing, where it gives no speed."""
    quoted = next(row.body for row in rows if row.state == "QUOTED")
    wanted = _offer(rows)["deviceCommitment"]
    ours = [one.uuid for one in report.devices if committed(one.uuid, quoted["salt"]) == wanted]
    seen = (finding(report, uuid, promise) for uuid in ours)
    return [one for one in seen if one and (one.low_cycles_per_s, one.high_cycles_per_s) != (None, None)]


def _plain(claim: Claim) -> dict[str, Any]:
    return {
        "quote_id": claim.quote_id,
        "capture_id": claim.capture_id,
        "metric": claim.metric,
        "from_s": claim.from_s,
        "until_s": claim.until_s,
    }
