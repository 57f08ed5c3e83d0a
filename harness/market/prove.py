"""The prover's side of an epoch: claims its devices at a verifier, answers for all of them in one slot, and returns the verdicts.

    verdicts = prove("http://127.0.0.1:8440", [(cpu_device(), 1e9)], key, open_backend=opened)

One thread and one connection a device, and one more for its pings. Nothing is trusted that the verifier says, but its verdict is only that.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlsplit

from harness import codec
from harness.errors import FailureError, MisuseError
from harness.market.messages import (
    PONG,
    Admission,
    Asked,
    Claim,
    Commitment,
    DeviceClaim,
    Notice,
    Opened,
    Ping,
    Pong,
    Scans,
    Steps,
    Wait,
    pong_digest,
    sign_claim,
)
from harness.model import Challenge, Device, Verdict

if TYPE_CHECKING:
    from harness.device.backend import Backend
    from harness.proof.signing import Key

__all__ = ["Line", "calibrate", "notice", "opened", "prove"]

T = TypeVar("T")
Open = Callable[[Device], "Backend"]

_REPLY_MOST_BYTES = 4 << 20
_SAID_BYTES = 300
_TIMEOUT_S = 30.0  # above the verifier's longest pause
_VERDICT_S = 600.0
_OK, _EMPTY = 200, 204


class Line:
    """One connection to a verifier, opened again once where it broke while idle."""

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        """Prepare a connection; nothing is sent yet.

        Raises:
            MisuseError: the URL is none of HTTP.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            msg = f"{url!r} is not the URL of a verifier, such as http://127.0.0.1:8440"
            raise MisuseError(msg)
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = make(parts.hostname, parts.port, timeout=timeout_s)
        self._root = parts.path.rstrip("/")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def get(self, path: str, kind: type[T]) -> T:
        """Ask for a record.

        Raises:
            FailureError: the verifier cannot be reached, or refuses.
            ForgeryError: its reply is no such record.
        """
        return codec.decode(self._ask("GET", path, None, None), kind)

    def post(self, path: str, record: object, kind: type[T], *, timeout_s: float | None = None) -> T:
        """Send a record, or bytes as they are, and return the reply.

        Raises:
            FailureError, ForgeryError: as `get`.
        """
        return codec.decode(self.send(path, record, timeout_s=timeout_s), kind)

    def send(self, path: str, record: object, *, timeout_s: float | None = None) -> bytes:
        """Send as `post` does, and return the reply as it is; nothing for an empty one.

        Raises:
            FailureError: as `get`.
        """
        return self._ask("POST", path, record if isinstance(record, bytes) else codec.encode(record), timeout_s)

    def _ask(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> bytes:
        line = self._connection
        if timeout_s and line.sock:
            line.sock.settimeout(timeout_s)
        try:
            line.request(method, self._root + path, body=body)
            reply = line.getresponse()
            data = reply.read(_REPLY_MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as err:
            line.close()
            msg = f"the verifier at {line.host}:{line.port} does not answer: {type(err).__name__}: {err}"
            raise FailureError(msg) from err
        if reply.status not in {_OK, _EMPTY}:
            said = " ".join(data[:_SAID_BYTES].decode(errors="replace").split())
            msg = f"the verifier refuses {path.rsplit('/', 1)[-1]!r} (HTTP {reply.status}): {said}"
            raise FailureError(msg)
        if len(data) > _REPLY_MOST_BYTES:
            msg = f"the verifier's reply goes on past {_REPLY_MOST_BYTES} bytes"
            raise FailureError(msg)
        return data


def opened(device: Device) -> Backend:
    """Open a device for work."""
    from harness.device.cpu import CpuDevice
    from harness.device.cuda import CudaDevice

    return CpuDevice(device) if device.kind == "cpu" else CudaDevice(device)


def notice(url: str) -> Notice:
    """Ask a verifier for its next epoch.

    Raises:
        MisuseError: the URL is none of HTTP.
        FailureError: it cannot be reached, or refuses.
    """
    with closing(Line(url)) as line:
        return line.get("/epoch", Notice)


def calibrate(told: Notice, device: Device, open_backend: Open) -> float:
    """Do an epoch's work once, for nobody, and return operations a second by this machine's clock. It warms the device up, too."""
    from datetime import UTC, datetime

    from harness.proof import challenge, prover
    from harness.proof.task import operations

    issued = challenge.issue(
        provider="calibration", device_uuid=device.uuid, epoch=told.epoch, params=told.params, now=datetime.now(UTC)
    )
    backend = open_backend(device)
    best_s = float("inf")
    for _ in range(2):  # the first one compiles
        began_s = time.perf_counter()
        prover.commit(issued, backend)
        best_s = min(best_s, time.perf_counter() - began_s)
    return operations(challenge.task(issued)) / best_s


def prove(
    url: str,
    devices: Sequence[tuple[Device, float | None]],
    key: Key,
    *,
    open_backend: Open,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Verdict, ...]:
    """Answer for devices in a verifier's next epoch, all in one slot.

    Args:
        url: the verifier's.
        devices: all that this provider has, each with the operations a second that it is to be held to; None claims nothing.
        key: signs the claim and the answers.
        open_backend: opens a device in the thread that calls it.
        say: told what is going on, in a line.

    Raises:
        FailureError: the verifier cannot be reached, or refuses.
        ForgeryError: it answers with something else than the protocol's records.
    """
    with closing(Line(url)) as line:
        told = line.get("/epoch", Notice)
        if told.closes_in_s < 1 and told.opens_in_s < _TIMEOUT_S:
            time.sleep(told.opens_in_s + 0.1)
            told = line.get("/epoch", Notice)
        draft = Claim(
            schema="harness.claim/1",
            provider=key.public_hex,
            epoch=told.epoch,
            nonce_digest=told.nonce_digest,
            devices=tuple(DeviceClaim(uuid=device.uuid, operations_per_s=rate) for device, rate in devices),
            signature=None,
        )
        session = line.post("/claims", sign_claim(draft, key), Admission).session
        say(f"claimed {len(devices)} devices for epoch {told.epoch}, which opens in {told.opens_in_s:.1f} s")
        backends = {device.uuid: open_backend(device) for device, _ in devices}
        slot = _started(line, session, told, backends)
        say(f"epoch {told.epoch} is open")
    with ThreadPoolExecutor(len(devices)) as pool:
        places = [
            _Place(url=url, session=session, asked=one, key=key, backend=backends[one.device_uuid], told=told)
            for one in slot.challenges
        ]
        return tuple(pool.map(_answered, places))


def _started(line: Line, session: str, told: Notice, backends: Mapping[str, object]) -> Opened:
    """Wait for the opening; a verifier holds a reply back for a while only, so one that is far off is slept for."""
    time.sleep(max(told.opens_in_s - 5.0, 0.0))
    slot = line.post(f"/sessions/{session}/start", b"", Opened)
    asked = {one.device_uuid: one for one in slot.challenges}
    if asked.keys() != backends.keys() or any(one.params != told.params for one in asked.values()):
        msg = "the verifier asks for other devices, or for another work, than was announced"
        raise FailureError(msg)
    return slot


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What one thread needs to answer for one device."""

    url: str
    session: str
    asked: Challenge
    key: Key
    backend: Backend
    told: Notice


def _answered(place: _Place) -> Verdict:
    from harness.proof import prover

    path, uuid = f"/sessions/{place.session}", place.asked.device_uuid
    progress = _Progress()
    with closing(Line(place.url)) as line, _pinged(place, progress):
        held = prover.commit(place.asked, place.backend, watch=progress.at if place.told.pings else None)
        asked = line.post(f"{path}/commitments", Commitment(device_uuid=uuid, commitment=held.root), Asked)
        if asked.scan_key is not None:
            roots = held.scan(asked.scan_key)
            asked = line.post(f"{path}/scans", Scans(device_uuid=uuid, scan_roots=roots), Asked)
        if place.told.pings:
            line.send(f"{path}/steps", Steps(device_uuid=uuid, roots=tuple(progress.roots)))
        transcript, openings = held.transcript(asked.asked, place.key)
        file = codec.encode(transcript) + b"\n" + openings
        return line.post(f"{path}/transcripts/{quote(uuid, safe='')}", file, Verdict, timeout_s=_VERDICT_S)


class _Progress:
    """How far the work is, for the thread that is pinged."""

    def __init__(self) -> None:
        self.roots: list[str] = []
        self.over = threading.Event()

    def at(self, _: int, root: str) -> None:
        self.roots.append(root)


class _pinged:  # noqa: N801 - used as a function
    """Answers pings of one device in a thread of its own while the context is open."""

    def __init__(self, place: _Place, progress: _Progress) -> None:
        self._place, self._progress = place, progress
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
                    if nonce:
                        line.send(f"{path}/pongs", self._pong(uuid, nonce))
                except FailureError:
                    return  # what was not answered is the verifier's to judge

    def _pong(self, uuid: str, nonce: str) -> Pong:
        step = len(self._progress.roots)
        root = self._progress.roots[step - 1] if step else None
        digest = pong_digest(uuid, nonce, step, root)
        return Pong(
            device_uuid=uuid, nonce=nonce, step=step, root=root, signature=self._place.key.sign(digest, domain=PONG)
        )
