"""One device in one epoch: what it has said so far, its pings, and what is held against it beside what its proof shows.

Pure but for the record itself: every entry takes the time at which its message had arrived.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from harness.errors import MisuseError
from harness.market.verifier.messages import PONG, Asked, Judged, Ping, Pong, pong_digest
from harness.model import Challenge, Fault, Verdict
from harness.proof import challenge
from harness.proof.signing import HEX32, is_signed_by
from harness.proof.verifier import Session

__all__ = ["Heard", "Run", "held_against", "missed", "missing", "next_ping_s", "ping", "pong", "subject"]


@dataclass(frozen=True, slots=True)
class Heard:
    """A pong, and how long it took."""

    step: int
    root: str | None
    took_s: float


_NOTHING = Heard(0, None, float("inf"))  # of a ping that was never answered


@dataclass(slots=True)
class Run:
    """One device in one epoch."""

    challenge: Challenge
    session: Session
    bound_s: float | None
    ping_at_s: list[float]
    asked: str | None = None  # the ping that is under way
    asked_at_s: float = 0.0
    heard: list[Heard] = field(default_factory=list)
    steps: tuple[str, ...] | None = None
    committed_s: float | None = None
    reply: Asked | None = None  # to the newest commitment or scans: who lost it may ask again
    judging: bool = False
    verdict: Verdict | None = None
    judged: Judged | None = None  # the newest that was told, with its signature
    others: tuple[str, ...] = ()  # who else claims this device


# --- pings ------------------------------------------------------------------------------------------------------------


def next_ping_s(run: Run, *, at_s: float) -> float | None:
    """Return how long until a device is to be pinged; None if it is not to be pinged any more."""
    if run.committed_s is not None or not run.ping_at_s:
        return None
    return run.ping_at_s[0] - at_s


def ping(run: Run, *, at_s: float) -> Ping:
    """Make the ping that is due, to be sent at once: its time runs from here."""
    if run.committed_s is not None or not run.ping_at_s:
        return Ping(nonce=None)
    run.ping_at_s.pop(0)
    if run.asked is not None:
        run.heard.append(_NOTHING)
    run.asked, run.asked_at_s = secrets.token_hex(32), at_s
    return Ping(nonce=run.asked)


def pong(run: Run, said: Pong, *, at_s: float) -> None:
    """Take the answer to the ping that is under way.

    Raises:
        MisuseError: it answers no ping of this device, or its provider did not sign it.
    """
    if run.asked is None or said.nonce != run.asked:
        msg = "this answers no ping that is under way"
        raise MisuseError(msg)
    if said.root is not None and not HEX32.fullmatch(said.root):
        msg = "a root is 64 lower-case hex digits, or null before the first step"
        raise MisuseError(msg)
    if not 0 <= said.step <= run.session.task.steps or (said.root is None) != (said.step == 0):
        msg = f"step {said.step} of {run.session.task.steps} with root {said.root!r}: 0 without one, or a step with its own"
        raise MisuseError(msg)
    digest = pong_digest(said.device_uuid, said.nonce, said.step, said.root)
    if not is_signed_by(run.challenge.provider, digest, said.signature, domain=PONG):
        msg = "the pong is not signed by the provider"
        raise MisuseError(msg)
    run.heard.append(Heard(said.step, said.root, at_s - run.asked_at_s))
    run.asked = None


# --- verdicts ---------------------------------------------------------------------------------------------------------


def subject(run: Run) -> str:
    """Return what a verdict on this device is about."""
    return f"epoch {run.challenge.epoch}, device {run.challenge.device_uuid}"


def missed(run: Run, past_s: float) -> bool:
    """Tell whether a device has let its bound go by without a commitment; `past_s` is the time since the opening."""
    return run.committed_s is None and run.bound_s is not None and past_s > run.bound_s


def missing(run: Run) -> Verdict:
    """Return the verdict on a device that did not answer."""
    what = "no commitment came in time" if run.committed_s is None else "a commitment came, and no openings after it"
    empty = Verdict(
        subject=subject(run),
        digest=None,
        accepted=False,
        signed_by=None,
        complete=False,
        faults=(Fault(path="$", what=what),),
        proven=(),
        not_proven=("anything: it was claimed, and not shown",),
    )
    return _with(empty, (), run)


def held_against(run: Run, found: Verdict, *, ping_most_s: float) -> Verdict:
    """Return a verdict with lateness, pings and other claims held against it. What was proven of the work stays."""
    return _with(found, (*_late(run), *_pinged(run, ping_most_s)), run)


def _with(found: Verdict, faults: tuple[Fault, ...], run: Run) -> Verdict:
    doubts = tuple(f"whose device it is: {other} claims it, too" for other in run.others)
    return replace(
        found,
        accepted=found.accepted and not faults,
        faults=(*found.faults, *faults),
        not_proven=(*found.not_proven, *doubts),
    )


def _late(run: Run) -> Iterator[Fault]:
    if run.bound_s is not None and run.committed_s is not None and run.committed_s > run.bound_s:
        what = f"came after {run.committed_s:.3f} s; what is claimed allows {run.bound_s:.3f}"
        yield Fault(path="$.commitment", what=what)


def _pinged(run: Run, most_s: float) -> Iterator[Fault]:
    """Hold the pongs to the commitment and to the clock."""
    heard = [*run.heard, *([_NOTHING] if run.asked else [])]
    if not heard:
        return
    if run.steps is None or _top_root(run.steps, challenge.seed(run.challenge)) != run.session.root:
        what = "the roots of the steps, to hold the pongs against, do not lead to the commitment"
        yield Fault(path="$.steps", what=what)
        return
    shortest_s = min(one.took_s for one in heard)
    for at, one in enumerate(heard):
        path = f"$.pongs[{at}]"
        if one.step and one.root != run.steps[one.step - 1]:
            yield Fault(path=path, what=f"signed another root of step {one.step} than was committed")
        elif one.took_s - shortest_s > most_s or one.took_s == float("inf"):
            yield Fault(path=path, what=f"took {one.took_s:.3f} s, {most_s:.3f} above the shortest are allowed")


def _top_root(roots: tuple[str, ...], seed: bytes) -> str:
    """Return the commitment that the roots of all steps lead to: the top of `merkle.levels`, on a CPU."""
    from harness.proof.hashing import TOP, row_digest  # brings NumPy

    level, place = [bytes.fromhex(root) for root in roots], 1
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        above = [row_digest(TOP, place, at, left + right, seed) for at, (left, right) in enumerate(pairs)]
        level, place = above + (level[-1:] if len(level) % 2 else []), place + 1
    return level[0].hex()
