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


# A device may work at this many times its average speed, no faster: it may have stood still for half of its time. A start, a stall or a neighbour's
# load takes less; what takes more misses its bound, too, where the claim is true and the slack is below 2.
_PACE_MOST = 2.0


@dataclass(frozen=True, slots=True)
class Heard:
    """A ping, and what came back."""

    asked_s: float  # since the opening
    fetched_after_s: float  # it was due, and nothing else under way
    step: int = 0
    root: str | None = None
    took_s: float = float("inf")  # that of a ping that was never answered


@dataclass(slots=True)
class Run:
    """One device in one epoch."""

    challenge: Challenge
    session: Session
    bound_s: float | None
    opened_at_s: float
    ping_at_s: list[float]  # those that were not fetched yet
    asked: str | None = None  # the ping that is under way
    asked_of: Heard | None = None  # it, without an answer
    free_at_s: float = 0.0  # when the one before it was answered
    heard: list[Heard] = field(default_factory=list)
    steps: tuple[str, ...] | None = None
    committed_s: float | None = None
    reply: Asked | None = None  # to the newest commitment or scans: who lost it may ask again
    arriving: int = 0  # answers that began to arrive in time and have no verdict yet
    judging: bool = False  # one has arrived
    verdict: Verdict | None = None
    judged: Judged | None = None  # the newest that was told, with its signature
    others: tuple[str, ...] = ()  # who else claims this device: the first few
    others_count: int = 0


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
    due_s = max(run.ping_at_s.pop(0), run.free_at_s)
    if run.asked_of is not None:
        run.heard.append(run.asked_of)
    run.asked = secrets.token_hex(32)
    run.asked_of = Heard(asked_s=at_s - run.opened_at_s, fetched_after_s=at_s - due_s)
    return Ping(nonce=run.asked)


def pong(run: Run, said: Pong, *, at_s: float) -> None:
    """Take the answer to the ping that is under way.

    Raises:
        MisuseError: it answers no ping of this device, or its provider did not sign it.
    """
    asked = run.asked_of
    if asked is None or said.nonce != run.asked:
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
    took_s = at_s - run.opened_at_s - asked.asked_s
    run.heard.append(replace(asked, step=said.step, root=said.root, took_s=took_s))
    run.asked, run.asked_of, run.free_at_s = None, None, at_s


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
    return replace(
        found,
        accepted=found.accepted and not faults,
        faults=(*found.faults, *faults),
        not_proven=(*found.not_proven, *_doubts(run)),
    )


def _doubts(run: Run) -> Iterator[str]:
    yield from (f"whose device it is: {other} claims it, too" for other in run.others)
    if run.others_count > len(run.others):
        yield f"whose device it is: {run.others_count - len(run.others)} more claim it, too"
    if run.ping_at_s and not run.heard and run.committed_s is not None:
        yield "that the work was done where pings are answered: none was asked while it went on"


def _late(run: Run) -> Iterator[Fault]:
    if run.bound_s is not None and run.committed_s is not None and run.committed_s > run.bound_s:
        what = f"came after {run.committed_s:.3f} s; what is claimed allows {run.bound_s:.3f}"
        yield Fault(path="$.commitment", what=what)


def _pinged(run: Run, most_s: float) -> Iterator[Fault]:
    """Hold the pings to the clock, and the pongs to the commitment and to the time that the work took."""
    for due_s in run.ping_at_s:
        if due_s + most_s < run.opened_at_s + (run.committed_s or 0.0):
            what = f"the ping that was due {due_s - run.opened_at_s:.3f} s after the opening was never fetched"
            yield Fault(path="$.pongs", what=what)
    heard = [*run.heard, *([run.asked_of] if run.asked_of else [])]
    if not heard:
        return
    if run.steps is None or _top_root(run.steps, challenge.seed(run.challenge)) != run.session.root:
        what = "the roots of the steps, to hold the pongs against, do not lead to the commitment"
        yield Fault(path="$.steps", what=what)
        return
    before = 0
    for at, one in enumerate(heard):
        if wrong := _wrong(run, run.steps, one, before, most_s):
            yield Fault(path=f"$.pongs[{at}]", what=wrong)
        before = one.step


def _wrong(run: Run, roots: tuple[str, ...], one: Heard, before: int, most_s: float) -> str | None:
    """Say what is wrong with a ping and its pong; `before` is the step of the one before."""
    if one.step and one.root != roots[one.step - 1]:
        return f"signed another root of step {one.step} than was committed"
    if one.fetched_after_s > most_s:
        return f"was fetched {one.fetched_after_s:.3f} s after it was due; {most_s:.3f} are allowed"
    if one.took_s > most_s:
        return f"took {one.took_s:.3f} s; {most_s:.3f} are allowed"
    if one.step < before:
        return f"step {one.step} comes after step {before}"
    least = _least_step(one.asked_s, run.committed_s or 0.0, len(roots))
    if one.step < least:
        return f"step {one.step} of {len(roots)} after {one.asked_s:.3f} of {run.committed_s:.3f} s: at least {least:.1f} are done by then"
    return None


def _least_step(asked_s: float, committed_s: float, steps: int) -> float:
    """Return how many steps are done at a time at least, since the rest was done by the commitment at `_PACE_MOST` times the average or slower.

    One less, as the step that is under way does not count.
    """
    left_s = max(committed_s - asked_s, 0.0)
    return steps * (1 - _PACE_MOST * left_s / committed_s) - 1 if committed_s > 0 else 0.0


def _top_root(roots: tuple[str, ...], seed: bytes) -> str:
    """Return the commitment that the roots of all steps lead to: the top of `merkle.levels`, on a CPU."""
    from harness.proof.hashing import TOP, row_digest  # brings NumPy

    level, place = [bytes.fromhex(root) for root in roots], 1
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        above = [row_digest(TOP, place, at, left + right, seed) for at, (left, right) in enumerate(pairs)]
        level, place = above + (level[-1:] if len(level) % 2 else []), place + 1
    return level[0].hex()
