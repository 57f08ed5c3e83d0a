"""Selling one thing for one payment: claimed before anything is done, settled once, delivered once, whoever asks how often, and whoever dies when.

    verify (moves nothing) > ACCEPTED, the claim > AUTHORIZED > settle > CAPTURED > delivering > deliver > delivered

Each of these is on the disk before the next begins. A time-out or a broken line while settling ends in OUTCOME_UNKNOWN: the buyer is told so, and
nothing is sent again.

Promised: one payment buys at most one thing, one thing is sold at most once, and delivery runs at most once.
Not promised: that what was captured was delivered when the process died in between: the journal says so (`Checked.undelivered`), for a person.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import FailureError, HarnessError, MisuseError
from harness.market.sales.facilitator import Facilitator, NoAnswerError, Payment
from harness.market.sales.journal import Entry, Journal, Row
from harness.market.sales.life import State

__all__ = [
    "BUSY",
    "OutcomeUnknownError",
    "PaymentRefusedError",
    "Sale",
    "SettlementRefusedError",
    "Sold",
    "Till",
    "sold_of",
    "void",
]

BUSY = "the facilitator cannot be reached: nothing was claimed, ask again with the same payment"
Deliver = Callable[["Sale", "Sold"], Awaitable[Mapping[str, Any]]]


class PaymentRefusedError(MisuseError):
    """The payment would not settle. Nothing was written and nothing was done: another payment may be tried."""


class SettlementRefusedError(MisuseError):
    """The payment was good when it was looked at and failed when it was settled. Nothing moved; what it was for is void."""


class OutcomeUnknownError(FailureError):
    """Nobody can say whether the money moved. It is not asked for again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """What is sold: its id, its price in atoms of a token, and what the journal is to keep of it."""

    id: str
    amount_atomic: int
    pay_to: str
    evidence: Mapping[str, Any]
    quoted: Mapping[str, Any]
    device: str | None = None  # kept from others until `until_s`
    until_s: int | None = None
    supersedes: str | None = None  # the quote that this one replaces: it can no longer be accepted
    documents: Mapping[str, bytes] = field(default_factory=dict)  # by hash: what it promises, kept with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Sold:
    """What the journal says of a sale that was paid for, or of one that was not."""

    id: str
    state: State
    payer: str | None = None
    amount_atomic: int | None = None
    asset: str | None = None
    network: str | None = None
    protocol: str | None = None  # that the payment came by
    transaction: str | None = None  # the capture's id
    captured_at: str | None = None
    delivery: Mapping[str, Any] | None = None
    delivery_fault: str | None = None


def sold_of(rows: Sequence[Row]) -> Sold | None:
    """Return what rows of one sale say; None where there are none. Nothing else is asked, so that a repeated question has one answer."""
    steps = [row for row in rows if row.state]
    if not steps:
        return None
    at = {row.state: row for row in steps}
    notes = {row.kind: row for row in rows if row.state is None}
    paid, captured = at.get("ACCEPTED"), at.get("CAPTURED")
    told: dict[str, Any] = {}
    if paid:
        told |= {name: paid.body[name] for name in ("payer", "asset", "network", "protocol")}
        told["amount_atomic"] = int(paid.body["amount_atomic"])
    if captured:
        told |= {"transaction": captured.body["transaction"], "captured_at": captured.at}
    if "delivered" in notes:
        told["delivery"] = notes["delivered"].body
    elif "undelivered" in notes:
        told["delivery_fault"] = notes["undelivered"].body["why"]
    assert steps[-1].state  # noqa: S101 - chosen so
    return Sold(id=steps[-1].quote_id, state=steps[-1].state, **told)


@dataclass(slots=True)
class Till:
    """Sells. `at` is told each step before it is taken, for tests that pull the plug."""

    journal: Journal
    facilitator: Facilitator
    verify_s: float = 10.0
    settle_s: float = 30.0
    at: Callable[[str], None] = lambda _: None
    _open: set[asyncio.Task[Sold]] = field(default_factory=set)

    async def sell(
        self, sale: Sale, payment: Payment, deliver: Deliver, *, key: str | None = None, bound: str = ""
    ) -> Sold:
        """Take a payment for a sale, and deliver.

        Args:
            sale: what is sold.
            payment: its signature has been checked.
            deliver: called once, after the money has moved.
            key: an idempotency key, written with the claim.
            bound: the digest of what the key was used for.

        Raises:
            PaymentRefusedError: the facilitator would not settle it; nothing was written.
            FailureError: the facilitator or the disk could not be reached; nothing was written.
            StateError, PaymentUsedError, KeyUsedError, DeviceTakenError: somebody was first; nothing was written.
            SettlementRefusedError: settling failed; the sale is void.
            OutcomeUnknownError: settling may have failed.
        """
        self.at("verify")
        try:
            async with asyncio.timeout(self.verify_s):
                refusal = await self.facilitator.verify(payment)
        except (TimeoutError, NoAnswerError) as err:
            raise FailureError(BUSY) from err
        if refusal:
            raise PaymentRefusedError(refusal)
        # In a task of its own: a client who hangs up does not stop what has begun to move money.
        task = asyncio.create_task(self._drive(sale, payment, deliver, key, bound), name=sale.id)
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return await asyncio.shield(task)

    def busy(self, sale_id: str) -> bool:
        """Tell whether a sale is being driven here: ask before its rows are read, which it may add to."""
        return any(task.get_name() == sale_id for task in self._open)

    async def _drive(self, sale: Sale, payment: Payment, deliver: Deliver, key: str | None, bound: str) -> Sold:
        self.at("claim")
        fresh = [name for name in sale.documents if not await asyncio.to_thread(self.journal.document, name)]
        kept = (Entry(quote_id=name, note="document", body={"text": sale.documents[name].decode()}) for name in fresh)
        await self._write(*kept, *_claim(sale, payment, key, bound))
        self.at("authorize")
        await self._write(
            Entry(quote_id=sale.id, expected="ACCEPTED", state="AUTHORIZED", body={"protocol": payment.protocol})
        )
        try:
            transaction = await self._settle(sale, payment)
            self.at("capture")
            body = {"transaction": transaction, "amount_atomic": str(sale.amount_atomic)}
            await self._write(Entry(quote_id=sale.id, expected="AUTHORIZED", state="CAPTURED", body=body))
            await self._deliver(sale, deliver)
        except (OutcomeUnknownError, SettlementRefusedError):
            raise
        except HarnessError as err:
            # The disk is full, say, or what the facilitator answered cannot be kept. What is on the disk says CAPTURED, and stays, or AUTHORIZED.
            with contextlib.suppress(HarnessError):
                await self._unknown(sale, err)
            message = f"the payment for {sale.id} may have settled, and what came of it was not written down: {err}"
            raise OutcomeUnknownError(message) from err
        self.at("answer")
        return await self._sold(sale.id)

    async def _settle(self, sale: Sale, payment: Payment) -> str:
        self.at("settle")
        try:
            async with asyncio.timeout(self.settle_s):
                settled = await self.facilitator.settle(payment)
            if settled.transaction is None and settled.refusal is None:
                message = "the facilitator gave neither a transaction nor a reason against one"
                raise NoAnswerError(message)  # noqa: TRY301 - as if it had not answered
        except BaseException as err:  # whatever it was, the order may have gone out
            await self._unknown(sale, err)
            if not isinstance(err, Exception):
                raise
            message = f"nobody can say whether the payment for {sale.id} settled ({type(err).__name__}); it is not asked for again"
            raise OutcomeUnknownError(message) from err
        self.at("settled")
        if settled.transaction is None:
            why = _kept(settled.refusal or "refused")
            await self._write(Entry(quote_id=sale.id, expected="AUTHORIZED", state="VOIDED", body={"why": why}))
            raise void(sale.id, why)
        return settled.transaction

    async def _deliver(self, sale: Sale, deliver: Deliver) -> None:
        await self._write(Entry(quote_id=sale.id, note="delivering"))
        self.at("deliver")
        try:
            found = await deliver(sale, await self._sold(sale.id))
            self.at("delivered")
            await self._write(Entry(quote_id=sale.id, note="delivered", body=dict(found)))
        except Exception as err:  # noqa: BLE001 - the seller's own code, and money was taken
            why = str(err) if isinstance(err, HarnessError) else f"{type(err).__name__}: {err}"
            await self._write(Entry(quote_id=sale.id, note="undelivered", body={"why": _kept(why)}))

    async def _unknown(self, sale: Sale, err: BaseException) -> None:
        why = _kept(f"{type(err).__name__}: {err}")
        await self._write(Entry(quote_id=sale.id, expected="AUTHORIZED", state="OUTCOME_UNKNOWN", body={"why": why}))

    async def _write(self, *entries: Entry) -> None:
        await asyncio.to_thread(self.journal.append, *entries)

    async def _sold(self, sale_id: str) -> Sold:
        found = sold_of(await asyncio.to_thread(self.journal.rows, sale_id))
        assert found  # noqa: S101 - its rows were just written
        return found

    async def close(self) -> None:
        """Wait for what is being paid, and hang up."""
        for task in tuple(self._open):
            with contextlib.suppress(HarnessError):
                await task
        await self.facilitator.close()


def void(sale_id: str, why: str) -> SettlementRefusedError:
    """Return the error of a sale that became VOIDED, for a reason."""
    message = f"the payment failed when it was settled ({why}); nothing moved, and {sale_id} is void: ask for another"
    return SettlementRefusedError(message)


def _kept(text: str) -> str:
    """Return as much of a stranger's words as the journal takes: a row must not fail for what an error says."""
    return text[:300].encode(errors="replace").decode()


def _claim(sale: Sale, payment: Payment, key: str | None, bound: str) -> Sequence[Entry]:
    """Return the rows that take a quote, which until now nobody wrote down, from its draft to its acceptance, all or none."""
    replaced = sale.supersedes
    accepted = {
        "payer": payment.payer,
        "nonce": payment.nonce,
        "asset": payment.requirements["asset"].lower(),
        "network": payment.requirements["network"],
        "pay_to": sale.pay_to,
        "amount_atomic": str(sale.amount_atomic),
        "protocol": payment.protocol,
        "bound": bound,
    }
    return (
        *(
            (
                Entry(quote_id=replaced, expected="DRAFT", state="EVIDENCED"),
                Entry(quote_id=replaced, expected="EVIDENCED", state="QUOTED"),
                Entry(quote_id=replaced, expected="QUOTED", state="SUPERSEDED", body={"by": sale.id}),
            )
            if replaced
            else ()
        ),
        Entry(quote_id=sale.id, expected="DRAFT", state="EVIDENCED", body=sale.evidence),
        Entry(quote_id=sale.id, expected="EVIDENCED", state="QUOTED", body=sale.quoted),
        Entry(
            quote_id=sale.id,
            expected="QUOTED",
            state="ACCEPTED",
            claim=payment.claim,
            idempotency_key=key,
            device=sale.device,
            until_s=sale.until_s,
            body=accepted,
        ),
    )
