"""What a verifier asks of everybody, an epoch of it, and what may be wrong with a claim for one."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from harness.market.verifier.messages import Claim, DeviceClaim, signed_claim
from harness.market.verifier.runs import Run
from harness.model import Params
from harness.proof import challenge
from harness.proof.task import operations, task_of
from harness.proof.verifier import Session

__all__ = ["Epoch", "Terms", "begun", "flaws"]

_DEVICES_MOST = 64
_OF_AN_EPOCH_MOST = 4096  # devices
_TEXT_MOST = 128
_OTHERS_NAMED = 8
_NONCE = b"harness.epoch/1 nonce"


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
    told: tuple[int, bytes] | None = None  # its results once it is over, encoded, and how many had been judged by then

    @property
    def nonce_digest(self) -> str:
        """What is told of the nonce before the opening."""
        return hashlib.sha256(bytes.fromhex(self.nonce)).hexdigest()

    def all_runs(self) -> list[Run]:
        """What each device does."""
        return [run for of_one in self.runs.values() for run in of_one.values()]


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


def begun(epoch: Epoch, terms: Terms, *, now: datetime, beacon: str | None) -> dict[str, dict[str, Run]]:
    """Return the runs of all that was claimed for an epoch, by session and device; their clocks run from its opening."""
    owners: dict[str, list[str]] = {}
    for claim in sorted(epoch.claims.values(), key=lambda claim: claim.provider):
        for device in claim.devices:
            owners.setdefault(device.uuid, []).append(claim.provider)
    found = {
        session: {device.uuid: _run(epoch, terms, claim, device, now, beacon) for device in claim.devices}
        for session, claim in epoch.claims.items()
    }
    for session, of_one in found.items():
        for uuid, run in of_one.items():
            first = owners[uuid][
                : _OTHERS_NAMED + 1
            ]  # thousands may name one device: not each of them in the verdict of each
            run.others = tuple(p for p in first if p != epoch.claims[session].provider)[:_OTHERS_NAMED]
            run.others_count = len(owners[uuid]) - 1
    return found


def _run(  # noqa: PLR0913 - what it follows from
    epoch: Epoch, terms: Terms, claim: Claim, device: DeviceClaim, now: datetime, beacon: str | None
) -> Run:
    rate = device.operations_per_s
    own = challenge.framed((_NONCE, bytes.fromhex(epoch.nonce), claim.provider.encode(), device.uuid.encode()))
    issued = challenge.issue(
        provider=claim.provider,
        device_uuid=device.uuid,
        epoch=epoch.number,
        params=terms.params,
        now=now,
        valid_for_s=terms.valid_for_s,
        beacon=beacon,
        nonce=hashlib.sha256(own).hexdigest(),
    )
    during_s = operations(task_of(terms.params)) / rate if rate else float(terms.valid_for_s)
    draw = random.SystemRandom()
    return Run(
        challenge=issued,
        session=Session(issued, at_s=epoch.opens_at_s),
        bound_s=during_s * terms.slack if rate else None,
        opened_at_s=epoch.opens_at_s,
        ping_at_s=sorted(epoch.opens_at_s + draw.uniform(0.1, 0.9) * during_s for _ in range(terms.pings)),
    )
