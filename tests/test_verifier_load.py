"""A verifier under load: answers that wait for others are neither late nor missing, and what strangers send costs the clock nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import pytest
from test_verifier_service import CPU, Clock, claimed, desk, key, told

from harness import codec
from harness.device.cpu import CpuDevice
from harness.errors import MisuseError
from harness.market.verifier import epochs, line, serve
from harness.market.verifier.desk import Desk
from harness.market.verifier.messages import Commitment, Judged, Results, Scans, Steps
from harness.model import Params
from harness.proof import prover

if TYPE_CHECKING:
    from starlette.requests import Request

SMALL: Params = {"mode": "int8", "n": 16, "steps": 2, "openings": 4, "scans": 0, "scan_openings": 0}
NEXT_TO_NOTHING = 1e-3  # operations/s


@dataclass
class Upload:
    """An answer on its way: its head has come, its body comes once the gate is open."""

    path_params: dict[str, str]
    body: bytes
    gate: asyncio.Event
    headers: dict[str, str] = field(default_factory=dict)

    async def stream(self) -> AsyncIterator[bytes]:
        await self.gate.wait()
        yield self.body


@dataclass
class Scene:
    """Devices that have committed, beside one that claimed next to nothing and never will."""

    at: Desk
    clock: Clock
    counter: serve._Counter
    uploads: list[Upload]
    gate: asyncio.Event

    def begin(self) -> list[asyncio.Task[object]]:
        return [asyncio.create_task(self.counter.transcripts(cast("Request", one))) for one in self.uploads]


def play(act: Callable[[Scene], Awaitable[None]], devices: int = 6) -> None:
    async def main() -> None:
        at, clock = desk(params=SMALL)
        claimed(at, key(), "troll", rate=NEXT_TO_NOTHING)
        owners = [key() for _ in range(devices)]
        sessions = [claimed(at, own, CPU.uuid, rate=None) for own in owners]
        clock.at_s += at.opens_in_s(sessions[0])
        gate, uploads = asyncio.Event(), []
        for own, session in zip(owners, sessions, strict=True):
            held = prover.commit(at.open(session).challenges[0], CpuDevice(CPU))
            said = Commitment(device_uuid=CPU.uuid, commitment=held.root)
            transcript, openings = held.transcript(at.commit(session, said, at_s=clock()).asked, own)
            where = {"session": session, "device": CPU.uuid}
            uploads.append(Upload(where, codec.encode(transcript) + b"\n" + openings, gate))
        counter = serve._Counter(at, clock, asyncio.Semaphore(serve._UPLOADS_MOST), asyncio.Semaphore(1))
        await act(Scene(at, clock, counter, uploads, gate))

    asyncio.run(main())


def missing(at: Desk) -> list[str]:
    return [verdict.subject for verdict in told(at, 1) if verdict.digest is None]


def test_answers_that_wait_for_their_turn_are_neither_late_nor_missing() -> None:
    async def act(scene: Scene) -> None:
        begun = scene.begin()
        await asyncio.sleep(0.01)
        scene.clock.at_s += 61  # good for 60
        assert missing(scene.at) == ["epoch 1, device troll"]
        scene.gate.set()
        found = cast("list[Judged]", await asyncio.gather(*begun))
        assert [(one.verdict.accepted, one.verdict.faults) for one in found] == [(True, ())] * len(found)
        assert missing(scene.at) == ["epoch 1, device troll"]

    play(act)


def test_a_verdict_waits_while_others_are_timed_and_keeps_nobody_from_handing_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "_POLL_S", 0.001)

    async def act(scene: Scene) -> None:
        scene.gate.set()
        begun, runs = scene.begin(), [scene.at.run_of(one.path_params["session"], CPU.uuid) for one in scene.uploads]
        async with asyncio.timeout(20):
            while not all(run.judging for run in runs):  # noqa: ASYNC110 - all are in: more than may be read at a time
                await asyncio.sleep(0.001)
        assert not any(one.done() for one in begun)
        with pytest.raises(MisuseError, match="after the commitment, and once"):  # nor does one wait twice
            await scene.counter.transcripts(cast("Request", scene.uploads[0]))
        assert scene.at.timing()
        scene.clock.at_s += serve._CALM_S
        assert len(await asyncio.gather(*begun)) > serve._UPLOADS_MOST
        scene.clock.at_s += 60 - serve._CALM_S
        assert not scene.at.timing()  # however little was claimed

    play(act)


def test_an_answer_that_begins_too_late_or_breaks_off_is_missing() -> None:
    async def act(scene: Scene) -> None:
        async def broken() -> AsyncIterator[bytes]:
            raise ConnectionError
            yield b""

        first, second = scene.uploads
        first.stream = broken  # type: ignore[method-assign]
        with pytest.raises(ConnectionError):
            await scene.counter.transcripts(cast("Request", first))
        scene.clock.at_s += 61
        late = asyncio.create_task(scene.counter.transcripts(cast("Request", second)))
        await asyncio.sleep(0.01)
        assert len(missing(scene.at)) == 3
        scene.gate.set()
        assert "came too late" in cast("Judged", await late).verdict.faults[0].what

    play(act, devices=2)


# --- strangers --------------------------------------------------------------------------------------------------------


def asked(at: Desk, path: str, body: bytes | None = None, method: str = "POST") -> tuple[int, bytes]:
    """Ask the server once, in this process, and return status and body; None is a body of which nobody may read a byte."""
    said: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        assert body is not None, "a byte was read"
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(serve.app(at)(scope, receive, send))
    return said[0]["status"], b"".join(message.get("body", b"") for message in said)


@pytest.mark.parametrize("place", ["start", "commitments", "scans", "pings", "pongs", "steps", "transcripts/x"])
def test_nothing_is_read_from_who_has_no_session(place: str) -> None:
    assert asked(desk()[0], f"/sessions/nobody/{place}")[0] == 404


def test_the_roots_of_the_steps_may_be_as_long_as_they_are_and_no_longer() -> None:
    at, clock = desk(params=SMALL)
    session = claimed(at, key(), "\1" * 128, rate=None)
    clock.at_s += at.opens_in_s(session)
    at.commit(session, Commitment(device_uuid="\1" * 128, commitment="ab" * 32), at_s=clock())
    whole = codec.encode(Steps(device_uuid="\1" * 128, roots=("ab" * 32,) * 2))
    assert asked(at, f"/sessions/{session}/steps", whole)[0] == 204
    assert asked(at, f"/sessions/{session}/steps", whole + b" " * 1024)[0] == 413


def test_what_is_long_is_decoded_and_encoded_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    at, clock = desk(params={**SMALL, "steps": 512})
    session = claimed(at, key(), "one", rate=None)
    clock.at_s += at.opens_in_s(session)
    at.commit(session, Commitment(device_uuid="one", commitment="ab" * 32), at_s=clock())
    where: list[tuple[type, bool]] = []
    encode, decode = codec.encode, codec.decode

    def encoding(record: object) -> bytes:
        where.append((type(record), threading.current_thread() is threading.main_thread()))
        return encode(record)

    def decoding(data: bytes, kind: type[Any]) -> Any:
        where.append((kind, threading.current_thread() is threading.main_thread()))
        return decode(data, kind)

    whole = encode(Steps(device_uuid="one", roots=("ab" * 32,) * 512))
    monkeypatch.setattr(codec, "encode", encoding)
    monkeypatch.setattr(codec, "decode", decoding)
    assert asked(at, f"/sessions/{session}/steps", whole)[0] == 204
    clock.at_s += 61
    assert [asked(at, "/epochs/1", method="GET")[0] for _ in range(3)] == [200] * 3
    assert {one for one in where if one[0] is Steps} == {(Steps, False)}
    assert [one for one in where if one[0] is Results] == [(Results, False)]  # once for all who ask


def test_what_was_told_of_an_epoch_changes_with_a_late_answer() -> None:
    async def act(scene: Scene) -> None:
        late, clock = scene.at, scene.clock
        clock.at_s += 61
        before = late.teller.encoded(late.opened(1))
        assert late.teller.encoded(late.opened(1)) is before
        scene.gate.set()
        await asyncio.gather(*scene.begin())
        assert late.teller.encoded(late.opened(1)) == codec.encode(late.results(1)) != before

    play(act, devices=1)


def test_a_full_epoch_fits_a_reply() -> None:
    """Of the longest names, with verdicts as long as they get, each claimed by thousands."""
    at, clock = desk(params={**SMALL, "scans": 2, "scan_openings": 4}, signer=key())
    name, owners = "\1" * 128, [key() for _ in range(12)]
    sessions = [claimed(at, own, name, rate=None) for own in owners]
    clock.at_s += at.opens_in_s(sessions[0])
    held = prover.commit(at.open(sessions[0]).challenges[0], CpuDevice(replace(CPU, uuid=name)))
    said = Commitment(device_uuid=name, commitment=held.root)
    roots = held.scan(at.commit(sessions[0], said, at_s=clock()).scan_key or "")
    clock.at_s += 0.1
    reply = at.scan(sessions[0], Scans(device_uuid=name, scan_roots=roots), at_s=clock())
    transcript, openings = held.transcript(reply.asked, owners[0])
    judged = at.judge(sessions[0], name, transcript, BytesIO(openings), at_s=clock())
    assert judged.verdict.accepted
    named = [doubt for doubt in judged.verdict.not_proven if doubt.startswith("whose device it is")]
    assert len(named) == 9
    assert named[-1] == "whose device it is: 3 more claim it, too"
    assert len(codec.encode(judged)) * epochs._OF_AN_EPOCH_MOST < line._REPLY_MOST_BYTES
