"""A verifier that holds the clock, over HTTP: two processes and the real work, and the desk alone with a clock of its own."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from harness.cli.slot import prover as commands
from harness.device.cpu import CpuDevice, cpu_device
from harness.errors import FailureError, MisuseError
from harness.market.verifier.desk import Desk, GoneError
from harness.market.verifier.epochs import Terms
from harness.market.verifier.line import Line
from harness.market.verifier.messages import (
    Admission,
    Claim,
    Commitment,
    DeviceClaim,
    Notice,
    Opened,
    Results,
    Scans,
    Steps,
    require_verdict_of,
    sign_claim,
)
from harness.market.verifier.prove import Apart, Here, _chosen, prove
from harness.model import Challenge, Device, Params, Verdict
from harness.proof import prover
from harness.proof.signing import Key, keygen
from harness.proof.task import operations, task_of

PARAMS: Params = {"mode": "int8", "n": 64, "steps": 8, "openings": 16, "scans": 0, "scan_openings": 0}
WORK = operations(task_of(PARAMS))
STEP_S = 0.1  # of a device that takes its time
CPU = cpu_device()


def key() -> Key:
    return Key(Ed25519PrivateKey.generate())


# --- two processes ------------------------------------------------------------------------------------------------


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Run `harness verifier serve` in a process of its own, and yield its URL."""
    small = ["--n", "64", "--steps", "8", "--openings", "16", "--slot", "1", "--close", "0.2", "--port", "0"]
    command = [sys.executable, "-m", "harness", "verifier", "serve", *small, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("listening at ").strip() or pytest.fail("it did not start")
        finally:
            process.terminate()
            assert process.wait(20) in {0, -15}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The verifier's key: its file, and its public half."""
    file = str(tmp_path_factory.mktemp("verifier") / "key.pem")
    return file, keygen(file)


@pytest.fixture(scope="module")
def url(signer: tuple[str, str]) -> Iterator[str]:
    options = ("--slack", "1.9", "--pings", "2", "--scans", "2", "--valid", "8", "--ping-most", "5")
    with serving(*options, "--key", signer[0]) as address:
        with closing(Line(address)) as line:
            Here(CpuDevice(CPU), key()).calibrate(
                line.get("/epoch", Notice)
            )  # compiles, so that no clock runs while it does
        yield address


class OneDevice(CpuDevice):
    """A device that takes a while for each step, and does one step at a time for whoever uses it."""

    def __init__(self, device: Device, turn: threading.Lock) -> None:
        super().__init__(device)
        self._turn = turn

    def load(self, source: Any) -> Any:
        launch = super().load(source)

        def slowly(*args: Any, **more: Any) -> None:
            with self._turn:
                time.sleep(STEP_S)
                launch(*args, **more)

        return slowly if source.name == "mix" else launch


def answer(
    url: str, own: Key, turn: threading.Lock, uuids: tuple[str, ...] = (CPU.uuid,), verifier: str | None = None
) -> tuple[Verdict, ...]:
    """Claim devices at what such a device does alone, and answer."""
    rate = WORK / (PARAMS["steps"] * STEP_S)  # type: ignore[operator]
    claims = [(uuid, rate, Here(OneDevice(replace(CPU, uuid=uuid), turn), own)) for uuid in uuids]
    return tuple(one.verdict for one in prove(url, claims, own, verifier=verifier))


def test_the_work_goes_round_and_is_bounded_by_the_verifiers_clock(url: str, signer: tuple[str, str]) -> None:
    own = key()
    (verdict,) = answer(url, own, threading.Lock(), verifier=signer[1])
    assert verdict.accepted, verdict.faults
    assert verdict.signed_by == own.public_hex
    work = verdict.work
    assert work is not None
    assert work.wall_s is not None
    assert work.least_operations_per_s is not None
    assert work.wall_s >= 8 * STEP_S  # nobody is faster than the device
    assert work.least_operations_per_s == pytest.approx(work.least_operations_count / work.wall_s)
    assert work.least_read_bytes_per_s is not None  # the scans were timed, too


def test_one_device_behind_two_names_cannot_meet_both_their_bounds_and_two_devices_can(url: str) -> None:
    shared, owner = threading.Lock(), ("first", "second")
    provers = [
        (threading.Lock(), (CPU.uuid,)),
        (threading.Lock(), (CPU.uuid,)),
        (shared, (CPU.uuid,)),
        (shared, (CPU.uuid,)),
        (threading.Lock(), owner),  # counted twice by one
    ]
    wait_for_a_fresh_slot(url)
    with ThreadPoolExecutor(len(provers)) as pool:
        found = [*pool.map(lambda one: answer(url, key(), *one), provers)]
    assert len({v.subject.partition(",")[0] for verdicts in found for v in verdicts}) == 1  # one epoch
    apart, pooled, twice = [*found[0], *found[1]], [*found[2], *found[3]], found[4]
    assert [v.accepted for v in apart] == [True, True], [v.faults for v in apart]
    assert all(any("claims it, too" in doubt for doubt in v.not_proven) for v in apart)
    for of_one in (pooled, twice):
        late = [v for v in of_one if not v.accepted]
        assert late
        assert all("what is claimed allows" in v.faults[0].what for v in late)
        assert all(v.work for v in late)  # what was done was done, if late


def wait_for_a_fresh_slot(url: str) -> None:
    """Wait until an epoch has just opened, so that what follows falls into one."""
    with closing(Line(url)) as line:
        time.sleep(line.get("/epoch", Notice).opens_in_s + 0.02)


class Hand:
    """A prover that is led by the hand, one message at a time."""

    def __init__(self, url: str) -> None:
        self.key, self.line = key(), Line(url)
        wait_for_a_fresh_slot(url)
        notice = self.line.get("/epoch", Notice)
        draft = Claim(
            schema="harness.claim/1",
            provider="",
            epoch=notice.epoch,
            nonce_digest=notice.nonce_digest,
            devices=tuple(
                DeviceClaim(uuid=u, operations_per_s=WORK / 1e-6) for u in ("one", "two")
            ),  # beyond all reach
            signature=None,
        )
        self.epoch, self.claim = notice.epoch, sign_claim(draft, self.key)
        self.path = "/sessions/" + self.line.post("/claims", self.claim, Admission).session
        self.opened = self.line.post(f"{self.path}/start", b"", Opened)
        assert hashlib.sha256(bytes.fromhex(self.opened.nonce)).hexdigest() == notice.nonce_digest


def test_a_prover_that_hangs_up_is_missing_from_the_results_and_what_is_replayed_is_refused(
    url: str, signer: tuple[str, str]
) -> None:
    hand = Hand(url)
    with closing(hand.line) as line:
        with pytest.raises(FailureError, match=r"takes no claims|of another notice"):
            line.send("/claims", hand.claim)
        assert line.post(f"{hand.path}/start", b"", Opened) == hand.opened  # asking again changes nothing
        root = Commitment(device_uuid="one", commitment="ab" * 32)
        first = line.send(f"{hand.path}/commitments", root)
        assert line.send(f"{hand.path}/commitments", root) == first  # the reply was lost, say
        with pytest.raises(FailureError, match="comes after 'issued'"):
            line.send(f"{hand.path}/commitments", replace(root, commitment="cd" * 32))
        with pytest.raises(FailureError, match="openings come after the commitment"):
            line.send(f"{hand.path}/transcripts/two", b"{}\n")
        with pytest.raises(FailureError, match="no such session"):
            line.send("/sessions/somebody/start", b"")
        line.get("/epoch", Notice)
        assert line._connection.sock is not None
        line._connection.sock.shutdown(socket.SHUT_RDWR)  # the network drops it; the next message finds another way
        assert line.send(f"{hand.path}/commitments", root) == first
    # Nothing more comes: the line is dead. All others go on, and the epoch says so.
    with closing(Line(url)) as other:
        deadline = time.monotonic() + 20
        while not (found := other.get(f"/epochs/{hand.epoch}", Results).verdicts):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert [(one.verdict.accepted, one.verdict.complete) for one in found] == [(False, False)]
    assert "no commitment came in time" in found[0].verdict.faults[0].what
    require_verdict_of(found[0], signer[1])  # nothing came, and that is signed, too


@pytest.mark.parametrize(
    ("path", "headers", "sent", "status"),
    [
        ("/claims", {"Content-Length": str(1 << 40)}, b"", 413),  # refused before a byte of it is read
        (
            "/claims",
            {"Transfer-Encoding": "chunked"},
            b"10000\r\n" + b"x" * 0x10000 + b"\r\n8000\r\n" + b"x" * 0x8000,
            413,
        ),
        ("/claims", {"Content-Length": "2"}, b"{}", 422),
        ("/claims", {"Content-Length": "9"}, b'{ "a": 1}', 422),
        ("/claims", {"Content-Length": "3"}, b"\xff\xfe\xfd", 422),
        ("/sessions/x/commitments", {"Content-Length": "3"}, b"\xff\xfe\xfd", 404),
        ("/nowhere", {"Content-Length": "0"}, b"", 404),
    ],
)
def test_what_a_stranger_sends_is_bounded_and_refused(
    url: str, path: str, headers: dict[str, str], sent: bytes, status: int
) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{head}\r\n".encode() + sent)
        reply = http.client.HTTPResponse(line)
        reply.begin()
        assert reply.status == status, reply.read()


def test_a_body_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from harness.market.verifier import serve

    monkeypatch.setattr(serve, "_MESSAGE_S", 0.05)
    said: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/claims", "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(serve.app(desk()[0])(scope, receive, send))
    assert said[0]["status"] == 408


def test_a_connection_that_asks_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from harness.market.verifier import serve

    monkeypatch.setattr(serve, "_HEAD_S", 0.05)
    monkeypatch.setattr(serve, "_IDLE_S", 0.1)
    config = uvicorn.Config(serve.app(desk()[0]), log_config=None, lifespan="off", ws="none")
    config.load()

    async def hung_up(said: bytes) -> bytes:
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()
        make = serve._hurried()
        server = await loop.create_server(lambda: make(config, state, {}), "127.0.0.1", 0)  # type: ignore[call-arg]
        async with server, asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(said)
            heard = await reader.read()
            writer.close()
            return heard

    assert asyncio.run(hung_up(b"")) == b""
    assert asyncio.run(hung_up(b"GET /epoch HTTP/1.1\r\nHost")) == b""
    answered = asyncio.run(hung_up(b"GET /epoch HTTP/1.1\r\nHost: x\r\n\r\nGET /epoch HT"))
    assert answered.startswith(b"HTTP/1.1 200")


def test_it_listens_to_this_machine_alone_unless_told(url: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)


@pytest.mark.slow  # two more processes, as on a node: one to look at the devices, and one that works, and compiles for it
def test_the_command_answers_as_a_prover(url: str) -> None:
    told = CliRunner().invoke(commands, ["run", url, "--device", "cpu", "--claim", "1e5", "--json"])
    assert told.exit_code == 0, told.output
    assert '"accepted":true' in told.stdout.splitlines()[-1]


def test_a_device_is_chosen_by_its_selector_and_all_are_the_gpus_where_there_are_any() -> None:
    gpu, broken = (
        replace(CPU, kind="cuda", selector=f"cuda:{i}", unusable_reason=why) for i, why in ((0, None), (1, "lost"))
    )
    assert _chosen([CPU, gpu, broken], "all") == [gpu]
    assert _chosen([CPU, broken], "all") == [CPU]
    assert _chosen([CPU, gpu], "cpu") == [CPU]
    with pytest.raises(MisuseError, match="no usable device 'cuda:1'"):
        _chosen([CPU, gpu, broken], "cuda:1")


def test_a_process_that_dies_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    with (
        closing(Apart(CPU, str(tmp_path / "no key"))) as apart,
        pytest.raises(FailureError, match="cannot read the key"),
    ):
        apart.calibrate(desk()[0].notice())


# --- the desk alone, with a clock of its own ----------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.at_s = 100.0

    def __call__(self) -> float:
        return self.at_s


def desk(*, signer: Key | None = None, **terms: Any) -> tuple[Desk, Clock]:
    clock = Clock()
    wanted: dict[str, Any] = {"params": PARAMS, "slot_s": 10.0, "valid_for_s": 60, "slack": 1.25} | terms
    return Desk(Terms(**wanted), clock=clock, key=signer), clock


@pytest.mark.parametrize(
    "terms",
    [
        {"valid_for_s": 0},
        {"valid_for_s": 100_000},
        {"valid_for_s": 10**15},
        {"slot_s": 100_000.0},
        {"params": {**PARAMS, "n": 17}},
    ],
)
def test_a_desk_that_could_issue_no_challenge_does_not_begin(terms: dict[str, Any]) -> None:
    with pytest.raises(MisuseError, match=r"valid for 1 to 86400 s, not|slot_s above|n must be a multiple of 16"):
        desk(**terms)


def claimed(at: Desk, own: Key, *uuids: str, rate: float | None = WORK / 1.0, **changes: Any) -> str:
    """Claim devices, by default at a second for the work, and return the session."""
    notice = at.notice()
    claim = Claim(
        schema="harness.claim/1",
        provider=own.public_hex,
        epoch=notice.epoch,
        nonce_digest=notice.nonce_digest,
        devices=tuple(DeviceClaim(uuid=uuid, operations_per_s=rate) for uuid in uuids),
        signature=None,
    )
    return at.claim(replace(sign_claim(claim, own), **changes)).session


def told(at: Desk, epoch: int) -> list[Verdict]:
    return [one.verdict for one in at.results(epoch).verdicts]


def opened(at: Desk, clock: Clock, session: str) -> Challenge:
    clock.at_s += at.opens_in_s(session)
    return at.open(session).challenges[0]


def finish(
    at: Desk, clock: Clock, session: str, own: Key, challenge: Challenge, after_s: float, **more: Any
) -> Verdict:
    """Do the work and say that it took so long."""
    roots: list[str] = []
    backend = CpuDevice(replace(CPU, uuid=challenge.device_uuid))
    held = prover.commit(challenge, backend, watch=lambda _, root: roots.append(root))
    clock.at_s += after_s
    asked = at.commit(session, Commitment(device_uuid=challenge.device_uuid, commitment=held.root), at_s=clock())
    if more.get("steps", True):
        at.take_steps(session, Steps(device_uuid=challenge.device_uuid, roots=tuple(more.get("roots", roots))))
    transcript, openings = held.transcript(asked.asked, own)
    assert at.openings_bytes(session, challenge.device_uuid) == len(openings)
    clock.at_s += 0.5
    return at.judge(session, challenge.device_uuid, transcript, BytesIO(openings), at_s=clock()).verdict


@pytest.mark.parametrize(("after_s", "accepted"), [(0.5, True), (1.25, True), (1.26, False), (59.0, False)])
def test_the_bound_is_the_claim_with_slack_from_the_opening_on(after_s: float, accepted: bool) -> None:
    at, clock = desk()
    own = key()
    session = claimed(at, own, CPU.uuid)
    verdict = finish(at, clock, session, own, opened(at, clock, session), after_s)
    assert verdict.accepted is accepted
    assert [f.path for f in verdict.faults] == ([] if accepted else ["$.commitment"])
    assert verdict.work is not None
    assert verdict.work.wall_s == pytest.approx(after_s)
    assert told(at, 1) == [verdict]


def test_who_claims_nothing_is_held_to_nothing_but_the_lifetime() -> None:
    at, clock = desk()
    own = key()
    session = claimed(at, own, CPU.uuid, rate=None)
    challenge = opened(at, clock, session)
    clock.at_s += 61
    with pytest.raises(MisuseError, match="good for 60 s"):
        at.commit(session, Commitment(device_uuid=CPU.uuid, commitment="ab" * 32), at_s=clock())
    assert challenge.epoch == 1
    (verdict,) = told(at, 1)
    assert "no commitment" in verdict.faults[0].what


def test_a_commitment_without_openings_is_refused_once_time_is_up() -> None:
    at, clock = desk()
    session = claimed(at, key(), CPU.uuid)
    opened(at, clock, session)
    at.commit(session, Commitment(device_uuid=CPU.uuid, commitment="ab" * 32), at_s=clock())
    assert at.results(1).verdicts == ()  # they may still come
    clock.at_s += 61
    (verdict,) = told(at, 1)
    assert (verdict.accepted, verdict.complete, verdict.work) == (False, False, None)
    assert "no openings after it" in verdict.faults[0].what


def test_all_clocks_of_an_epoch_run_from_its_opening_whenever_its_challenges_are_fetched() -> None:
    at, clock = desk()
    first, second = key(), key()
    one, two = claimed(at, first, "a", "b"), claimed(at, second, "c")
    with pytest.raises(MisuseError, match="opens in"):
        at.open(one)
    challenges = [opened(at, clock, one)]
    clock.at_s += 3.0  # the second comes late, and its clock has run
    challenges += at.open(two).challenges
    assert len({c.nonce for c in (*at.open(one).challenges, *challenges)}) == 3
    verdict = finish(at, clock, two, second, challenges[1], 0.1)
    assert verdict.work is not None
    assert verdict.work.wall_s == pytest.approx(3.1)
    assert not verdict.accepted
    assert at.timing() is False  # what a and b claim is long over


def test_an_answer_is_good_once_and_for_its_own_session() -> None:
    at, clock = desk()
    own = key()
    session = claimed(at, own, CPU.uuid)
    challenge = opened(at, clock, session)
    held = prover.commit(challenge, CpuDevice(CPU))
    asked = at.commit(session, Commitment(device_uuid=CPU.uuid, commitment=held.root), at_s=clock())
    transcript, openings = held.transcript(asked.asked, own)
    assert at.judge(session, CPU.uuid, transcript, BytesIO(openings), at_s=clock()).verdict.accepted
    with pytest.raises(MisuseError, match="once"):
        at.judge(session, CPU.uuid, transcript, BytesIO(openings), at_s=clock())
    later = claimed(at, own, CPU.uuid)
    opened(at, clock, later)
    at.commit(later, Commitment(device_uuid=CPU.uuid, commitment=held.root), at_s=clock())
    replayed = at.judge(later, CPU.uuid, transcript, BytesIO(openings), at_s=clock()).verdict
    assert not replayed.accepted
    assert "not the one of this session" in replayed.faults[0].what


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 7}, "of another notice"),
        ({"nonce_digest": "ab" * 32}, "of another notice"),
        ({"devices": (DeviceClaim(uuid="other", operations_per_s=None),)}, "not signed"),
        ({"provider": key().public_hex}, "not signed"),
        ({"signature": None}, "not signed"),
    ],
)
def test_a_claim_is_for_this_epoch_and_by_its_provider(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        claimed(desk()[0], key(), CPU.uuid, **changes)


def test_a_claim_names_each_device_once_and_a_provider_claims_once_and_in_time() -> None:
    at, clock = desk()
    own = key()
    for uuids, rate in ((("a", "a"), 1.0), ((), 1.0), (("a",) * 65, 1.0), (("x" * 129,), 1.0), (("a",), -1.0)):
        with pytest.raises(MisuseError, match=r"a claim names|characters|above 0"):
            claimed(at, own, *uuids, rate=rate)
    claimed(at, own, "a")
    with pytest.raises(MisuseError, match="has claimed in epoch 1"):
        claimed(at, own, "b")
    known, _ = desk(providers=frozenset({key().public_hex}))
    with pytest.raises(MisuseError, match="does not know"):
        claimed(known, own, "a")
    clock.at_s += at.notice().opens_in_s - 0.5
    with pytest.raises(MisuseError, match="takes no claims any more"):
        claimed(at, key(), "c")


def test_old_epochs_are_forgotten_with_their_sessions() -> None:
    at, clock = desk()
    session = claimed(at, key(), "a")
    for _ in range(9):
        clock.at_s += 10
        at.notice()
    with pytest.raises(GoneError, match="no such session"):
        at.open(session)
    with pytest.raises(GoneError, match="no epoch 1"):
        at.results(1)
    assert at.results(5).verdicts == ()


def test_scans_have_a_clock_of_their_own() -> None:
    at, clock = desk(params={**PARAMS, "scans": 2, "scan_openings": 4})
    own = key()
    session = claimed(at, own, CPU.uuid)
    challenge = opened(at, clock, session)
    held = prover.commit(challenge, CpuDevice(CPU))
    asked = at.commit(session, Commitment(device_uuid=CPU.uuid, commitment=held.root), at_s=clock())
    assert asked.asked is None
    with pytest.raises(MisuseError, match="openings come after"):
        at.openings_bytes(session, CPU.uuid)
    roots = held.scan(asked.scan_key or "")
    clock.at_s += 0.25
    after = at.scan(session, Scans(device_uuid=CPU.uuid, scan_roots=roots), at_s=clock())
    transcript, openings = held.transcript(after.asked, own)
    verdict = at.judge(session, CPU.uuid, transcript, BytesIO(openings), at_s=clock()).verdict
    assert verdict.accepted, verdict.faults
    assert verdict.work is not None
    assert verdict.work.least_read_bytes_per_s == pytest.approx(2 * 8 * 64**2 / 0.25 * 0.1 ** (1 / 4))


@pytest.mark.parametrize(
    "url", ["ftp://here", "http://", "http://[", "http://here:port", "here:8440", "http://here/?x=1"]
)
def test_a_url_that_is_no_verifiers_is_misuse(url: str) -> None:
    with pytest.raises(MisuseError, match="is not the URL of a verifier, such as"):
        Line(url)
