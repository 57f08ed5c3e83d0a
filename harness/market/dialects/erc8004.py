"""ERC-8004, trustless agents: the registration file of who sells, and the record of a validation that a benchmark backs.

Format: ERC8004SPEC.md of the reference contracts, 2026-08. No validation registry was known to be deployed then: the record is written, not sent.

A failure (response 0) without a hash or a tag reads on the chain like no answer at all, so a record without them is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from harness.errors import ForgeryError, MisuseError
from harness.market.dialects.carry import KEY, agree, at, carried, listed, number, taken, text
from harness.market.dialects.onchain import Request
from harness.market.offers.abi import ZERO_ADDRESS, checked, checksummed
from harness.market.offers.envelope import Envelope
from harness.market.offers.keccak import keccak256
from harness.market.offers.offer import Offer

__all__ = ["TAG", "Service", "from_registration", "from_validation", "to_registration", "to_validation"]

TAG = "gpu-bench:v1"
_TYPE = "https://eips.ethereum.org/EIPS/eip-8004#registration-v1"
_RESPONSE_MOST = 100


class Service(NamedTuple):
    """One way to reach an agent: `web`, `A2A`, `MCP`, `OASF`, `ENS`, `DID` or `email`."""

    name: str
    endpoint: str
    version: str | None = None


def agent_registry(offer: Offer) -> str:
    """Return an offer's identity registry as the standard writes it: `eip155:<chain>:<address>`."""
    return f"eip155:{offer.chain_id}:{checksummed(offer.agent_registry)}"


def to_registration(
    envelope: Envelope, *, name: str, description: str, image: str, services: Sequence[Service]
) -> dict[str, Any]:
    """Return the registration file of the agent that makes an offer; the envelope stands in it under `harness-quote`.

    The registry is on the chain of the settlement. Where the offer names none, the agent is not registered yet and the list is empty.
    """
    offer = envelope.offer
    registered = offer.agent_registry != ZERO_ADDRESS
    return {
        "type": _TYPE,
        "name": name,
        "description": description,
        "image": image,
        "services": [
            {"name": s.name, "endpoint": s.endpoint} | ({} if s.version is None else {"version": s.version})
            for s in services
        ],
        "x402Support": True,
        "active": True,
        "registrations": [{"agentId": offer.agent_id, "agentRegistry": agent_registry(offer)}] if registered else [],
        "supportedTrust": ["reputation", "validation"],
        KEY: carried(envelope),
    }


def from_registration(document: Any) -> Envelope:
    """Return the offer in a registration file of ours; agent and registry must be the offer's.

    Raises:
        ForgeryError: they are not, or a field is unknown.
    """
    envelope = taken(document, KEY)
    made = to_registration(
        envelope,
        name=text(document, "name"),
        description=text(document, "description"),
        image=text(document, "image"),
        services=[
            Service(text(s, "name"), text(s, "endpoint"), s.get("version")) for s in listed(document, "services")
        ],
    )
    agree(made, document)
    return envelope


def to_validation(  # noqa: PLR0913 - each is a part of the record
    envelope: Envelope, request: Request, *, response: int, evidence: bytes, uri: str, tag: str = TAG
) -> dict[str, Any]:
    """Return the record of a validation: what `validationResponse` is called with, whom it answers, and what offer it is about.

    Args:
        envelope: the offer whose promise was checked.
        request: what was asked; about this offer and its agent.
        response: 0 for a failure to 100 for a pass.
        evidence: the document of the verdict; its Keccak-256 is the response's hash.
        uri: where that document lies.
        tag: what kind of validation it was.

    Raises:
        MisuseError: the request is about another offer, a number is out of range, or evidence or tag are empty.
    """
    offer = envelope.offer
    asked = (request.chain_id, request.agent_id, request.quote_id)
    if asked != (offer.chain_id, offer.agent_id, offer.quote_id):
        message = f"the request is about chain, agent and quote {asked}, not this offer's"
        raise MisuseError(message)
    checked("uint8", response, "response")
    if response > _RESPONSE_MOST or not tag or not evidence:
        message = (
            f"response {response}, tag {tag!r}, {len(evidence)} bytes of evidence: 0 to 100, and neither may be empty"
        )
        raise MisuseError(message)
    return {
        "requestHash": request.hash,
        "response": response,
        "responseURI": uri,
        "responseHash": "0x" + keccak256(evidence).hex(),
        "tag": tag,
        "request": {
            "chainId": str(request.chain_id),
            "registry": request.registry,
            "agentId": str(request.agent_id),
            "validator": request.validator,
            "salt": request.salt,
        },
        KEY: carried(envelope),
    }


def from_validation(document: Any, evidence: bytes) -> tuple[Envelope, Request]:
    """Return what a record of a validation is about; every field must follow from the offer, the request and the evidence.

    Raises:
        ForgeryError: one does not.
    """
    envelope = taken(document, KEY)
    try:
        request = Request(
            chain_id=number(document, "request", "chainId"),
            registry=text(document, "request", "registry"),
            agent_id=number(document, "request", "agentId"),
            validator=text(document, "request", "validator"),
            quote_id=envelope.offer.quote_id,
            salt=text(document, "request", "salt"),
        )
        made = to_validation(
            envelope,
            request,
            response=at(document, "response"),
            evidence=evidence,
            uri=text(document, "responseURI"),
            tag=text(document, "tag"),
        )
    except MisuseError as err:
        raise ForgeryError(str(err), "$.request") from err
    agree(made, document)
    return envelope, request
