"""The verifier's desk: epochs, claims, sessions and clocks, without a network.

Every entry takes the time at which its message had arrived, whole; an answer, whose openings are long, that at which it began to.

All devices that were claimed for an epoch are challenged at one moment, its opening; from then on each one's clock runs, whenever its prover
comes to fetch the challenge. So a device behind two names, or counted twice by one, works twice in the time of once, and misses the bound that
its claims set.

Promised: a session, a challenge and an answer are good once; what is late by the verifier's clock is refused, what never came is a verdict too.
Not promised: that a claim is high. Who claims little is held to little, and little is what is proven.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from harness.errors import MisuseError
from harness.market.verifier import runs
from harness.market.verifier.epochs import Epoch, Terms, begun, flaws
from harness.market.verifier.messages import (
    AHEAD_MOST_S,
    Admission,
    Asked,
    Claim,
    Commitment,
    Judged,
    Notice,
    Opened,
    Ping,
    Pong,
    Results,
    Scans,
    Steps,
)
from harness.market.verifier.results import Teller
from harness.market.verifier.runs import Run
from harness.model import Transcript
from harness.proof import bundle, challenge
from harness.proof.signing import HEX32

if TYPE_CHECKING:
    from harness.proof.signing import Key
    from harness.proof.transcript import Openings

__all__ = ["Desk", "GoneError", "Terms"]

_EPOCHS_KEPT = 8
_TEXT_MOST = 128


class GoneError(MisuseError):
    """There is no such session here: it never was, or it is over."""


class Desk:
    """Keeps the epochs of one verifier. Not for several threads at once, but for `judge`, which may run beside the rest."""

    def __init__(
        self,
        terms: Terms,
        *,
        clock: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        beacon: Callable[[int], str | None] = lambda _: None,
        key: Key | None = None,
    ) -> None:
        """Begin with an empty desk.

        Args:
            terms: what is asked of everybody.
            clock: seconds that only go forward; the only time that counts.
            now: for the dates in challenges.
            beacon: the public random value of an epoch, asked for when it opens.
            key: signs the verdicts; without one they are nobody's word.

        Raises:
            MisuseError: the terms make no sense.
        """
        trial = challenge.issue(
            provider="anybody",
            device_uuid="any",
            epoch=1,
            params=terms.params,
            now=now(),
            valid_for_s=terms.valid_for_s,
        )
        self._task = challenge.task(trial)
        if not (
            AHEAD_MOST_S >= terms.slot_s > terms.closes_s >= 0
            and terms.slack >= 1
            and terms.pings >= 0
            and terms.ping_most_s > 0
        ):
            msg = f"terms out of range: slot_s above closes_s and at most a day, slack 1 or more, pings 0 or more, ping_most_s above 0; not {terms}"
            raise MisuseError(msg)
        self.terms = terms
        self.teller = Teller(clock, now, terms.valid_for_s, key)
        self._clock, self._now, self._beacon = clock, now, beacon
        self._began_s = clock()
        self._epochs: dict[int, Epoch] = {}
        self._home: dict[str, int] = {}  # session -> epoch
        self._round = self._next(0)

    @property
    def steps(self) -> int:
        """How many steps the work of a challenge has."""
        return self._task.steps

    def _next(self, number: int) -> Epoch:
        """Return the epoch after the one of this number, which opens at a whole number of slots, and in time to be announced."""
        slots = int((self._clock() - self._began_s) / self.terms.slot_s) + 1
        opens_at_s = self._began_s + slots * self.terms.slot_s
        epoch = Epoch(number=number + 1, nonce=secrets.token_hex(32), opens_at_s=opens_at_s)
        self._epochs[epoch.number] = epoch
        return epoch

    def _current(self) -> Epoch:
        """Return the epoch that takes claims; turn the page where one has opened."""
        if self._clock() >= self._round.opens_at_s:
            self._round = self._next(self._round.number)
            for old in [n for n in self._epochs if n <= self._round.number - _EPOCHS_KEPT]:
                for session in self._epochs.pop(old).claims:
                    del self._home[session]
        return self._round

    def notice(self) -> Notice:
        """Announce the next opening."""
        epoch, at_s = self._current(), self._clock()
        return Notice(
            schema="harness.epoch/1",
            epoch=epoch.number,
            nonce_digest=epoch.nonce_digest,
            opens_in_s=epoch.opens_at_s - at_s,
            closes_in_s=max(epoch.opens_at_s - at_s - self.terms.closes_s, 0.0),
            params=self.terms.params,
            pings=self.terms.pings,
        )

    def claim(self, claim: Claim) -> Admission:
        """Admit a provider with all its devices to the next opening.

        Raises:
            MisuseError: it is for another epoch, comes too late or twice, is not signed by its provider, or a number makes no sense.
        """
        epoch, at_s = self._current(), self._clock()
        for flaw in flaws(claim, epoch, self.terms, at_s=at_s):
            raise MisuseError(flaw)
        session = secrets.token_urlsafe(16)
        epoch.claims[session] = claim
        self._home[session] = epoch.number
        return Admission(session=session)

    def require(self, session: str) -> None:
        """Raise `GoneError` where there is no such session."""
        self._epoch_of(session)

    def opens_in_s(self, session: str) -> float:
        """Return how long until a session's challenges may be fetched; 0 or less once they may.

        Raises:
            GoneError: there is no such session.
        """
        return self._epoch_of(session).opens_at_s - self._clock()

    def open(self, session: str) -> Opened:
        """Return a session's challenges. Asking again changes nothing: its clocks have run since the epoch opened.

        Raises:
            GoneError: there is no such session.
            MisuseError: its epoch has not opened.
        """
        epoch = self._epoch_of(session)
        if self._clock() < epoch.opens_at_s:
            msg = f"epoch {epoch.number} opens in {epoch.opens_at_s - self._clock():.3f} s"
            raise MisuseError(msg)
        runs = self._runs(epoch)[session]
        return Opened(nonce=epoch.nonce, challenges=tuple(run.challenge for run in runs.values()))

    def _epoch_of(self, session: str) -> Epoch:
        epoch = self._epochs.get(self._home.get(session, -1))
        if epoch is None:
            msg = "there is no such session: it never was, or it is over"
            raise GoneError(msg)
        return epoch

    def _runs(self, epoch: Epoch) -> dict[str, dict[str, Run]]:
        """Start the runs of an epoch that has opened, all of them at its opening."""
        if not epoch.runs:
            epoch.runs = begun(epoch, self.terms, now=self._now(), beacon=self._beacon(epoch.number))
        return epoch.runs

    def run_of(self, session: str, device_uuid: str) -> Run:
        """Return what one device is doing.

        Raises:
            GoneError: there is no such session.
            MisuseError: it has not opened, or not such a device.
        """
        epoch = self._epoch_of(session)
        self.open(session)
        run = epoch.runs[session].get(device_uuid)
        if run is None:
            msg = f"this session has no device {device_uuid[:_TEXT_MOST]!r}"
            raise MisuseError(msg)
        return run

    def commit(self, session: str, said: Commitment, *, at_s: float) -> Asked:
        """Take a commitment that had arrived, whole, at a time: the clock stops there. The same one again gets the same reply.

        Raises:
            GoneError: there is no such session.
            MisuseError: it is no digest, another one than before, out of turn, or the challenge has expired.
        """
        run = self.run_of(session, said.device_uuid)
        if run.session.root is not None and run.session.root == said.commitment and run.reply and not run.session.roots:
            return run.reply
        run.session.committed(said.commitment, at_s=at_s)
        run.committed_s = at_s - self._epoch_of(session).opens_at_s
        run.reply = (
            Asked(scan_key=run.session.scan_key(at_s=self._clock()))
            if run.session.task.scans
            else Asked(asked=run.session.ask(at_s=at_s))
        )
        return run.reply

    def scan(self, session: str, said: Scans, *, at_s: float) -> Asked:
        """Take the roots of a device's scans.

        Raises:
            GoneError, MisuseError: as `commit`.
        """
        run = self.run_of(session, said.device_uuid)
        if run.session.roots and run.session.roots == said.scan_roots and run.reply:
            return run.reply
        run.session.scanned(said.scan_roots, at_s=at_s)
        run.reply = Asked(asked=run.session.ask(at_s=at_s))
        return run.reply

    def next_ping_s(self, session: str, device_uuid: str) -> float | None:
        """Return how long until a device is to be pinged; None if it is not to be pinged any more.

        Raises:
            GoneError, MisuseError: as `run_of`.
        """
        return runs.next_ping_s(self.run_of(session, device_uuid), at_s=self._clock())

    def ping(self, session: str, device_uuid: str) -> Ping:
        """Make the ping that is due, to be sent at once: its time runs from here.

        Raises:
            GoneError, MisuseError: as `run_of`.
        """
        return runs.ping(self.run_of(session, device_uuid), at_s=self._clock())

    def pong(self, session: str, said: Pong, *, at_s: float) -> None:
        """Take the answer to the ping that is under way.

        Raises:
            GoneError: there is no such session.
            MisuseError: it answers no ping of this session, or its provider did not sign it.
        """
        runs.pong(self.run_of(session, said.device_uuid), said, at_s=at_s)

    def take_steps(self, session: str, said: Steps) -> None:
        """Take the roots of all steps, once the commitment is in: they are held to it when all is judged.

        Raises:
            GoneError: there is no such session.
            MisuseError: out of turn, or not one digest a step.
        """
        run = self.run_of(session, said.device_uuid)
        if run.committed_s is None or run.judging or len(said.roots) != run.session.task.steps:
            msg = f"the roots of all {run.session.task.steps} steps come once, after the commitment; {len(said.roots)} came"
            raise MisuseError(msg)
        if not all(map(HEX32.fullmatch, said.roots)):
            msg = "a root is 64 lower-case hex digits"
            raise MisuseError(msg)
        run.steps = said.roots

    def openings_bytes(self, session: str, device_uuid: str) -> int:
        """Return how many bytes of openings are to come, exactly.

        Raises:
            GoneError: there is no such session.
            MisuseError: openings are not due, or were judged.
        """
        run = self.run_of(session, device_uuid)
        asked = run.session
        if asked.state != "asked" or run.judging:
            msg = f"the openings come after the commitment, and once: this device is {asked.state!r}"
            raise MisuseError(msg)
        seed, roots = challenge.seed(asked.challenge), (asked.root or "", *asked.roots)
        cells = bundle.cells(asked.task, seed, roots, asked.nonce)
        return sum(bundle.sizes(asked.task, cells, bundle.scan_cells(asked.task, seed, roots, asked.nonce)))

    def timing(self) -> bool:
        """Whether any device may still commit in time: what takes long should wait, for the clock's sake."""
        return any(self._timing(epoch) for epoch in self._epochs.values())

    def _timing(self, epoch: Epoch) -> bool:
        past_s = self._clock() - epoch.opens_at_s
        if not 0 <= past_s < self.terms.valid_for_s:  # a low claim is waited for no longer than its challenge is good
            return False
        self._runs(epoch)
        return any(
            run.committed_s is None and run.bound_s is not None and past_s < run.bound_s for run in epoch.all_runs()
        )

    @contextmanager
    def arriving(self, session: str, device_uuid: str, *, at_s: float) -> Iterator[None]:
        """Call no device missing whose answer began to arrive in time, at a time: it waits for others, and then for its verdict.

        Raises:
            GoneError, MisuseError: as `run_of`.
        """
        run = self.run_of(session, device_uuid)
        in_time = int(at_s - run.opened_at_s <= self.terms.valid_for_s)
        run.arriving += in_time
        try:
            yield
        finally:
            run.arriving -= in_time

    def judge(
        self, session: str, device_uuid: str, transcript: Transcript, openings: Openings, *, at_s: float
    ) -> Judged:
        """Judge a device's answer, which began to arrive at a time. Whatever comes, that was the answer.

        Raises:
            GoneError, MisuseError: as `answered`.
        """
        return self.answered(session, device_uuid, transcript, openings, at_s=at_s)()

    def answered(
        self, session: str, device_uuid: str, transcript: Transcript, openings: Openings, *, at_s: float
    ) -> Callable[[], Judged]:
        """Take an answer as the only one of its device, and return what judges it: later, and in another thread, if need be.

        Raises:
            GoneError: there is no such session.
            MisuseError: no answer is due.
        """
        run = self.run_of(session, device_uuid)
        if run.session.state != "asked" or run.judging:
            msg = f"an answer comes after the commitment, and once: this device is {run.session.state!r}"
            raise MisuseError(msg)
        run.judging = True

        def judge() -> Judged:
            found = run.session.judge(transcript, openings, at_s=at_s, subject=runs.subject(run))
            run.verdict = runs.held_against(run, found, ping_most_s=self.terms.ping_most_s)
            return self.teller.told(run, run.verdict)

        return judge

    def opened(self, number: int) -> Epoch:
        """Return an epoch that has opened.

        Raises:
            GoneError: there was no such epoch, or it was long ago.
            MisuseError: it has not opened.
        """
        self._current()
        epoch = self._epochs.get(number)
        if epoch is None:
            msg = f"there is no epoch {number}; the next one is {self._round.number}, and {_EPOCHS_KEPT} are kept"
            raise GoneError(msg)
        past_s = self._clock() - epoch.opens_at_s
        if past_s < 0:
            msg = f"epoch {number} opens in {-past_s:.1f} s"
            raise MisuseError(msg)
        self._runs(epoch)
        return epoch

    def results(self, number: int) -> Results:
        """Return what came of an epoch so far; a device that has not answered in time is refused.

        Raises:
            GoneError, MisuseError: as `opened`.
        """
        return self.teller.results(self.opened(number))
