"""The verifier: judges an answer to a challenge on a CPU, with secrets drawn after the answer is fixed, and by its own clock.

    session = Session(challenge, at_s=clock())        # the challenge goes out
    session.committed(root, at_s=clock())             # its root comes in: the clock stops here
    key = session.scan_key(at_s=clock())              # only if the challenge has scans
    session.scanned(roots, at_s=clock())
    nonce = session.ask(at_s=clock())                 # which rows to open: nobody knew before
    verdict = session.judge(transcript, file, at_s=clock())

`check` judges the same transcript for a third party, who had no clock and no nonce of their own, but draws their own projections.

Proven by acceptance: docs/proof.md. A stranger's transcript is measured before it is read, held one opening at a time, and refused with a reason.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from harness import codec
from harness.errors import MisuseError
from harness.model import Challenge, Fault, ProvenWork, Transcript, Verdict
from harness.proof import bounds, bundle, challenge
from harness.proof.signing import HEX32
from harness.proof.task import Task, kept_fraction, operations
from harness.proof.transcript import Openings, is_signed
from harness.units import Quantity, engineering

if TYPE_CHECKING:
    from harness.proof.rows import Opened

__all__ = ["LINK_BYTES_PER_S", "Clocked", "Session", "check", "faults_of"]

LINK_BYTES_PER_S = (
    64e9  # PCIe 5.0 x16, one way: the fastest by which a host's memory can stand in for a GPU's, other than NVLink-C2C
)
_FAULTS_MOST = 8
_PIECE_BYTES = 1 << 20

State = Literal["issued", "committed", "scanning", "scanned", "asked", "judged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocked:
    """What a verifier's own clock said, in seconds; None is what it did not see."""

    wall_s: float
    scans_s: float | None = None
    fastest_link_s: float | None = None
    link_bytes_per_s: float = LINK_BYTES_PER_S


class Session:
    """One challenge, from issue to verdict. Times are the verifier's, in seconds of any clock that only goes forward."""

    def __init__(
        self,
        issued: Challenge,
        *,
        at_s: float,
        fastest_link_s: float | None = None,
        link_bytes_per_s: float = LINK_BYTES_PER_S,
    ) -> None:
        """Begin when the challenge is sent.

        Args:
            issued: the challenge.
            at_s: when it was sent.
            fastest_link_s: the shortest round trip to this prover ever seen.
            link_bytes_per_s: the fastest way from its host's memory to its device.
        """
        self.task = challenge.task(issued)
        self.challenge = issued
        self.state: State = "issued"
        self.root: str | None = None
        self.roots: tuple[str, ...] = ()
        self.key: str | None = None
        self.nonce: str | None = None
        self._issued_s, self._wall_s, self._scan_began_s = at_s, 0.0, 0.0
        self._scans_s: float | None = None
        self._link = (fastest_link_s, link_bytes_per_s)

    def committed(self, root: str, *, at_s: float) -> None:
        """Take the commitment; the time of the work ends here.

        Raises:
            MisuseError: it is not 64 hex digits, it comes out of turn, or the challenge has expired.
        """
        self._turn("committed", "issued")
        _require_digest("the commitment", root)
        self._alive(at_s)
        self.root, self._wall_s = root, at_s - self._issued_s
        self.state = "committed"

    def scan_key(self, *, at_s: float, key: str | None = None) -> str:
        """Return the key to send for the scans; their time begins here. `key` is for tests.

        Raises:
            MisuseError: out of turn, or the challenge has no scans.
        """
        self._turn("scan_key", "committed")
        if not self.task.scans:
            msg = "this challenge has no scans"
            raise MisuseError(msg)
        self.key, self._scan_began_s = key or secrets.token_hex(32), at_s
        self.state = "scanning"
        return self.key

    def scanned(self, roots: tuple[str, ...], *, at_s: float) -> None:
        """Take the roots of the scans; their time ends here.

        Raises:
            MisuseError: out of turn, or not as many digests as there are scans.
        """
        self._turn("scanned", "scanning")
        if len(roots) != self.task.scans:
            msg = f"{self.task.scans} scans were asked for, {len(roots)} roots came"
            raise MisuseError(msg)
        for root in roots:
            _require_digest("the root of a scan", root)
        self.roots, self._scans_s = tuple(roots), at_s - self._scan_began_s
        self.state = "scanned"

    def ask(self, *, at_s: float, nonce: str | None = None) -> str:
        """Return the nonce that chooses the openings, 64 hex digits; `nonce` is for a public random value that came after the commitment.

        Raises:
            MisuseError: out of turn, or the challenge has expired.
        """
        self._turn("ask", "scanned" if self.task.scans else "committed")
        self._alive(at_s)
        self.nonce = nonce or secrets.token_hex(32)
        _require_digest("the nonce", self.nonce)
        self.state = "asked"
        return self.nonce

    def judge(self, transcript: Transcript, openings: Openings, *, at_s: float, subject: str = "transcript") -> Verdict:
        """Judge the answer. Whatever comes, the challenge is used up.

        Raises:
            MisuseError: out of turn. An answer that is wrong is a verdict, never an exception.
        """
        self._turn("judge", "asked")
        self.state = "judged"
        clocked = Clocked(
            wall_s=self._wall_s,
            scans_s=self._scans_s,
            fastest_link_s=self._link[0],
            link_bytes_per_s=self._link[1],
        )
        faults = tuple(self._strangeness(transcript, at_s))
        return _verdict(transcript, subject, faults or faults_of(transcript, openings), clocked)

    def _strangeness(self, transcript: Transcript, at_s: float) -> Iterator[Fault]:
        """Say where a transcript is not about this session."""
        expected = {
            "challenge": self.challenge,
            "commitment": self.root,
            "scan_key": self.key,
            "scan_roots": self.roots,
            "asked": self.nonce,
        }
        for name, value in expected.items():
            if getattr(transcript, name) != value:
                yield Fault(path=f"$.{name}", what="is not the one of this session")
        if at_s - self._issued_s > challenge.lifetime_s(self.challenge):
            yield Fault(path="$.challenge.expires_at", what="the answer came too late")

    def _turn(self, what: str, state: State) -> None:
        if self.state != state:
            msg = f"{what} comes after {state!r}; this session is {self.state!r}"
            raise MisuseError(msg)

    def _alive(self, at_s: float) -> None:
        if not 0 <= at_s - self._issued_s <= challenge.lifetime_s(self.challenge):
            self.state = "judged"
            msg = f"the challenge was good for {challenge.lifetime_s(self.challenge):.0f} s, and {at_s - self._issued_s:.1f} s have passed"
            raise MisuseError(msg)


def _require_digest(what: str, text: str) -> None:
    if not HEX32.fullmatch(text):
        msg = f"{what} must be 64 lower-case hex digits, not {text[:80]!r}"
        raise MisuseError(msg)


def check(transcript: Transcript, openings: Openings, *, subject: str = "transcript") -> Verdict:
    """Judge a transcript for a third party: its own secrets, but neither its own nonce nor its own clock."""
    return _verdict(transcript, subject, faults_of(transcript, openings), None)


def faults_of(transcript: Transcript, openings: Openings, *, salt: bytes | None = None) -> tuple[Fault, ...]:
    """Return what is wrong with a transcript, at most eight things; nothing if it holds.

    Args:
        transcript: the record.
        openings: its bytes, a file that can be read twice. They must be fixed: nobody may change them once this is called.
        salt: secret random bits for the projections, drawn here if not given.
    """
    return tuple(islice(_faults(transcript, openings, salt or secrets.token_bytes(32)), _FAULTS_MOST))


def _faults(transcript: Transcript, openings: Openings, salt: bytes) -> Iterator[Fault]:
    try:
        task = challenge.task(transcript.challenge)
    except MisuseError as err:
        yield Fault(path="$.challenge", what=str(err))
        return
    wrong = [*_form_faults(transcript, task), *_signature_faults(transcript)]
    yield from wrong
    if wrong:
        return
    seed, roots = challenge.seed(transcript.challenge), (transcript.commitment, *transcript.scan_roots)
    opened = bundle.cells(task, seed, roots, transcript.asked)
    scanned = bundle.scan_cells(task, seed, roots, transcript.asked)
    sizes = tuple(bundle.sizes(task, opened, scanned))
    problem = _measured(openings, sum(sizes), transcript.openings_digest)
    if problem:
        yield problem
        return
    from harness.proof.rows import Rows  # NumPy is needed from here on

    # Everything the prover said is in this digest; the salt is what it could not know.
    secret = challenge.framed((salt, bytes.fromhex(codec.digest(transcript))))
    rows = Rows(transcript, task, seed, secret)
    openings.seek(0)
    cells: list[tuple[Opened, Any]] = [(rows.work_fault, cell) for cell in opened]
    cells += [(rows.scan_fault, cell) for cell in scanned]
    for at, ((judge, cell), size) in enumerate(zip(cells, sizes, strict=True)):
        what = judge(cell, openings.read(size))
        if what:
            yield Fault(path=f"openings[{at}]", what=what)


def _form_faults(transcript: Transcript, task: Task) -> Iterator[Fault]:
    for name in ("commitment", "openings_digest"):
        if not HEX32.fullmatch(getattr(transcript, name)):
            yield Fault(path=f"$.{name}", what="is not 64 lower-case hex digits")
    for name in ("scan_key", "asked"):
        value = getattr(transcript, name)
        if value is not None and not HEX32.fullmatch(value):
            yield Fault(path=f"$.{name}", what="is not 64 lower-case hex digits")
    if len(transcript.scan_roots) != task.scans or not all(map(HEX32.fullmatch, transcript.scan_roots)):
        yield Fault(path="$.scan_roots", what=f"must be {task.scans} digests of 64 lower-case hex digits")
    if transcript.elapsed_s < 0:
        yield Fault(path="$.elapsed_s", what="is negative")


def _signature_faults(transcript: Transcript) -> Iterator[Fault]:
    key, signature = transcript.public_key, transcript.signature
    if key is None:
        if signature is not None:
            yield Fault(path="$.signature", what="is there without a public key")
        if HEX32.fullmatch(transcript.challenge.provider):
            yield Fault(path="$.public_key", what="the challenge is for the owner of a key, and the answer is unsigned")
        return
    if not is_signed(transcript):
        yield Fault(path="$.signature", what=f"does not fit the transcript and the public key {key[:80]}")
    if HEX32.fullmatch(transcript.challenge.provider) and key != transcript.challenge.provider:
        yield Fault(path="$.public_key", what="is not the provider's, whom the challenge is for")


def _measured(openings: Openings, expected_bytes: int, digest: str) -> Fault | None:
    """Measure and hash the openings in pieces; never hold more than a piece of what a stranger sent."""
    openings.seek(0)
    state, total = hashlib.sha256(), 0
    while piece := openings.read(_PIECE_BYTES):
        total += len(piece)
        if total > expected_bytes:
            break
        state.update(piece)
    if total != expected_bytes:
        more = "more than " if total > expected_bytes else ""
        return Fault(path="openings", what=f"{more}{total} bytes, where the challenge asks for {expected_bytes}")
    if state.hexdigest() != digest:
        return Fault(path="openings", what="their digest is not the transcript's")
    return None


def _verdict(transcript: Transcript, subject: str, faults: tuple[Fault, ...], clocked: Clocked | None) -> Verdict:
    signed = transcript.public_key if transcript.signature and not faults else None
    work = None if faults else _work(transcript, clocked)
    return Verdict(
        subject=subject,
        digest=codec.digest(transcript),
        accepted=not faults,
        signed_by=signed,
        complete=True,
        faults=faults,
        proven=tuple(_proven(transcript, work, clocked)) if work else (),
        not_proven=tuple(_not_proven(transcript, clocked)),
        work=work,
    )


def _work(transcript: Transcript, clocked: Clocked | None) -> ProvenWork:
    task = challenge.task(transcript.challenge)
    grinding = 0 if clocked else bounds.GRINDING_BITS
    skipped = bounds.skipped_most_fraction(task.openings, grinding_bits=grinding)
    done = operations(task)
    least = done * (1 - skipped)
    low = high = resident = read = None
    if clocked and clocked.wall_s > 0:
        low = least / clocked.wall_s
        high = bounds.most_per_s(done, clocked.wall_s, clocked.fastest_link_s)
    if clocked and clocked.scans_s:
        resident, read = _memory(task, clocked, high or (done / clocked.wall_s if clocked.wall_s > 0 else math.inf))
    return ProvenWork(
        mode=task.mode,
        operations_count=float(done),
        least_operations_count=least,
        skipped_most_fraction=skipped,
        confidence_fraction=1 - bounds.MISS_FRACTION,
        wall_s=clocked.wall_s if clocked else None,
        least_operations_per_s=low,
        most_operations_per_s=high,
        resident_bytes=resident,
        least_read_bytes_per_s=read,
    )


def _memory(task: Task, clocked: Clocked, per_s: float) -> tuple[int, float]:
    """Return the least bytes that were resident, and the least that were read a second; `per_s` is how fast the device may work, in operations."""
    held = task.steps * task.n**2 * kept_fraction(task)
    read = task.scans * held / (clocked.scans_s or math.inf)
    share = bounds.resident_fraction(
        read,
        link_bytes_per_s=clocked.link_bytes_per_s,
        rebuilt_bytes_per_s=per_s / (2 * task.n) * kept_fraction(task),
        openings=task.openings,
        scan_openings=task.scan_openings,
    )
    return int(held * share), read * (1 - bounds.false_most_fraction(task.scan_openings))


def _proven(transcript: Transcript, work: ProvenWork, clocked: Clocked | None) -> Iterator[str]:
    task = challenge.task(transcript.challenge)
    sure = f"with {work.confidence_fraction:.0%} confidence"
    yield (
        f"{sure}, at least {_told(work.least_operations_count)} of {_told(work.operations_count)} operations ({task.mode}, "
        f"n = {task.n}, {task.steps} steps) were done for this challenge: {task.openings} rows were opened, and who left out more than "
        f"{work.skipped_most_fraction:.2%} is caught"
    )
    if transcript.signature:
        yield f"answered by the owner of key {transcript.public_key}"
    if work.least_operations_per_s and clocked:
        most = f", at most {_told(work.most_operations_per_s)}" if work.most_operations_per_s else ""
        yield f"{sure}, at least {_told(work.least_operations_per_s)} operations/s{most}, in {clocked.wall_s:.6g} s by the verifier's clock"
    if work.least_read_bytes_per_s:
        yield (
            f"{sure}, {(work.resident_bytes or 0) / 2**30:.6g} GiB lay in the device's memory and were read at {work.least_read_bytes_per_s / 1e9:.6g} GB/s, "
            f"if no link from elsewhere is faster than {clocked.link_bytes_per_s / 1e9 if clocked else 0:.6g} GB/s and the device worked as fast as it can"
        )


def _told(count: float) -> str:
    """Return a count with four digits and its prefix: 835.4 M."""
    shown = engineering(Quantity(count, ""))
    return f"{shown.value:.4g} {shown.unit}".strip()


def _not_proven(transcript: Transcript, clocked: Clocked | None) -> Iterator[str]:
    task = challenge.task(transcript.challenge) if _is_sound(transcript.challenge) else None
    yield f"that device {transcript.challenge.device_uuid[:80]} did it, and not another that its owner can reach as fast"
    if not transcript.signature:
        yield "who did it: the answer is unsigned"
    if clocked is None:
        yield "how fast: only the verifier who issued the challenge had a clock on it"
        why = "nobody's nonce" if transcript.asked is None else "a nonce that may have been known before"
        yield f"that the rows to open were not known beforehand ({why} chose them): the bound allows for 2^{bounds.GRINDING_BITS} tries"
        yield "that the challenge was issued by anybody, and was fresh"
    if task and task.mode != "int8":
        yield f"that {task.mode} units did it: only that the sums are as exact as theirs"
    if task and task.scans and clocked is None:
        yield "that the states lay in the device's memory: scans prove it to who holds the clock"


def _is_sound(issued: Challenge) -> bool:
    try:
        challenge.task(issued)
    except MisuseError:
        return False
    return True
