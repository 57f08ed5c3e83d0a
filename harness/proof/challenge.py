"""Challenges: issued fresh, addressed to one device, good once and for a while.

Promised: the seed is bound to the beacon, the verifier's nonce, the provider, the device, the epoch and the parameters, each with its length, so
that no two sets of them give one seed; nobody knows it before the challenge is issued; a ledger lets each be answered once.
Not promised: that the provider answers with that device. A verifier who shares a nonce early shares the head start.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from harness import codec
from harness.errors import MisuseError
from harness.model import Challenge
from harness.proof.signing import HEX32
from harness.proof.task import Task, task_of

if TYPE_CHECKING:
    from harness.model import Params

__all__ = ["Ledger", "framed", "issue", "issued_at", "lifetime_s", "seed", "stream", "task"]

_SEED, _STREAM = b"harness.challenge/2 seed", b"harness.challenge/2 stream"
_TEXT_MOST = 256
_LIFETIME_MOST_S = 86_400.0
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def issue(  # noqa: PLR0913 - what a challenge is made of
    *,
    provider: str,
    device_uuid: str,
    epoch: int,
    params: Params,
    now: datetime,
    valid_for_s: int = 120,
    beacon: str | None = None,
    nonce: str | None = None,
) -> Challenge:
    """Make a challenge.

    Args:
        provider: the public key of who is to answer, or a name.
        device_uuid: of the device that is to do the work.
        epoch: the number of the period it belongs to.
        params: `mode`, `n`, `steps`, `openings`, `scans`, `scan_openings`; see `task.task_of`.
        now: the verifier's time.
        valid_for_s: after which no answer is accepted.
        beacon: a public random value of this period, such as a drand round's.
        nonce: 64 hex digits; drawn if not given. Give one that was announced by its digest before.

    Raises:
        MisuseError: an argument is out of range.
    """
    _require_lifetime(valid_for_s)
    until = now + timedelta(seconds=valid_for_s)
    made = Challenge(
        schema="harness.challenge/2",
        nonce=nonce or secrets.token_hex(32),
        beacon=beacon,
        provider=provider,
        device_uuid=device_uuid,
        epoch=epoch,
        params=params,
        issued_at=now.astimezone(UTC).strftime(_TIME),
        expires_at=until.astimezone(UTC).strftime(_TIME),
    )
    task(made)
    return made


def task(challenge: Challenge) -> Task:
    """Check a challenge, whoever it comes from, and return what it asks for.

    Raises:
        MisuseError: something in it is out of range.
    """
    if not HEX32.fullmatch(challenge.nonce):
        msg = f"the nonce {challenge.nonce[:80]!r} is not 64 lower-case hex digits"
        raise MisuseError(msg)
    for name, text in (
        ("provider", challenge.provider),
        ("device_uuid", challenge.device_uuid),
        ("beacon", challenge.beacon or "none"),
    ):
        if not 0 < len(text) <= _TEXT_MOST:
            msg = f"{name} must have 1 to {_TEXT_MOST} characters, not {len(text)}"
            raise MisuseError(msg)
    if challenge.epoch < 0:
        msg = f"epoch must be 0 or more, not {challenge.epoch}"
        raise MisuseError(msg)
    _require_lifetime(lifetime_s(challenge))
    return task_of(challenge.params)


def _require_lifetime(seconds: float) -> None:
    if not 0 < seconds <= _LIFETIME_MOST_S:
        msg = f"it must be valid for 1 to {_LIFETIME_MOST_S:.0f} s, not {seconds:.0f}"
        raise MisuseError(msg)


def lifetime_s(challenge: Challenge) -> float:
    """Return how long a challenge is good for.

    Raises:
        MisuseError: its times are not spelled like 2026-11-25T12:00:00Z.
    """
    return (_time(challenge.expires_at) - _time(challenge.issued_at)).total_seconds()


def issued_at(challenge: Challenge) -> datetime:
    """Return when a challenge says it was issued.

    Raises:
        MisuseError: the time is not spelled like 2026-11-25T12:00:00Z.
    """
    return _time(challenge.issued_at)


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError as err:
        msg = f"the time {text[:40]!r} is not spelled like 2026-11-25T12:00:00Z"
        raise MisuseError(msg) from err


def framed(parts: Iterable[bytes]) -> bytes:
    """Join parts so that no other list of parts gives the same bytes: each is led by its length."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def seed(challenge: Challenge) -> bytes:
    """Return the 32 bytes that everything random in the work comes from."""
    beacon = b"" if challenge.beacon is None else b"\x01" + challenge.beacon.encode()
    parts = (
        _SEED,
        beacon,
        bytes.fromhex(challenge.nonce),
        challenge.provider.encode(),
        challenge.device_uuid.encode(),
        challenge.epoch.to_bytes(8, "big"),
        codec.encode(dict(challenge.params)),
    )
    return hashlib.sha256(framed(parts)).digest()


def stream(of: bytes, label: str) -> tuple[int, int]:
    """Return the key and the stream of the Philox generator that a seed has for one purpose, 64 bits each."""
    digest = hashlib.sha256(framed((_STREAM, of, label.encode()))).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


class Ledger:
    """The challenges that one verifier has issued and not yet seen answered. Lives in memory: what a restart forgets is refused."""

    def __init__(self) -> None:
        self._open: dict[str, Challenge] = {}

    def add(self, challenge: Challenge) -> None:
        """Note a challenge as issued.

        Raises:
            MisuseError: its nonce is in use.
        """
        if challenge.nonce in self._open:
            msg = f"the nonce {challenge.nonce[:8]}... is in use: each challenge needs its own"
            raise MisuseError(msg)
        self._open[challenge.nonce] = challenge

    def take(self, challenge: Challenge, *, now: datetime) -> None:
        """Strike a challenge off as answered; what has expired is struck off with it.

        Raises:
            MisuseError: it was not issued here, was answered before, or has expired.
        """
        known = self._open.pop(challenge.nonce, None)
        self._open = {n: c for n, c in self._open.items() if now <= _time(c.expires_at)}
        if known != challenge:
            msg = f"challenge {challenge.nonce[:8]}... was not issued here, or was answered before"
            raise MisuseError(msg)
        if now > _time(challenge.expires_at):
            msg = f"challenge {challenge.nonce[:8]}... expired at {challenge.expires_at}"
            raise MisuseError(msg)
