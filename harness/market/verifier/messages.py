"""What a verifier and a prover say to each other over HTTP: small records in canonical JSON, each decoded strictly.

The order of an epoch: the prover reads the `Notice`, sends a signed `Claim`, and at the opening gets its challenges; per device a `Commitment`,
`Scans` where memory is to be read, answers to `Ping`s in between, `Steps` if there were any, and at last the file of a transcript.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Literal

from harness import codec
from harness.errors import ForgeryError, MisuseError
from harness.model import Challenge, Params, Verdict
from harness.proof.challenge import framed
from harness.proof.challenge import task as checked
from harness.proof.signing import HEX32, Key, is_signed_by
from harness.proof.task import task_of

__all__ = [
    "AHEAD_MOST_S",
    "CLAIM",
    "JUDGED",
    "PONG",
    "Admission",
    "Asked",
    "Claim",
    "Commitment",
    "DeviceClaim",
    "Judged",
    "Notice",
    "Opened",
    "Ping",
    "Pong",
    "Results",
    "Scans",
    "Steps",
    "Wait",
    "pong_digest",
    "require_asked",
    "require_notice",
    "require_opened",
    "require_session",
    "require_verdict_of",
    "sign_claim",
    "sign_verdict",
    "signed_claim",
]

AHEAD_MOST_S = 86_400.0  # of an epoch that a prover waits for
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,128}")

CLAIM, PONG, JUDGED = b"harness.claim/1\0", b"harness.pong/1\0", b"harness.judged/1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The next epoch: when it opens, what it will ask, and the digest of the number that its seeds will come from."""

    schema: Literal["harness.epoch/1"]
    epoch: int
    nonce_digest: str
    opens_in_s: float
    closes_in_s: float  # for claims
    params: Params
    pings: int  # to each device, during its work


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaim:
    """A device that is to be challenged, and what it is claimed to do at least; None claims nothing and is held to nothing."""

    uuid: str
    operations_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """All the devices that a provider has, to be challenged in one slot, signed for this epoch alone."""

    schema: Literal["harness.claim/1"]
    provider: str  # public key
    epoch: int
    nonce_digest: str
    devices: tuple[DeviceClaim, ...]
    signature: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The name of a session, known to this prover alone."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The challenges of a slot, one a device, all from one nonce, which is now told."""

    nonce: str
    challenges: tuple[Challenge, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """The root over all the work of one device. The verifier's clock stops when it has arrived."""

    device_uuid: str
    commitment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scans:
    """The roots of the scans of one device's memory."""

    device_uuid: str
    scan_roots: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is wanted next: scans with this key, or the openings that this nonce chooses."""

    scan_key: str | None = None
    asked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Asks to be pinged while a device works."""

    device_uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """A number to sign at once, with the newest root; None: there is nothing more to come."""

    nonce: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong:
    """How far a device is: the last step that is done and the root over its rows; step 0 has none."""

    device_uuid: str
    nonce: str
    step: int
    root: str | None
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The root of every step of one device, by which its pongs are held to its commitment; wanted where it was pinged."""

    device_uuid: str
    roots: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A verdict as its verifier gave it: what a provider can show to others, who need not have been there.

    Proven by its signature: the owner of key `verifier` said this of this challenge, and so of this provider and device. Not proven: that it is true. The
    times in it are that verifier's word; the work itself, a third party can check from the transcript that `verdict.digest` names.
    """

    schema: Literal["harness.judged/1"]
    challenge: Challenge
    verdict: Verdict
    judged_at: str  # the verifier's date, UTC
    verifier: str | None  # public key; None where the verifier has none
    signature: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What came of an epoch, one verdict a claimed device: who did not answer has one, too."""

    schema: Literal["harness.results/1"]
    epoch: int
    verdicts: tuple[Judged, ...]


def _claim_digest(claim: Claim) -> str:
    return codec.digest(replace(claim, signature=None))


def sign_claim(claim: Claim, key: Key) -> Claim:
    """Return the claim with this key's signature."""
    named = replace(claim, provider=key.public_hex, signature=None)
    return replace(named, signature=key.sign(_claim_digest(named), domain=CLAIM))


def signed_claim(claim: Claim) -> bool:
    """Tell whether a claim is signed by the provider that it names."""
    signature = claim.signature or ""
    return is_signed_by(claim.provider, _claim_digest(claim), signature, domain=CLAIM)


def _verdict_digest(judged: Judged) -> str:
    return codec.digest(replace(judged, signature=None))


def sign_verdict(judged: Judged, key: Key) -> Judged:
    """Return the verdict with this key's signature, over all but the signature."""
    named = replace(judged, verifier=key.public_hex, signature=None)
    return replace(named, signature=key.sign(_verdict_digest(named), domain=JUDGED))


def require_verdict_of(judged: Judged, verifier: str | None) -> None:
    """Refuse a verdict that its verifier did not give.

    Args:
        judged: the verdict.
        verifier: the public key that must have signed it; None lets anybody's pass, signed or not, but no wrong signature.

    Raises:
        ForgeryError: it is another's, unsigned, or was changed after it was signed.
    """
    if verifier is not None and judged.verifier != verifier:
        what = f"given by {judged.verifier or 'nobody'}, not by {verifier}"
        raise ForgeryError(what, "$.verifier")
    if judged.verifier is None and judged.signature is None:
        return
    signed = is_signed_by(judged.verifier or "", _verdict_digest(judged), judged.signature or "", domain=JUDGED)
    if not signed:
        what = f"does not fit the verdict and the key {judged.verifier}"
        raise ForgeryError(what, "$.signature")


def require_notice(notice: Notice) -> Notice:
    """Return a notice, or refuse one that nobody can act on.

    Raises:
        ForgeryError: a time is negative or more than a day, or the work is none.
    """
    for name in ("opens_in_s", "closes_in_s"):
        value = getattr(notice, name)
        if not 0 <= value <= AHEAD_MOST_S:
            what = f"must be 0 to {AHEAD_MOST_S:.0f} s, not {value!r}"
            raise ForgeryError(what, f"$.{name}")
    try:
        task_of(notice.params)
    except MisuseError as err:
        raise ForgeryError(str(err), "$.params") from err
    return notice


def require_session(admission: Admission) -> str:
    """Return the name of a session, or refuse one that cannot stand in a path: `ForgeryError`."""
    if not _SESSION.fullmatch(admission.session):
        what = f"must be 1 to 128 letters, digits, - and _, not {admission.session[:128]!r}"
        raise ForgeryError(what, "$.session")
    return admission.session


def require_opened(opened: Opened, notice: Notice, uuids: set[str]) -> Opened:
    """Return the challenges of a slot, or refuse such as are none, or others than were announced and claimed for.

    Raises:
        ForgeryError: says which.
    """
    asked = {one.device_uuid: one for one in opened.challenges}
    if len(asked) < len(opened.challenges) or asked.keys() != uuids:
        what = "the verifier asks for other devices than were claimed"
        raise ForgeryError(what, "$.challenges")
    if any(one.params != notice.params for one in opened.challenges):
        what = "the verifier asks for another work than was announced"
        raise ForgeryError(what, "$.challenges")
    for at, one in enumerate(opened.challenges):
        try:
            checked(one)
        except MisuseError as err:
            raise ForgeryError(str(err), f"$.challenges[{at}]") from err
    return opened


def require_asked(asked: Asked) -> Asked:
    """Return what is wanted next, or refuse a key or a nonce that is none: `ForgeryError`."""
    for name in ("scan_key", "asked"):
        value = getattr(asked, name)
        if value is not None and not HEX32.fullmatch(value):
            what = f"must be 64 lower-case hex digits, not {value[:80]!r}"
            raise ForgeryError(what, f"$.{name}")
    return asked


def pong_digest(device_uuid: str, nonce: str, step: int, root: str | None) -> str:
    """Return the digest that a pong's signature is of."""
    parts = (device_uuid.encode(), bytes.fromhex(nonce), step.to_bytes(8, "big"), (root or "").encode())
    return hashlib.sha256(framed(parts)).hexdigest()
