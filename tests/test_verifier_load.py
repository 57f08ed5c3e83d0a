"""A verifier under load: answers that wait for others are neither late nor missing, and what strangers send costs the clock nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from test_verifier_service import CPU, Clock, claimed, desk, key, told

from harness import codec
from harness.device.cpu import CpuDevice
from harness.errors import MisuseError
from harness.market.verifier import serve
from harness.market.verifier.desk import Desk
from harness.market.verifier.messages import Commitment, Judged
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
    read: bool = False

    async def stream(self) -> AsyncIterator[bytes]:
        await self.gate.wait()
        yield self.body
        self.read = True


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
        begun = scene.begin()
        await asyncio.sleep(0.2)
        assert all(one.read for one in scene.uploads)  # more than may be read at a time
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
