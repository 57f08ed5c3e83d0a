"""ERC-8004 feedback: the file that a buyer writes about a sale, and what many such files come to once self-praise is left out.

Format: the off-chain feedback file of ERC8004SPEC.md of the reference contracts at b9e466c (2026-08), with `proofOfPayment`; its asset and amount are
ours, and so is tag `speed`. The registry keeps owners and operators from praising themselves, and nobody else: whoever makes a second address may.

Covers: feedback counts if the reader saw its payment on a chain, to the agent, for an offer that the agent signed; the agent's own addresses never count;
one payer counts once, whatever it says how often; everything that was said is kept beside the number, with why it does not count.
Does not cover: a seller who pays himself by an address that nobody knows as his. Such a voice costs what its payment costs in fees and in what the token
loses on the way back to him: demand payments that are dear (`seen`), and do not take many payers for many people. Nor revocations: leave revoked feedback out,
or show it. Nor the registry's own numbers: what counts is the file, which the registry's hash names.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple, cast

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import KEY, agree, at, carried, number, taken, text
from harness.market.dialects.erc8004 import agent_registry
from harness.market.offers import envelope as envelopes
from harness.market.offers.abi import ZERO_ADDRESS, checked
from harness.market.offers.envelope import Envelope
from harness.market.offers.evidence import epoch_s
from harness.market.offers.keccak import keccak256
from harness.market.offers.offer import Offer, held_atomic
from harness.market.sales.till import Sold
from harness.strangers import loads

__all__ = ["KINDS", "Agent", "Feedback", "Given", "Kind", "Scale", "Transfer", "Weighed", "from_feedback", "to_feedback", "weighed"]  # fmt: skip

Kind = Literal["starred", "successRate", "uptime", "speed"]


class Scale(NamedTuple):
    """What a kind of feedback is counted in: `value` x 10^-`decimals`, of at most `most`."""

    decimals: int
    most: int
    what: str


KINDS: dict[str, Scale] = {
    "starred": Scale(0, 100, "of 100"),
    "successRate": Scale(0, 100, "%"),
    "uptime": Scale(2, 100_00, "%"),
    "speed": Scale(2, 100_00, "% of what was promised; more is 100"),
}
"""By `tag1`. `tag2` is the unit of the offer."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MOST_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One payment on a chain. Addresses and hashes are `0x` and lower-case hex."""

    chain_id: int
    transaction: str
    payer: str
    pay_to: str
    asset: str
    amount_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a buyer says of a sale."""

    envelope: Envelope
    client: str  # address
    transfer: Transfer | None  # None where nothing was paid: it is kept, and weighs nothing
    kind: Kind
    value: int  # by the scale of its kind
    created_at: str  # UTC, RFC 3339, by the client's clock
    endpoint: str


def to_feedback(envelope: Envelope, sold: Sold, *, kind: str, value: int, created_at: str, endpoint: str) -> dict[str, Any]:  # noqa: PLR0913 - each is a part of the record  # fmt: skip
    """Return the feedback file about a sale; the envelope stands in it under `harness-quote`.

    Args:
        envelope: the offer that was paid for.
        sold: what became of it. Without a transaction the file has no proof of payment.
        kind: one of `KINDS`.
        value: by that kind's scale: 99.77 % of `uptime` is 9977.
        created_at: as 2026-11-26T12:00:00Z.
        endpoint: what was used.

    Raises:
        MisuseError: the offer names no agent, the sale is another offer's, nobody paid, or a number or text is out of range.
    """
    offer = envelope.offer
    _check(offer, kind, value, created_at)
    transfer = _transfer(offer, sold)
    document = {
        "agentRegistry": agent_registry(offer),
        "agentId": offer.agent_id,
        "clientAddress": f"eip155:{offer.chain_id}:{sold.payer}",
        "createdAt": created_at,
        "value": value,
        "valueDecimals": KINDS[kind].decimals,
        "tag1": kind,
        "tag2": offer.unit,
        "endpoint": endpoint,
        KEY: carried(envelope),
    }
    if transfer:
        document["proofOfPayment"] = {
            "fromAddress": transfer.payer,
            "toAddress": transfer.pay_to,
            "chainId": str(transfer.chain_id),
            "txHash": transfer.transaction,
            "asset": transfer.asset,
            "amountAtomic": str(transfer.amount_atomic),
        }
    return document


def from_feedback(document: Any) -> Feedback:
    """Return what a feedback file says; whatever follows from its offer must follow, and no field may be unknown.

    That the payment happened, and that its payer wrote this, no file can show: `weighed`.

    Raises:
        ForgeryError: a field is missing, unknown, out of range, or not the offer's.
    """
    envelope = taken(document, KEY)
    offer, client = envelope.offer, text(document, "clientAddress").rpartition(":")[2]
    paid = isinstance(document, dict) and "proofOfPayment" in document
    sold = Sold(
        id=offer.quote_id,
        state="CAPTURED" if paid else "VOIDED",
        payer=client,
        asset=offer.asset,
        network=f"eip155:{offer.chain_id}",
        amount_atomic=number(document, "proofOfPayment", "amountAtomic") if paid else None,
        transaction=text(document, "proofOfPayment", "txHash") if paid else None,
    )
    kind, value, created_at = text(document, "tag1"), at(document, "value"), text(document, "createdAt")
    try:
        made = to_feedback(
            envelope, sold, kind=kind, value=value, created_at=created_at, endpoint=text(document, "endpoint")
        )
    except MisuseError as err:
        raise ForgeryError(str(err)) from err
    agree(made, document)
    return Feedback(
        envelope=envelope,
        client=client,
        transfer=_transfer(offer, sold),
        kind=cast("Kind", kind),  # `to_feedback` looked
        value=value,
        created_at=created_at,
        endpoint=made["endpoint"],
    )


def _check(offer: Offer, kind: str, value: int, created_at: str) -> None:
    if offer.agent_registry == ZERO_ADDRESS:
        message = "the offer names no agent, and feedback is about one"
        raise MisuseError(message)
    if kind not in KINDS:
        message = f"tag1 is {kind[:100]!r}; it should be one of {', '.join(KINDS)}"
        raise MisuseError(message)
    if type(value) is not int or not 0 <= value <= KINDS[kind].most:
        message = f"value is {str(value)[:100]!r}; {kind} is a whole number from 0 to {KINDS[kind].most}"
        raise MisuseError(message)
    if not _TIME.fullmatch(created_at):
        message = f"createdAt is {created_at[:100]!r}; it should be as 2026-11-26T12:00:00Z"
        raise MisuseError(message)
    epoch_s(created_at)


def _transfer(offer: Offer, sold: Sold) -> Transfer | None:
    """Return the payment of a sale, None where there was none.

    Raises:
        MisuseError: it is not one for this offer.
    """
    network = f"eip155:{offer.chain_id}"
    if (sold.id, sold.asset, sold.network) != (offer.quote_id, offer.asset, network) or sold.payer is None:
        message = f"the sale is of {sold.id}, by {sold.payer} in {sold.asset} on {sold.network}; the offer is {offer.quote_id} in {offer.asset} on {network}"
        raise MisuseError(message)
    checked("address", sold.payer, "payer")
    if sold.transaction is None:
        return None
    checked("bytes32", sold.transaction, "transaction")
    least, amount = held_atomic(offer, offer.min_units), sold.amount_atomic
    if amount is None or not least <= amount <= offer.max_total_atomic:
        message = f"{amount} atoms were paid; the offer asks for {least} to {offer.max_total_atomic}"
        raise MisuseError(message)
    return Transfer(
        chain_id=offer.chain_id,
        transaction=sold.transaction,
        payer=sold.payer,
        pay_to=offer.pay_to,
        asset=offer.asset,
        amount_atomic=amount,
    )


# --- many of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One event `NewFeedback` of a registry, with the file that it names: the event says who wrote it, which the file alone cannot."""

    author: str  # clientAddress
    file_hash: str  # feedbackHash
    file: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Whom feedback is about, and who is the same people."""

    chain_id: int
    registry: str
    agent_id: int
    own: frozenset[
        str
    ]  # addresses that are known to be its: provider and payTo of its offers, owner, operators, wallet


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What feedback of one kind comes to, beside all that it was taken from."""

    kind: Kind
    value: Fraction | None  # the median of the payers' medians, in the unit of the kind; None where nobody counts
    payer_count: int
    raw: tuple[tuple[Given, str | None], ...]  # as given, each with why it does not count, or None


def weighed(given: Sequence[Given], agent: Agent, *, kind: Kind, seen: Collection[Transfer]) -> Weighed:
    """Return what feedback of a kind comes to: each distinct payer counts once, and who did not surely pay does not count.

    Args:
        given: events of the registry with their files, in any order.
        agent: whom they are about.
        kind: which are asked for.
        seen: transfers that the reader found on a chain, in tokens that are money to him. What a file claims is not enough.

    Raises:
        MisuseError: extra `sign` is missing.
    """
    said: dict[str, list[int]] = {}
    raw: list[tuple[Given, str | None]] = []
    for one in given:
        try:
            found = _read(one)
            why = next(_objections(one, found, agent, kind, seen), None)
        except ForgeryError as err:
            raw.append((one, str(err)))
            continue
        raw.append((one, why))
        if why is None:
            said.setdefault(found.client, []).append(found.value)
    medians = [statistics.median([Fraction(value) for value in values]) for values in said.values()]
    value = statistics.median(medians) / 10 ** KINDS[kind].decimals if medians else None
    return Weighed(kind=kind, value=value, payer_count=len(said), raw=tuple(raw))


def _read(given: Given) -> Feedback:
    found = "0x" + keccak256(given.file).hex()
    if found != given.file_hash:
        what = f"the file's hash is {found}, not {given.file_hash}"
        raise ForgeryError(what)
    if len(given.file) > _MOST_BYTES:
        what = f"{len(given.file)} bytes; {_MOST_BYTES} are the most"
        raise ForgeryError(what)
    try:
        document = loads(given.file)
    except (ValueError, RecursionError) as err:
        what = f"not JSON: {err}"
        raise ForgeryError(what) from err
    return from_feedback(document)


def _objections(given: Given, found: Feedback, agent: Agent, kind: Kind, seen: Collection[Transfer]) -> Iterator[str]:
    """Yield why feedback does not count.

    Raises:
        ForgeryError: the offer's provider did not sign it.
    """
    offer = found.envelope.offer
    if (offer.chain_id, offer.agent_registry, offer.agent_id) != (agent.chain_id, agent.registry, agent.agent_id):
        yield "about another agent"
    if found.kind != kind:
        yield f"of another kind: {found.kind}"
    if given.author in agent.own or found.client in agent.own:
        yield "by the agent itself"
    if given.author != found.client:
        yield f"written by {given.author}, not by the payer"
    if not {offer.provider, offer.pay_to} <= agent.own:
        yield "for an offer that is not the agent's"
    if found.transfer is None:
        yield "no proof of payment"
    elif found.transfer not in seen:
        yield "its payment was not found"
    else:
        envelopes.verify(found.envelope, now_s=None)
