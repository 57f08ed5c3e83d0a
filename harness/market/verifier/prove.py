"""The prover's side of an epoch: claims its devices at a verifier, answers for all of them in one slot, and returns the verdicts.

One connection a device, and one more for its pings. A device works in a process of its own (`Apart`), which sees no other: that is how CUDA
knows it by its first number. What a verifier says is decoded as strictly as a stranger's file; its verdict is its own, and signed if it has a key.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from harness import codec
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.market.verifier.line import TIMEOUT_S, Line
from harness.market.verifier.messages import (
    PONG,
    Admission,
    Asked,
    Claim,
    Commitment,
    DeviceClaim,
    Judged,
    Notice,
    Opened,
    Ping,
    Pong,
    Scans,
    Steps,
    Wait,
    pong_digest,
    require_asked,
    require_notice,
    require_opened,
    require_session,
    require_verdict_of,
    sign_claim,
)
from harness.market.verifier.verdicts import keep
from harness.model import Challenge, Device
from harness.proof.signing import HEX32

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from harness.device.backend import Backend
    from harness.proof.signing import Key

__all__ = ["Apart", "Here", "Place", "Worker", "notice", "prove", "prover"]

_VERDICT_S = 600.0
_CLAIMED_FRACTION = 0.95  # of what was reached: one slow moment breaks no claim
_AFTER_S, _EARLY_S = 0.05, 5.0
_END_S = 5.0
_AGAIN_S = 0.1  # from a ping that failed to the next try


def notice(url: str) -> Notice:
    """Ask a verifier for its next epoch.

    Raises:
        MisuseError: the URL is none of HTTP.
        FailureError: it cannot be reached, or refuses.
        ForgeryError: its reply is no notice that could be acted on.
    """
    with closing(Line(url)) as line:
        return require_notice(line.get("/epoch", Notice))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What is needed to answer for one device."""

    url: str
    session: str
    asked: Challenge
    told: Notice
    verifier: str | None = None  # the key that must sign the verdict


class Worker(Protocol):
    """Answers for one device."""

    def answer(self, place: Place) -> Judged:
        """Do the work of a challenge, and return the verdict on it."""
        ...


class Here:
    """A device that works in this process."""

    def __init__(self, backend: Backend, key: Key) -> None:
        self._backend, self._key = backend, key

    def calibrate(self, told: Notice) -> float:
        """Do an epoch's work for nobody, and return operations a second by this machine's clock. It warms the device up, too."""
        from harness.proof import challenge, prover
        from harness.proof.task import operations

        uuid, now = self._backend.device.uuid, datetime.now(UTC)
        issued = challenge.issue(provider="me", device_uuid=uuid, epoch=told.epoch, params=told.params, now=now)
        best_s = float("inf")
        for _ in range(2):  # the first one compiles
            began_s = time.perf_counter()
            prover.commit(issued, self._backend)
            best_s = min(best_s, time.perf_counter() - began_s)
        return operations(challenge.task(issued)) / best_s

    def answer(self, place: Place) -> Judged:
        """Do the work of a challenge, and return the verdict on it.

        Raises:
            FailureError: the verifier cannot be reached, or refuses.
            ForgeryError: it answers with something else than the protocol's records, or a verdict is not the verifier's.
        """
        from harness.proof import prover

        path, uuid = f"/sessions/{place.session}", place.asked.device_uuid
        progress = _Progress()
        with closing(Line(place.url)) as line, _pinged(place, progress, self._key):
            held = prover.commit(place.asked, self._backend, watch=progress.at if place.told.pings else None)
            said = Commitment(device_uuid=uuid, commitment=held.root)
            asked = require_asked(line.post(f"{path}/commitments", said, Asked))
            if asked.scan_key is not None:
                roots = held.scan(asked.scan_key)
                scanned = Scans(device_uuid=uuid, scan_roots=roots)
                asked = require_asked(line.post(f"{path}/scans", scanned, Asked))
            if place.told.pings:
                line.send(f"{path}/steps", Steps(device_uuid=uuid, roots=tuple(progress.roots)))
            transcript, openings = held.transcript(asked.asked, self._key)
            file = codec.encode(transcript) + b"\n" + openings
            judged = line.post(f"{path}/transcripts/{quote(uuid, safe='')}", file, Judged, timeout_s=_VERDICT_S)
        if judged.challenge != place.asked or judged.verdict.digest != codec.digest(transcript):
            what = "the verdict is on another challenge or answer than this one"
            raise ForgeryError(what)
        require_verdict_of(judged, place.verifier)
        return judged


class Apart:
    """A device that works in a process of its own."""

    def __init__(self, device: Device, key_path: str) -> None:
        """Start the process; the device is opened there."""
        fresh = multiprocessing.get_context("spawn")
        self._line, theirs = fresh.Pipe()
        self._process = fresh.Process(target=_apart, args=(theirs, device, key_path), daemon=True)
        self._process.start()
        theirs.close()

    def calibrate(self, told: Notice) -> float:
        """Do as `Here.calibrate` does."""
        return float(self._call("calibrate", told))

    def answer(self, place: Place) -> Judged:
        """Do as `Here.answer` does."""
        judged: Judged = self._call("answer", place)
        return judged

    def _call(self, name: str, argument: object) -> Any:
        try:
            self._line.send((name, argument))
            done, result = self._line.recv()
        except (EOFError, OSError) as err:
            msg = f"the process of a device ended, with code {self._process.exitcode}"
            raise FailureError(msg) from err
        if done:
            return result
        what, path = result
        raise FailureError(what) if path is None else ForgeryError(what, path)

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _apart(line: Connection, device: Device, key_path: str) -> None:
    """Be the process of a device: one call at a time, until the line is closed."""
    from harness.proof.signing import load_key

    worker: Here | None = None
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            name, argument = line.recv()
            try:
                worker = worker or Here(_opened(device), load_key(key_path))
                line.send((True, getattr(worker, name)(argument)))
            except ForgeryError as err:
                line.send((False, (err.what, err.path)))
            except Exception as err:  # noqa: BLE001 - whatever it was, the other process is to say so
                line.send((False, (f"{type(err).__name__}: {err}", None)))


def _opened(device: Device) -> Backend:
    if device.kind == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = device.uuid
        from harness.device.cuda import CudaDevice

        return CudaDevice(device)
    from harness.device.cpu import CpuDevice

    return CpuDevice(device)


def prover(  # noqa: PLR0913 - it mirrors the command
    url: str,
    *,
    device: str = "all",
    key: str | None = None,
    claim: float | None = None,
    verifier: str | None = None,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Judged, ...]:
    """Claim this machine's devices in a verifier's next epoch, answer, and return the verdicts.

    Args:
        url: the verifier's.
        device: `cpu`, `cuda:N`, or `all`: every GPU, or else the CPU.
        key: file of the key to sign with; by default the one named by HARNESS_KEY; without one, made for this time.
        claim: operations a second that each device is held to; by default a little less than it reaches when tried.
        verifier: public key that the verdicts must be signed with.
        out: a new file to keep the verdicts in, for others to read with `harness verifier verdicts`: all that came, even where a device failed.
        say: told what is going on, in a line.

    Raises:
        MisuseError: there is no such device, `verifier` is no public key, the URL is none of HTTP, or `out` cannot be written.
        FailureError: the verifier cannot be reached, or refuses.
        ForgeryError: it answers with something else than the protocol's records, or a verdict is not the verifier's.
    """
    from harness.cluster import session
    from harness.proof.signing import keygen, load_key

    if verifier is not None and not HEX32.fullmatch(verifier):
        msg = f"verifier {verifier!r} is not a public key: 64 lower-case hex digits"
        raise MisuseError(msg)
    if out is not None and Path(out).exists():
        msg = f"{str(out)!r} exists and is not written over; choose another name"
        raise MisuseError(msg)
    told = notice(url)
    with ExitStack() as stack:
        path = key or os.environ.get("HARNESS_KEY")
        if not path:
            path = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "key.pem")
            keygen(path)
        signer = load_key(path)
        workers = [(one, stack.enter_context(closing(Apart(one, path)))) for one in _chosen(session.devices(), device)]
        # Tried even where the claim is given, so that nothing compiles while the clock runs; one after the other, as none is to disturb another.
        reached = [(one, worker, worker.calibrate(told)) for one, worker in workers]
        for one, _, rate in reached:
            say(f"{one.selector} reached {rate:.3g} operations/s")
        claims = [(one.uuid, claim or _CLAIMED_FRACTION * rate, worker) for one, worker, rate in reached]
        came: list[Judged] = []
        try:
            return prove(url, claims, signer, verifier=verifier, say=say, took=came.append)
        finally:
            if out is not None and came:
                keep(tuple(came), out)


def _chosen(found: Sequence[Device], selector: str) -> list[Device]:
    usable = [d for d in found if d.unusable_reason is None]
    gpus = [d for d in usable if d.kind == "cuda"]
    chosen = gpus or usable if selector == "all" else [d for d in usable if d.selector == selector]
    if not chosen:
        msg = f"no usable device {selector!r}; there are {', '.join(d.selector for d in usable)}"
        raise MisuseError(msg)
    return chosen


def prove(  # noqa: PLR0913 - what `prover` is told, and who answers
    url: str,
    claims: Sequence[tuple[str, float | None, Worker]],
    key: Key,
    *,
    verifier: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    took: Callable[[Judged], None] = lambda _: None,
) -> tuple[Judged, ...]:
    """Answer for devices in a verifier's next epoch, all in one slot.

    Args:
        url: the verifier's.
        claims: all devices that this provider has: uuid, the operations a second it is to be held to (None claims nothing), and who answers.
        key: signs the claim.
        verifier: public key that the verdicts must be signed with.
        say: told what is going on, in a line.
        took: told each verdict that came, once all devices are done, and before the error of one that failed is raised.

    Raises:
        MisuseError, FailureError, ForgeryError: as `prover`; the first one, where several devices failed.
    """
    with closing(Line(url)) as line:
        told = require_notice(line.get("/epoch", Notice))
        if not told.closes_in_s and told.opens_in_s < TIMEOUT_S:
            time.sleep(told.opens_in_s + _AFTER_S)
            told = require_notice(line.get("/epoch", Notice))
        draft = Claim(
            schema="harness.claim/1",
            provider=key.public_hex,
            epoch=told.epoch,
            nonce_digest=told.nonce_digest,
            devices=tuple(DeviceClaim(uuid=uuid, operations_per_s=rate) for uuid, rate, _ in claims),
            signature=None,
        )
        session = require_session(line.post("/claims", sign_claim(draft, key), Admission))
        say(f"claimed {len(claims)} devices for epoch {told.epoch}, which opens in {told.opens_in_s:.1f} s")
        slot = _started(line, session, told, {uuid for uuid, _, _ in claims})
    say(f"epoch {told.epoch} is open")
    workers = {uuid: worker for uuid, _, worker in claims}
    with ThreadPoolExecutor(len(claims)) as pool:
        done = [
            pool.submit(
                workers[one.device_uuid].answer,
                Place(url=url, session=session, asked=one, told=told, verifier=verifier),
            )
            for one in slot.challenges
        ]
        wait(done)
        for one in done:
            if one.exception() is None:
                took(one.result())
        return tuple(one.result() for one in done)


def _started(line: Line, session: str, told: Notice, uuids: set[str]) -> Opened:
    """Wait for the opening; a verifier holds a reply back for a while only, so one that is far off is slept for."""
    time.sleep(max(told.opens_in_s - _EARLY_S, 0.0))
    return require_opened(line.post(f"/sessions/{session}/start", b"", Opened), told, uuids)


class _Progress:
    """How far the work is, for the thread that is pinged."""

    def __init__(self) -> None:
        self.roots: list[str] = []
        self.over = threading.Event()

    def at(self, _: int, root: str) -> None:
        self.roots.append(root)


class _pinged:  # noqa: N801 - used as a function
    """Answers pings of one device in a thread of its own while the context is open."""

    def __init__(self, place: Place, progress: _Progress, key: Key) -> None:
        self._place, self._progress, self._key = place, progress, key
        self._thread = threading.Thread(target=self._answer, daemon=True) if place.told.pings else None

    def __enter__(self) -> None:
        if self._thread:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._progress.over.set()

    def _answer(self) -> None:
        path, uuid = f"/sessions/{self._place.session}", self._place.asked.device_uuid
        with closing(Line(self._place.url)) as line:
            while not self._progress.over.is_set():
                try:
                    data = line.send(f"{path}/pings", Wait(device_uuid=uuid))
                    nonce = codec.decode(data, Ping).nonce if data else ""
                    if nonce is None:
                        return
                    if HEX32.fullmatch(nonce):
                        line.send(f"{path}/pongs", self._pong(uuid, nonce))
                except (FailureError, ForgeryError):
                    self._progress.over.wait(_AGAIN_S)  # a ping that is not fetched is held against the device

    def _pong(self, uuid: str, nonce: str) -> Pong:
        step = len(self._progress.roots)
        root = self._progress.roots[step - 1] if step else None
        digest = pong_digest(uuid, nonce, step, root)
        return Pong(device_uuid=uuid, nonce=nonce, step=step, root=root, signature=self._key.sign(digest, domain=PONG))
