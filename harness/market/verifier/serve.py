"""The verifier as a server: `Desk` behind HTTP. The door to Starlette.

The clock is read when the last byte of a message has arrived; of a transcript, when its head has.

    GET  /epoch                          the next opening
    POST /claims                         a provider with all its devices
    POST /sessions/NAME/start            held until the opening; the challenges
    POST /sessions/NAME/commitments      stops the clock of one device
    POST /sessions/NAME/scans            stops the clock of its scans
    POST /sessions/NAME/pings            held until one is due
    POST /sessions/NAME/pongs
    POST /sessions/NAME/steps
    POST /sessions/NAME/transcripts/DEVICE    a file as `harness prove` writes it; the verdict
    GET  /epochs/NUMBER                  what came of it

Promised: no body is read beyond what its place may hold, or for longer than it may take; openings go to a file, so that memory is bounded;
nothing is judged while a device is being timed, and what is long is decoded and told beside the loop that takes commitments.
Not promised: secrecy. The name of a session is a password: over a network that others can listen to, put TLS in front.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from harness import codec
from harness.errors import ForgeryError, HarnessError, MisuseError
from harness.market.listen import hurried, listen
from harness.market.verifier.desk import Desk, GoneError, Terms
from harness.market.verifier.messages import Claim, Commitment, Pong, Scans, Steps, Wait
from harness.model import Params
from harness.proof import transcript as files
from harness.proof.projection import prepare
from harness.proof.signing import load_key

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["app", "verifier"]

T = TypeVar("T")
Handler = Callable[["Request"], Awaitable["Response"]]

_MESSAGE_MOST_BYTES = 64 << 10
_STEP_BYTES, _NAMES_BYTES = 68, 1024  # of a root in JSON, and of all that stands around the roots
_AT_ONCE_BYTES = 16 << 10  # a longer message is decoded beside the loop, so that it makes nobody's commitment late
_TRANSCRIPT_MOST_BYTES = 256 << 10
_MESSAGE_S = 10.0  # for the whole body of a message
_OPENINGS_S = 120.0
_HOLD_S = 20.0  # the longest that a reply is held back; then the prover asks again
_POLL_S = 0.02
_CALM_S = 30.0  # that a verdict waits for others to be done: who claims next to nothing could hold it up for long
_UPLOADS_MOST = 4  # at a time; what is beyond waits
_IN_MEMORY_BYTES = 64 << 10  # of each answer: as many as there are devices may wait for their verdict
_HEAD_S = 10.0  # from a connection to its first request
_IDLE_S = 150  # between two


class _TooLargeError(HarnessError):
    """A body is larger than its place may hold."""


class _SlowError(HarnessError):
    """A body did not arrive in time."""


def app(desk: Desk, *, clock: Callable[[], float] = time.monotonic) -> Starlette:
    """Return the ASGI application of a desk, which must have the same clock."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    uploads, judging = asyncio.Semaphore(_UPLOADS_MOST), asyncio.Semaphore(1)
    at_desk = _Counter(desk, clock, uploads, judging)
    one = "/sessions/{session}"
    routes = [
        Route("/epoch", _answering(at_desk.epoch)),
        Route("/claims", _answering(at_desk.claims), methods=["POST"]),
        Route(one + "/start", _answering(at_desk.start), methods=["POST"]),
        Route(one + "/commitments", _answering(at_desk.commitments), methods=["POST"]),
        Route(one + "/scans", _answering(at_desk.scans), methods=["POST"]),
        Route(one + "/pings", _answering(at_desk.pings), methods=["POST"]),
        Route(one + "/pongs", _answering(at_desk.pongs), methods=["POST"]),
        Route(one + "/steps", _answering(at_desk.steps), methods=["POST"]),
        Route(one + "/transcripts/{device:path}", _answering(at_desk.transcripts), methods=["POST"]),
        Route("/epochs/{number:int}", _answering(at_desk.results)),
    ]
    return Starlette(routes=routes)


def verifier(  # noqa: PLR0913 - it mirrors the command
    *,
    host: str = "127.0.0.1",
    port: int = 8440,
    mode: str = "int8",
    n: int = 16_384,
    steps: int = 256,
    openings: int = 128,
    scans: int = 0,
    slot_s: float = 300.0,
    closes_s: float = 2.0,
    valid_for_s: int = 120,
    slack: float = 1.25,
    pings: int = 0,
    ping_most_s: float = 0.5,
    providers: Sequence[str] = (),
    key: str | None = None,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM.

    Args:
        host: the address to listen at; from 127.0.0.1 nobody else can reach it.
        port: 0 takes a free one.
        mode: int8, float16, bfloat16, float32 or float64.
        n: matrices are n x n.
        steps: products in a chain; as many states stay in memory.
        openings: rows that are looked at.
        scans: times that all states are read again.
        slot_s: from opening to opening.
        closes_s: before an opening when claims end.
        valid_for_s: after an opening when answers end.
        slack: by how much longer than claimed a device may take.
        pings: to each device, during its work.
        ping_most_s: a ping may be fetched so late, and may take so long there and back.
        providers: public keys that may claim; none means anybody.
        key: file of the key to sign verdicts with; without one they are nobody's word.
        started: told the URL once somebody may connect.

    Raises:
        MisuseError: a number is out of range, or the key cannot be read.
        FailureError: the extra `serve` is not installed, or the address cannot be had.
    """
    params: Params = {
        "mode": mode,
        "n": n,
        "steps": steps,
        "openings": openings,
        "scans": scans,
        "scan_openings": openings if scans else 0,
    }
    terms = Terms(
        params=params,
        slot_s=slot_s,
        closes_s=closes_s,
        valid_for_s=valid_for_s,
        slack=slack,
        pings=pings,
        ping_most_s=ping_most_s,
        providers=frozenset(providers),
    )
    signer = load_key(key) if key else None
    desk = Desk(terms, clock=time.monotonic, key=signer)
    prepare(mode, n)  # so that nothing compiles beside a device that is being timed
    _serve(desk, host, port, started)


def _serve(desk: Desk, host: str, port: int, started: Callable[[str], None]) -> None:
    # Longer between requests than a work takes: who commits should not have to connect first.
    listen(lambda _: app(desk), host, port, started, head_s=_HEAD_S, idle_s=_IDLE_S)


def _hurried() -> type[asyncio.Protocol]:
    """Return the protocol of connections, with its limits."""
    return hurried(_HEAD_S, _IDLE_S)


class _Counter:
    """Hands messages over to the desk, and its replies back."""

    def __init__(
        self, desk: Desk, clock: Callable[[], float], uploads: asyncio.Semaphore, judging: asyncio.Semaphore
    ) -> None:
        self._desk, self._clock, self._uploads, self._judging = desk, clock, uploads, judging
        self._telling = asyncio.Lock()

    def _session(self, request: Request) -> str:
        """Return the name of a session that there is, before a byte of what was sent to it is read."""
        session: str = request.path_params["session"]
        self._desk.require(session)
        return session

    async def epoch(self, _: Request) -> object:
        return self._desk.notice()

    async def claims(self, request: Request) -> object:
        return self._desk.claim(await _message(request, Claim))

    async def start(self, request: Request) -> object:
        session = self._session(request)
        wait_s = min(self._desk.opens_in_s(session), _HOLD_S)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        while 0 < self._desk.opens_in_s(session) < _POLL_S:  # noqa: ASYNC110 - a timer may fire a moment early
            await asyncio.sleep(0)
        return self._desk.open(session)

    async def commitments(self, request: Request) -> object:
        session = self._session(request)
        said, at_s = await self._timed(request, Commitment)
        return self._desk.commit(session, said, at_s=at_s)

    async def scans(self, request: Request) -> object:
        session = self._session(request)
        said, at_s = await self._timed(request, Scans)
        return self._desk.scan(session, said, at_s=at_s)

    async def pings(self, request: Request) -> object:
        session = self._session(request)
        device = (await _message(request, Wait)).device_uuid
        until_s = self._clock() + _HOLD_S
        while (due_s := self._desk.next_ping_s(session, device)) is not None and due_s > 0:
            if self._clock() > until_s:
                return None
            await asyncio.sleep(min(due_s, _POLL_S))
        return self._desk.ping(session, device)

    async def pongs(self, request: Request) -> object:
        session = self._session(request)
        said, at_s = await self._timed(request, Pong)
        self._desk.pong(session, said, at_s=at_s)
        return None

    async def steps(self, request: Request) -> object:
        session = self._session(request)
        said = await _message(request, Steps, _NAMES_BYTES + _STEP_BYTES * self._desk.steps)
        self._desk.take_steps(session, said)
        return None

    async def transcripts(self, request: Request) -> object:
        session, device = self._session(request), request.path_params["device"]
        began_s = self._clock()  # by which it is late or not: what it then waits for is our doing
        most = self._desk.openings_bytes(session, device) + _TRANSCRIPT_MOST_BYTES
        with (
            self._desk.arriving(session, device, at_s=began_s),
            tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file,
        ):
            async with self._uploads:
                async for piece in _body(request, most, _OPENINGS_S):
                    file.write(piece)
            file.seek(0)
            said, openings = await asyncio.to_thread(files.open_file, file)
            judge = self._desk.answered(session, device, said, openings, at_s=began_s)
            until_s = self._clock() + _CALM_S
            while self._desk.timing() and self._clock() < until_s:  # noqa: ASYNC110 - time ends it
                await asyncio.sleep(_POLL_S)
            async with self._judging:
                return await asyncio.to_thread(judge)

    async def _timed(self, request: Request, kind: type[T]) -> tuple[T, float]:
        """Return a message, and when its last byte had come."""
        data = await _whole(request, _MESSAGE_MOST_BYTES)
        at_s = self._clock()
        return await _decoded(data, kind), at_s

    async def results(self, request: Request) -> object:
        epoch = self._desk.opened(request.path_params["number"])
        async with self._telling:  # one at a time, and beside the loop: signing and encoding thousands takes seconds
            return await asyncio.to_thread(self._desk.teller.encoded, epoch)


def _answering(ask: Callable[[Request], Awaitable[object]]) -> Handler:
    """Make a handler of what returns a record, or one that was encoded, or nothing, or raises."""

    async def handle(request: Request) -> Response:
        from starlette.requests import ClientDisconnect
        from starlette.responses import PlainTextResponse, Response

        try:
            record = await ask(request)
        except HarnessError as err:
            return PlainTextResponse(f"{err}\n", status_code=_status(err), headers={"Connection": "close"})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        if record is None:
            return Response(status_code=204)
        data = record if isinstance(record, bytes) else codec.encode(record)
        return Response(data, media_type="application/json")

    return handle


def _status(err: HarnessError) -> int:
    statuses = ((GoneError, 404), (_TooLargeError, 413), (_SlowError, 408), (ForgeryError, 422), (MisuseError, 409))
    return next((status for kind, status in statuses if isinstance(err, kind)), 500)


async def _message(request: Request, kind: type[T], most_bytes: int = _MESSAGE_MOST_BYTES) -> T:
    return await _decoded(await _whole(request, most_bytes), kind)


async def _decoded(data: bytes, kind: type[T]) -> T:
    if len(data) <= _AT_ONCE_BYTES:
        return codec.decode(data, kind)
    return await asyncio.to_thread(codec.decode, data, kind)


async def _whole(request: Request, most_bytes: int) -> bytes:
    return b"".join([piece async for piece in _body(request, most_bytes, _MESSAGE_S)])


async def _body(request: Request, most_bytes: int, most_s: float) -> AsyncIterator[bytes]:
    """Yield a body as it comes, and stop reading at its limit of size or time: what it says of its size is believed only if it is too much."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > most_bytes:
        msg = f"{told[:20]} bytes are more than the {most_bytes} that may come here"
        raise _TooLargeError(msg)
    got, pieces, until_s = 0, request.stream(), time.monotonic() + most_s
    while True:
        try:
            async with asyncio.timeout(max(until_s - time.monotonic(), 0)):
                piece = await anext(pieces, b"")
        except TimeoutError as err:
            msg = f"the body took more than {most_s:.0f} s"
            raise _SlowError(msg) from err
        if not piece:
            return
        got += len(piece)
        if got > most_bytes:
            msg = f"more than the {most_bytes} bytes that may come here"
            raise _TooLargeError(msg)
        yield piece
