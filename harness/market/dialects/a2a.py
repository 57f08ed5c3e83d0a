"""A2A: an agent's card that says a quote can be asked for, how it is paid, and what was offered last.

Format: AgentCard of A2A 1.0 in ProtoJSON, to be served at /.well-known/agent-card.json. The offer rides in the parameters of an extension.
"""

from __future__ import annotations

from typing import Any

from harness.errors import ForgeryError
from harness.market.dialects.carry import agree, carried, listed, taken, text
from harness.market.dialects.x402 import network
from harness.market.offers.envelope import Envelope
from harness.market.offers.offer import SCHEMA

__all__ = ["from_card", "to_card"]

EXTENSION = f"urn:{SCHEMA}"  # of our own
X402 = "https://github.com/google-a2a/a2a-x402/v0.1"


def to_card(envelope: Envelope, *, url: str, name: str, description: str, version: str) -> dict[str, Any]:
    """Return the card of an agent that sells compute at a URL, with its newest offer in it."""
    offer = envelope.offer
    return {
        "name": name,
        "description": description,
        "version": version,
        "supportedInterfaces": [{"url": url, "protocolBinding": "HTTP+JSON", "protocolVersion": "1.0"}],
        "capabilities": {
            "streaming": False,
            "pushNotifications": False,
            "extensions": [
                {
                    "uri": X402,
                    "description": "payment by x402",
                    "required": False,
                    "params": {"network": network(offer), "asset": offer.asset},
                },
                {
                    "uri": EXTENSION,
                    "description": "a signed offer, checkable without this agent",
                    "required": False,
                    "params": carried(envelope),
                },
            ],
        },
        "defaultInputModes": ["application/json"],
        "defaultOutputModes": ["application/json"],
        "skills": [
            {
                "id": "quote_gpu",
                "name": "Quote a GPU",
                "description": f"Returns a signed, short-lived offer of {offer.unit} with the benchmark that backs it.",
                "tags": ["gpu", "compute", "quote", "x402"],
            }
        ],
    }


def from_card(card: Any) -> Envelope:
    """Return the offer in a card of ours; every field must follow from it.

    Raises:
        ForgeryError: one does not.
    """
    found = [e for e in listed(card, "capabilities", "extensions") if isinstance(e, dict) and e.get("uri") == EXTENSION]
    if len(found) != 1:
        what = f"should hold the extension {EXTENSION} once"
        raise ForgeryError(what, "$.capabilities.extensions")
    envelope = taken(found[0], "params")
    names = {name: text(card, name) for name in ("name", "description", "version")}
    agree(to_card(envelope, url=text(card, "supportedInterfaces", 0, "url"), **names), card)
    return envelope
