"""What the service does, without HTTP: quotes, acceptances and disputes, each once however often it is asked for.

A quote costs nothing lasting: it is signed and forgotten, but for the newest few thousand, until somebody pays for it. Then, and only then, the
journal gets it whole, with the documents that it names.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from harness.errors import MisuseError
from harness.market.dialects.x402 import sign_receipt, to_x402
from harness.market.offers import envelope as envelopes
from harness.market.offers.abi import ZERO_ADDRESS, ZERO_BYTES32
from harness.market.sales.docket import Claim, Dispute, Docket
from harness.market.sales.facilitator import Payment
from harness.market.sales.journal import DeviceTakenError, Journal, KeyUsedError, Row
from harness.market.sales.life import IN_FLIGHT, StateError
from harness.market.sales.paywall import Asked, Due, Paywall, Priced, requirements
from harness.market.sales.shop import Document, Issued, Shop, UnknownQuoteError
from harness.market.sales.till import OutcomeUnknownError, Sale, Sold, Till, sold_of, void
from harness.market.sales.wire import ExpiredError, KeyConflictError

__all__ = ["Counter", "Fulfil", "Standing"]

Fulfil = Callable[[Sale, Sold], Awaitable[Mapping[str, Any]]]
_KEYS_KEPT = 4096
_TIMEOUT_S = 120  # how long a payer's authorization should hold
_DUE_S = 300  # how long a demand is good
_STOPPED = "the service was stopped while this was delivered: the outcome of the delivery is unknown"
_LOOK_S = 5.0  # between two looks for re-benchmarks


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A quote, and where it stands."""

    envelope: Mapping[str, Any]
    state: str
    sold: Sold | None = None


async def lease(sale: Sale, _: Sold) -> Mapping[str, Any]:
    """Say what was let, and until when: who sells allocates it."""
    until_s = sale.until_s or 0
    return {"device": sale.device, "until": datetime.fromtimestamp(until_s, UTC).isoformat()}


@dataclass(slots=True)
class Counter:
    """Serves buyers."""

    shop: Shop
    journal: Journal
    till: Till
    paywall: Paywall
    docket: Docket
    url: str  # where this service is reached, without a slash at its end
    fulfil: Fulfil = lease
    now_s: Callable[[], float] = time.time
    _keys: OrderedDict[str, tuple[str, str]] = field(
        default_factory=OrderedDict
    )  # to what was asked and what was given
    _looked_s: float = float("-inf")

    # --- quotes ---------------------------------------------------------------------------------------------------

    def quote(self, *, device: str | None, seconds: int, supersedes: str | None, key: str | None) -> Issued:
        """Return a signed offer; the same one for the same key and request, as long as it is remembered.

        Raises:
            KeyConflictError: the key was used for another request.
            UnknownQuoteError, MisuseError: as `Shop.offer`.
        """
        bound = _bound("POST", "/v1/quotes", f"{device}|{seconds}|{supersedes}".encode(), "")
        if key and key in self._keys:
            was, quote_id = self._keys[key]
            if was != bound:
                raise KeyConflictError(_conflict(key))
            known = self.shop.issued(quote_id)
            if known and known.offer.valid_until > self.now_s():
                return known
        issued = self.shop.offer(device=device, seconds=seconds, head=self.journal.head(), supersedes=supersedes)
        if key:
            self._keys[key] = (bound, issued.offer.quote_id)
            if len(self._keys) > _KEYS_KEPT:
                self._keys.popitem(last=False)
        return issued

    def standing(self, quote_id: str) -> Standing:
        """Return a quote from the journal, or from memory if nobody has paid for it.

        Raises:
            UnknownQuoteError: neither has it.
        """
        rows = self.journal.rows(quote_id)
        quoted = next((row for row in rows if row.state == "QUOTED" and "envelope" in row.body), None)
        if quoted:
            sold = sold_of(rows)
            return Standing(envelope=quoted.body["envelope"], state=sold.state if sold else "QUOTED", sold=sold)
        issued = self.shop.issued(quote_id)
        if issued is None:
            message = f"there is no quote {quote_id} here, or it was never paid for and is forgotten: ask for another"
            raise UnknownQuoteError(message)
        sold = sold_of(rows)
        expired = issued.offer.valid_until <= self.now_s()
        return Standing(
            envelope=envelopes.plain(issued.envelope), state=sold.state if sold else "EXPIRED" if expired else "QUOTED"
        )

    def document(self, name: str) -> Document:
        """Return what somebody names by its hash.

        Raises:
            UnknownQuoteError: nothing here has it.
        """
        found = self.shop.document(name)
        if found:
            return found
        kept = self.journal.document(name)
        if kept is None:
            message = f"nothing here has the hash {name}"
            raise UnknownQuoteError(message)
        return Document(data=kept)

    # --- acceptance -----------------------------------------------------------------------------------------------

    async def accept(self, asked: Asked, quote_id: str, body: bytes, key: str | None) -> Due | Sold:
        """Sell a quote, or ask for its price.

        Args:
            asked: the request.
            quote_id: from its path.
            body: the signed envelope, or nothing where the quote is still remembered here.
            key: an idempotency key.

        Raises:
            KeyConflictError, KeyUsedError: of the key.
            UnknownQuoteError: nobody knows the quote; bring its envelope.
            StateError: it was accepted, replaced or withdrawn.
            ExpiredError: it is not good at this time.
            DeviceTakenError: the device is let.
            ForgeryError, MisuseError: the envelope is not this seller's, or the device is no longer what was offered.
        """
        bound = _bound(asked.method, urlsplit(asked.url).path, body, asked.credential)
        if again := await self._again(key, bound):
            return again
        rows = await asyncio.to_thread(self.journal.rows, quote_id)
        if sold := sold_of(rows):
            message = f"the quote is {sold.state}: it can be accepted once, and only while it is QUOTED"
            raise StateError(message)
        issued = self._brought(quote_id, body)
        sale = await self._sale(issued)
        if await asyncio.to_thread(self.journal.is_let, sale.device or ""):
            message = "the device is let to somebody else for now"
            raise DeviceTakenError(message)

        async def take(payment: Payment) -> Sold:
            return await self.till.sell(sale, payment, self.fulfil, key=key, bound=bound)

        return await self.paywall.gate(asked, self._priced(issued, asked.url), take)

    async def _again(self, key: str | None, bound: str) -> Sold | None:
        """Return what a repeated request got the first time."""
        row = await asyncio.to_thread(self.journal.by_key, key) if key else None
        if row is None:
            return None
        if row.body["bound"] != bound:
            raise KeyConflictError(_conflict(str(key)))
        busy = self.till.busy(row.quote_id)
        rows = await asyncio.to_thread(self.journal.rows, row.quote_id)
        sold = sold_of(rows)
        assert sold  # noqa: S101 - the row is one of its own
        undelivered = sold.transaction is not None and sold.delivery is None and sold.delivery_fault is None
        if sold.state in IN_FLIGHT or (undelivered and busy):
            message = "the first request with this key is still under way"
            raise KeyUsedError(message)
        if sold.state == "VOIDED":
            raise void(sold.id, next(row.body["why"] for row in rows if row.state == "VOIDED"))
        if undelivered:
            return replace(sold, delivery_fault=_STOPPED)
        if sold.state == "OUTCOME_UNKNOWN":
            message = f"nobody can say whether the payment for {sold.id} settled; it is not asked for again"
            raise OutcomeUnknownError(message)
        return sold

    def _brought(self, quote_id: str, body: bytes) -> Issued:
        """Return an offer that is remembered, or that was brought, and is good now."""
        issued = self.shop.shown(envelopes.decode(body)) if body else self.shop.issued(quote_id)
        if issued is None:
            message = f"the quote {quote_id} is not remembered here: POST its envelope"
            raise UnknownQuoteError(message)
        if issued.offer.quote_id != quote_id:
            message = f"the envelope is of quote {issued.offer.quote_id}, not of {quote_id}"
            raise MisuseError(message)
        try:
            envelopes.fresh(issued.offer, now_s=int(self.now_s()))
        except MisuseError as err:
            raise ExpiredError(str(err)) from err
        self.shop.attest(issued)
        return issued

    async def _sale(self, issued: Issued) -> Sale:
        offer = issued.offer
        documents = self.shop.documents_of(issued, self.journal.heads)
        return Sale(
            id=offer.quote_id,
            amount_atomic=offer.max_total_atomic,
            pay_to=offer.pay_to,
            evidence={"evidence_root": offer.evidence_root, "report": issued.shelved.quote.report_digest},
            quoted={"envelope": envelopes.plain(issued.envelope), "salt": issued.salt},
            device=issued.shelved.device.uuid,
            until_s=int(self.now_s()) + issued.seconds,
            supersedes=None if offer.supersedes == ZERO_BYTES32 else offer.supersedes,
            documents=documents,
        )

    def _priced(self, issued: Issued, url: str) -> Priced:
        token = self.shop.seller.token
        wanted = to_x402(
            issued.envelope,
            self.shop.signer,
            resource_url=url,
            token_name=token.name,
            token_version=token.version,
            timeout_s=_TIMEOUT_S,
        )
        signed = {
            "offer-receipt": wanted["extensions"]["offer-receipt"]
        }  # the whole envelope would not fit into a header
        left_s = max(issued.offer.valid_until - int(self.now_s()), 1)
        return Priced(
            requirements=wanted["accepts"][0], resource=wanted["resource"], extensions=signed, expires_s=left_s
        )

    def receipt(self, sold: Sold, url: str) -> Mapping[str, Any] | None:
        """Return a signed receipt for what was delivered, in x402's form; the same one each time."""
        quoted = next((row for row in self.journal.rows(sold.id) if row.state == "QUOTED"), None)
        if sold.delivery is None or sold.payer is None or quoted is None or "envelope" not in quoted.body:
            return None
        offer = envelopes.of_plain(quoted.body["envelope"]).offer
        at_s = int(datetime.fromisoformat(str(sold.captured_at)).timestamp())
        return sign_receipt(
            offer,
            self.shop.signer,
            resource_url=url,
            payer=sold.payer,
            issued_at_s=at_s,
            transaction=sold.transaction or "",
        )

    # --- disputes -------------------------------------------------------------------------------------------------

    async def dispute(self, asked: Asked, claim: Claim, body: bytes, key: str | None) -> Due | Sold:
        """File a dispute, or ask for its bond.

        Raises:
            KeyConflictError, KeyUsedError: of the key.
            UnknownQuoteError, StateError, MisuseError: as `Docket.sale`.
        """
        bound = _bound(asked.method, urlsplit(asked.url).path, body, asked.credential)
        if again := await self._again(key, bound):
            return again
        to = self.shop.pay_to if self.shop.seller.evaluator == ZERO_ADDRESS else self.shop.seller.evaluator
        sale = await asyncio.to_thread(lambda: self.docket.sale(claim, pay_to=to))
        token = self.shop.seller.token
        wanted = requirements(
            token, pay_to=to, amount_atomic=sale.amount_atomic, timeout_s=_TIMEOUT_S, extra={"for": "dispute-bond"}
        )
        resource = {
            "url": asked.url,
            "description": f"bond of a dispute of {claim.quote_id}",
            "mimeType": "application/json",
        }

        async def file(bond: Sale, _: Sold) -> Mapping[str, Any]:
            return await asyncio.to_thread(self.docket.file, claim, bond.id)

        async def take(payment: Payment) -> Sold:
            await asyncio.to_thread(self.docket.check_payer, claim, payment)
            return await self.till.sell(sale, payment, file, key=key, bound=bound)

        priced = Priced(requirements=wanted, resource=resource, extensions={}, expires_s=_DUE_S)
        return await self.paywall.gate(asked, priced, take)

    def disputed(self, dispute_id: str) -> Dispute:
        """Return where a dispute stands, after a look at what was measured since.

        Raises:
            UnknownQuoteError: there is none of this id.
        """
        if time.monotonic() - self._looked_s > _LOOK_S:
            self._looked_s = time.monotonic()
            self.docket.look(self.shop.reports())
        return self.docket.read(dispute_id)

    def start(self) -> tuple[Row, ...]:
        """End or finish what a process that died left behind; return what was written."""
        return (*self.journal.recover(), *self.docket.resume())

    async def close(self) -> None:
        """Wait for what is under way."""
        await self.till.close()
        self.journal.close()


def _bound(method: str, path: str, body: bytes, credential: str) -> str:
    parts = (
        method.encode(),
        path.encode(),
        hashlib.sha256(body).digest(),
        hashlib.sha256(credential.encode()).digest(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _conflict(key: str) -> str:
    return f"the idempotency key {key[:40]!r} was used for another request"
