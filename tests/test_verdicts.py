"""A verdict is its verifier's word: signed over everything in it, held to what was sent, kept and shown to others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_verifier_service import CPU, PARAMS, Clock, claimed, desk, key, opened

from harness import codec
from harness.cli import cli
from harness.device.cpu import CpuDevice
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.market.verifier.desk import Desk
from harness.market.verifier.line import Line
from harness.market.verifier.messages import (
    CLAIM,
    JUDGED,
    PONG,
    Admission,
    Asked,
    Commitment,
    Judged,
    Notice,
    Opened,
    Ping,
    Pong,
    require_verdict_of,
    sign_verdict,
)
from harness.market.verifier.prove import Apart, Here, Place, _apart, _pinged, _Progress, notice, prove
from harness.market.verifier.prove import prover as answer
from harness.market.verifier.verdicts import keep, verdicts
from harness.model import Challenge, Transcript
from harness.proof import prover
from harness.proof.signing import REPORT, Key, keygen
from harness.proof.transcript import DOMAIN as TRANSCRIPT
from harness.proof.transcript import open_file


def answered(at: Desk, clock: Clock, own: Key) -> Judged:
    session = claimed(at, own, CPU.uuid)
    held = prover.commit(opened(at, clock, session), CpuDevice(CPU))
    asked = at.commit(session, Commitment(device_uuid=CPU.uuid, commitment=held.root), at_s=clock())
    transcript, openings = held.transcript(asked.asked, own)
    return at.judge(session, CPU.uuid, transcript, BytesIO(openings), at_s=clock())


SIGNER, OTHER = key(), key()


@pytest.fixture(scope="module")
def judged() -> Judged:
    return answered(*desk(signer=SIGNER), key())


def test_a_verdict_is_its_verifiers_and_nobody_changed_it(judged: Judged) -> None:
    assert judged.verdict.accepted
    require_verdict_of(judged, SIGNER.public_hex)
    require_verdict_of(judged, None)
    refused = replace(judged.verdict, accepted=False)
    other: dict[str, Any] = {
        "challenge": replace(judged.challenge, provider=OTHER.public_hex),
        "verdict": refused,
        "judged_at": "2026-11-25T12:00:00Z",
        "verifier": OTHER.public_hex,
        "signature": "0" * 128,
    }
    assert {*other, "schema"} == {one.name for one in fields(Judged)}
    for name, value in other.items():
        for verifier in (None, SIGNER.public_hex):
            with pytest.raises(ForgeryError, match=r"does not fit the verdict|not by"):
                require_verdict_of(replace(judged, **{name: value}), verifier)
    with pytest.raises(ForgeryError, match="does not fit"):
        require_verdict_of(replace(judged, signature=None), None)
    with pytest.raises(ForgeryError, match="given by nobody, not by"):
        require_verdict_of(replace(judged, verifier=None, signature=None), SIGNER.public_hex)


def test_a_signature_for_another_purpose_signs_no_verdict(judged: Judged) -> None:
    digest = codec.digest(replace(judged, signature=None))
    with pytest.raises(ForgeryError, match="does not fit"):
        require_verdict_of(replace(judged, signature=SIGNER.sign(digest)), SIGNER.public_hex)


def test_no_kind_of_document_can_be_signed_as_another() -> None:
    domains = (REPORT, TRANSCRIPT, CLAIM, PONG, JUDGED)
    assert all(one.endswith(b"\0") and one.count(b"\0") == 1 and len(one) > 1 for one in domains)
    assert len({*domains}) == len(domains)


def test_a_late_answer_takes_the_place_of_none() -> None:
    at, clock = desk(signer=SIGNER)
    own = key()
    session = claimed(at, own, CPU.uuid)
    asked = opened(at, clock, session)
    clock.at_s += 2  # a second was claimed
    (missing,) = at.results(1).verdicts
    assert missing.verdict.work is None
    held = prover.commit(asked, CpuDevice(CPU))
    reply = at.commit(session, Commitment(device_uuid=CPU.uuid, commitment=held.root), at_s=clock())
    transcript, openings = held.transcript(reply.asked, own)
    late = at.judge(session, CPU.uuid, transcript, BytesIO(openings), at_s=clock())
    assert late.verdict.work is not None
    assert at.results(1).verdicts == (late,)
    require_verdict_of(late, SIGNER.public_hex)


def over(monkeypatch: pytest.MonkeyPatch, lie: Callable[[Any], Any] = lambda said: said) -> None:
    """Let provers talk to a desk in this process, which opens its epoch at once; `lie` is what becomes of all that it says."""
    at, clock = desk()

    def post(_: Line, path: str, record: Any, kind: type[Any]) -> Any:
        if path == "/claims":
            return lie(at.claim(record))
        if kind is Asked:
            return lie(at.commit(path.split("/")[2], record, at_s=clock()))
        clock.at_s += 10
        return lie(at.open(path.split("/")[2]))

    monkeypatch.setattr(Line, "get", lambda *_: lie(at.notice()))
    monkeypatch.setattr(Line, "post", post)
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_every_prover_is_told_whose_verdict_to_take(monkeypatch: pytest.MonkeyPatch, judged: Judged) -> None:
    told: list[Place] = []

    class Told:
        def answer(self, place: Place) -> Judged:
            told.append(place)
            return judged

    over(monkeypatch)
    assert prove("http://127.0.0.1:1", [(CPU.uuid, 1.0, Told())], key(), verifier="ab" * 32) == (judged,)
    assert [place.verifier for place in told] == ["ab" * 32]


def test_what_came_is_kept_where_one_device_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, judged: Judged
) -> None:
    class Device:
        def __init__(self, device: Any, _: str) -> None:
            self.uuid = device.uuid

        def calibrate(self, _: Any) -> float:
            return 1.0

        def close(self) -> None:
            pass

        def answer(self, _: Place) -> Judged:
            if self.uuid == "b":
                what = "is another's"
                raise ForgeryError(what, "$.verifier")
            if self.uuid == "c":
                what = "the verifier is gone"
                raise FailureError(what)
            return judged

    over(monkeypatch)
    cards = [replace(CPU, uuid=uuid, kind="cuda") for uuid in "abcd"]
    monkeypatch.setattr("harness.market.verifier.prove.Apart", Device)
    monkeypatch.setattr("harness.cluster.session.devices", lambda: cards)
    with pytest.raises(ForgeryError, match="is another's"):  # the first one
        answer("http://127.0.0.1:1", out=tmp_path / "kept")
    assert verdicts(tmp_path / "kept") == (judged, judged)


def test_a_process_says_what_kind_of_error_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What goes through the pipe, with the other end in this process."""
    keygen(tmp_path / "key")
    heard: list[Any] = []

    class Pipe:
        asked = iter([("answer", None)] * 2)

        def recv(self) -> Any:
            try:
                return next(self.asked)
            except StopIteration as err:
                raise EOFError from err

        def send(self, what: Any) -> None:
            heard.append(what)

    errors: Iterator[Exception] = iter(
        [ForgeryError("no verdict of its verifier", "$.signature"), FailureError("gone")]
    )

    def fail(*_: Any) -> None:
        raise next(errors)

    monkeypatch.setattr(Here, "answer", fail)
    _apart(Pipe(), CPU, str(tmp_path / "key"))  # type: ignore[arg-type]
    apart = Apart.__new__(Apart)
    apart._line = type("Line", (), {"send": lambda *_: None, "recv": lambda _: heard.pop(0)})()
    with pytest.raises(ForgeryError) as forged:
        apart.answer(None)  # type: ignore[arg-type]
    assert (forged.value.path, forged.value.what, forged.value.exit_code) == (
        "$.signature",
        "no verdict of its verifier",
        4,
    )
    with pytest.raises(FailureError, match="FailureError: gone"):
        apart.answer(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes", "path"),
    [
        (Notice, {"opens_in_s": -3.0}, "$.opens_in_s"),
        (Notice, {"opens_in_s": 1e300}, "$.opens_in_s"),
        (Notice, {"closes_in_s": -1.0}, "$.closes_in_s"),
        (Notice, {"params": {"mode": "int8"}}, "$.params"),
        (Admission, {"session": "a\r\nb"}, "$.session"),
        (Opened, {"challenges": ()}, "$.challenges"),
        (Challenge, {"params": {**PARAMS, "n": 128}}, "$.challenges"),
        (Challenge, {"nonce": "zz"}, "$.challenges[0]"),
        (Challenge, {"expires_at": "tomorrow"}, "$.challenges[0]"),
        (Asked, {"scan_key": "zz"}, "$.scan_key"),
        (Asked, {"asked": "AB" * 32}, "$.asked"),
    ],
)
def test_what_a_verifier_says_is_checked_before_it_is_acted_on(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], changes: dict[str, Any], path: str
) -> None:
    def lie(said: Any) -> Any:
        if isinstance(said, Opened) and kind is Challenge:
            return replace(said, challenges=tuple(replace(one, **changes) for one in said.challenges))
        return replace(said, **changes) if isinstance(said, kind) else said

    over(monkeypatch, lie)
    with pytest.raises(ForgeryError) as refused:
        prove("http://127.0.0.1:1", [(CPU.uuid, 1.0, Here(CpuDevice(CPU), key()))], key())
    assert refused.value.path == path
    if kind is Notice:
        with pytest.raises(ForgeryError):
            notice("http://127.0.0.1:1")


def test_a_ping_that_is_no_number_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not answered, and the thread that answers goes on."""
    at, clock = desk(pings=1)
    own = key()
    asked = opened(at, clock, claimed(at, own, CPU.uuid))
    said = iter([codec.encode(Ping(nonce="zz")), b"{}", codec.encode(Ping(nonce="ab" * 32)), b""])
    progress, pongs = _Progress(), []

    def send(_: Line, path: str, record: Any) -> bytes:
        if isinstance(record, Pong):
            pongs.append(record.nonce)
            progress.over.set()
        return next(said)

    monkeypatch.setattr(Line, "send", send)
    monkeypatch.setattr("harness.market.verifier.prove._AGAIN_S", 0.0)
    _pinged(Place(url="http://127.0.0.1:1", session="s", asked=asked, told=at.notice()), progress, own)._answer()
    assert pongs == ["ab" * 32]


def test_every_verdict_of_an_epoch_is_signed_even_that_nothing_came() -> None:
    at, clock = desk(signer=SIGNER)
    came = answered(at, clock, key())
    assert at.results(1).verdicts == (came,)
    clock.at_s += 1
    session = claimed(at, key(), CPU.uuid)
    opened(at, clock, session)
    clock.at_s += 61
    (missing,) = at.results(2).verdicts
    require_verdict_of(missing, SIGNER.public_hex)
    assert not missing.verdict.accepted
    assert (missing.challenge.epoch, missing.challenge.device_uuid) == (2, CPU.uuid)
    assert at.results(2).verdicts[0] is missing  # signed once, whoever asks how often


def test_without_a_key_a_verdict_is_nobodys() -> None:
    judged = answered(*desk(), key())
    assert (judged.verifier, judged.signature) == (None, None)
    require_verdict_of(judged, None)
    with pytest.raises(ForgeryError, match="given by nobody"):
        require_verdict_of(judged, SIGNER.public_hex)


def test_a_prover_takes_no_verdict_on_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that answers with the good verdict of another challenge, of another answer, or signed by another."""
    at, clock = desk(signer=SIGNER)
    own = key()
    session = claimed(at, own, CPU.uuid)
    asked = opened(at, clock, session)
    lie: dict[str, Any] = {}

    def post(_: Line, path: str, record: Any, kind: type[Any], *, timeout_s: float | None = None) -> Any:
        if kind is Asked:
            return Asked(asked="ef" * 32)
        sent, _openings = open_file(BytesIO(record))
        return _given(sent, asked, **lie)

    monkeypatch.setattr(Line, "post", post)
    place = Place(url="http://127.0.0.1:1", session=session, asked=asked, told=at.notice(), verifier=SIGNER.public_hex)
    worker = Here(CpuDevice(CPU), own)
    assert worker.answer(place).verdict.accepted
    for more, why in (
        ({"challenge": replace(asked, epoch=9)}, "another challenge"),
        ({"digest": "ab" * 32}, "another challenge or answer"),
        ({"by": OTHER}, "not by"),
    ):
        lie.clear()
        lie.update(more)
        with pytest.raises(ForgeryError, match=why):
            worker.answer(place)


def _given(
    sent: Transcript, asked: Challenge, *, by: Key = SIGNER, digest: str | None = None, **changes: Any
) -> Judged:
    from harness.proof import verifier

    verdict = verifier.check(sent, BytesIO(b""))
    draft = Judged(
        schema="harness.judged/1",
        challenge=asked,
        verdict=replace(verdict, accepted=True, faults=(), digest=digest or codec.digest(sent)),
        judged_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verifier=None,
        signature=None,
    )
    return sign_verdict(replace(draft, **changes), by)


def test_verdicts_are_kept_and_checked_by_others(judged: Judged, tmp_path: Path) -> None:
    file = tmp_path / "verdicts"
    keep((judged,), file)
    with pytest.raises(MisuseError, match="File exists"):
        keep((judged,), file)
    assert verdicts(file, verifier=SIGNER.public_hex) == (judged,)
    run = CliRunner().invoke
    told = run(cli, ["verifier", "verdicts", str(file), "--verifier", SIGNER.public_hex])
    assert told.exit_code == 0, told.output
    assert "signed by" in told.stdout
    assert isinstance(run(cli, ["verifier", "verdicts", str(file), "--verifier", "ab" * 32]).exception, ForgeryError)
    file.write_bytes(file.read_bytes().replace(b'"accepted":true', b'"accepted":false'))
    with pytest.raises(ForgeryError, match="does not fit the verdict"):
        verdicts(file)


def test_a_prover_looks_at_its_options_before_it_works(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1"
    with pytest.raises(MisuseError, match="'ABCD' is not a public key"):
        answer(nowhere, verifier="ABCD")
    (tmp_path / "there").touch()
    with pytest.raises(MisuseError, match="exists and is not written over"):
        answer(nowhere, out=tmp_path / "there")
