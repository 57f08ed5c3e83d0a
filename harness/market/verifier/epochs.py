"""What a verifier asks of everybody, an epoch of it, and what may be wrong with a claim for one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness.market.verifier.messages import Claim, signed_claim
from harness.market.verifier.runs import Run
from harness.model import Params

__all__ = ["Epoch", "Terms", "flaws"]

_DEVICES_MOST = 64
_OF_AN_EPOCH_MOST = 4096  # devices
_TEXT_MOST = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a verifier asks of everybody.

    `slack` is by how much longer than its claim says a device may take. `ping_most_s` is how late a ping may be fetched, and
    how long its way there and back may take.
    """

    params: Params
    slot_s: float = 60.0  # from opening to opening
    closes_s: float = 1.0  # before the opening no claim is taken any more
    valid_for_s: int = 120
    slack: float = 1.25
    pings: int = 0
    ping_most_s: float = 0.5
    providers: frozenset[str] = frozenset()  # who may claim; none means anybody


@dataclass(slots=True)
class Epoch:
    """One opening: who claimed for it, and from then on what each of their devices does."""

    number: int
    nonce: str
    opens_at_s: float
    claims: dict[str, Claim] = field(default_factory=dict)  # by session
    runs: dict[str, dict[str, Run]] = field(default_factory=dict)  # by session and device

    @property
    def nonce_digest(self) -> str:
        """What is told of the nonce before the opening."""
        return hashlib.sha256(bytes.fromhex(self.nonce)).hexdigest()


def flaws(claim: Claim, epoch: Epoch, terms: Terms, *, at_s: float) -> Iterator[str]:
    """Say why a claim that had arrived at a time is not taken."""
    uuids = [device.uuid for device in claim.devices]
    rates = [d.operations_per_s for d in claim.devices if d.operations_per_s is not None]
    if (claim.epoch, claim.nonce_digest) != (epoch.number, epoch.nonce_digest):
        yield f"the claim is for epoch {claim.epoch} of another notice; the next one is {epoch.number}"
    if at_s > epoch.opens_at_s - terms.closes_s:
        yield f"epoch {epoch.number} takes no claims any more; ask for the next notice once it has opened"
    if not signed_claim(claim):
        yield "the claim is not signed by the provider that it names"
    if not 1 <= len(uuids) <= _DEVICES_MOST or len(set(uuids)) < len(uuids):
        yield f"a claim names 1 to {_DEVICES_MOST} devices, each once; this one has {len(uuids)}"
    if not all(0 < len(uuid) <= _TEXT_MOST for uuid in uuids):
        yield f"the name of a device has 1 to {_TEXT_MOST} characters"
    if not all(0 < rate < float("inf") for rate in rates):
        yield "what a device is claimed to do is above 0 and finite, or null"
    if terms.providers and claim.provider not in terms.providers:
        yield "this verifier does not know the provider"
    if sum(len(known.devices) for known in epoch.claims.values()) + len(uuids) > _OF_AN_EPOCH_MOST:
        yield f"epoch {epoch.number} is full"
    if any(claim.provider == known.provider for known in epoch.claims.values()):
        yield f"this provider has claimed in epoch {epoch.number}: one claim holds all its devices"
