"""ERC-8183, agentic commerce: the job that pays for an offer, and the record of its evaluator, who alone completes or rejects it.

Format: the draft of 2026-02-25. Its reference contract was found to give the money of others away and to let a provider change the token before
the client pays, so a job is only good if what stands on the chain is compared with the offer (`check_job`, in one call of one block) and the
contract's code is known (`onchain.check_escrow`). The calls themselves are in `calldata`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import KEY, agree, at, carried, number, taken, text
from harness.market.offers.abi import ZERO_ADDRESS, ZERO_BYTES32, checked
from harness.market.offers.envelope import Envelope
from harness.market.offers.offer import Offer, held_atomic

__all__ = ["Job", "check_job", "from_evaluation", "from_job", "to_evaluation", "to_job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands on a chain."""

    provider: str
    evaluator: str
    token: str
    budget_atomic: int
    expired_at: int
    description: str


def to_job(envelope: Envelope, *, units: int, expired_at: int) -> dict[str, Any]:
    """Return what a client creates and funds a job with: budget, token, parties, and a description that holds the quote id.

    Raises:
        MisuseError: the offer names no evaluator, or its provider, the number of units is out of range, or it ends before the offer does.
    """
    offer = envelope.offer
    if offer.evaluator in (ZERO_ADDRESS, offer.provider):
        message = f"the evaluator is {offer.evaluator}; it should be somebody, and not the provider"
        raise MisuseError(message)
    if not offer.min_units <= units <= offer.max_units or expired_at <= offer.valid_until:
        message = f"{units} units until {expired_at}; the offer is for {offer.min_units} to {offer.max_units}, and a job outlives it ({offer.valid_until})"
        raise MisuseError(message)
    return {
        "chainId": str(offer.chain_id),
        "provider": offer.provider,
        "evaluator": offer.evaluator,
        "providerAgentId": str(offer.agent_id),
        "token": offer.asset,
        "budget": str(held_atomic(offer, units)),
        "units": str(units),
        "expiredAt": str(expired_at),
        "description": _described(offer),
        "hook": ZERO_ADDRESS,
        KEY: carried(envelope),
    }


def _described(offer: Offer) -> str:
    return f"{KEY}:{offer.quote_id}"


def from_job(document: Any) -> Envelope:
    """Return the offer that a job was made from; every field must follow from it.

    Raises:
        ForgeryError: one does not.
    """
    envelope = taken(document, KEY)
    try:
        units, expired_at = number(document, "units"), number(document, "expiredAt")
        made = to_job(envelope, units=units, expired_at=expired_at)
    except MisuseError as err:
        raise ForgeryError(str(err), "$.units") from err
    agree(made, document)
    return envelope


def check_job(job: Job, offer: Offer, *, units: int, work_until: int) -> None:
    """Return if a job on a chain is the one that pays for an offer: before it is funded, and again before work begins.

    Args:
        job: as it stands on the chain.
        offer: what was sold.
        units: how many of them.
        work_until: seconds since 1970, when the work will have been submitted and evaluated: once it expired, the client takes his money back.

    Raises:
        ForgeryError: provider, evaluator, token, budget or description is another, or it expires too early.
        MisuseError: the number of units is out of range.
    """
    if not offer.min_units <= units <= offer.max_units:
        message = f"{units} units; the offer is for {offer.min_units} to {offer.max_units}"
        raise MisuseError(message)
    wanted = {
        "provider": offer.provider,
        "evaluator": offer.evaluator,
        "token": offer.asset,
        "budget_atomic": held_atomic(offer, units),
        "description": _described(offer),
    }
    for name, value in wanted.items():
        if getattr(job, name) != value:
            what = f"the job says {getattr(job, name)!r}; the offer gives {value!r}"
            raise ForgeryError(what, f"$.{name}")
    least = max(offer.valid_until, work_until)
    if job.expired_at <= least:
        what = f"the job expires at {job.expired_at}; it should outlive the offer and the work ({least})"
        raise ForgeryError(what, "$.expired_at")


def to_evaluation(  # noqa: PLR0913 - each is a field of the record
    envelope: Envelope, *, contract: str, job_id: int, upheld: bool, deliverable: str, reason: str
) -> dict[str, Any]:
    """Return an evaluator's record of a job.

    Args:
        envelope: the offer whose promise was evaluated.
        contract: of the job.
        job_id: its number there.
        upheld: True completes it and pays the provider, False rejects it and pays the client back.
        deliverable: what the provider submitted: the hash of a report.
        reason: the hash of the evidence.

    Raises:
        MisuseError: a value does not fit, or a hash is zero.
    """
    checked("address", contract, "contract")
    checked("uint256", job_id, "job_id")
    for name, value in (("deliverable", deliverable), ("reason", reason)):
        checked("bytes32", value, name)
        if value == ZERO_BYTES32:
            message = f"{name} is zero: give the digest of what it stands for"
            raise MisuseError(message)
    return {
        "chainId": str(envelope.offer.chain_id),
        "contract": contract,
        "jobId": str(job_id),
        "evaluator": envelope.offer.evaluator,
        "action": "complete" if upheld else "reject",
        "deliverable": deliverable,
        "reason": reason,
        KEY: carried(envelope),
    }


def from_evaluation(document: Any) -> Envelope:
    """Return the offer that an evaluator's record is about; every field must follow from it.

    Raises:
        ForgeryError: one does not.
    """
    envelope = taken(document, KEY)
    try:
        made = to_evaluation(
            envelope,
            contract=text(document, "contract"),
            job_id=number(document, "jobId"),
            upheld=at(document, "action") == "complete",
            deliverable=text(document, "deliverable"),
            reason=text(document, "reason"),
        )
    except MisuseError as err:
        raise ForgeryError(str(err)) from err
    agree(made, document)
    return envelope
