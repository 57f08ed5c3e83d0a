"""The verifier: a session that is good once, transcripts of strangers, what a verdict says, and what checking costs."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hostile import damages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proofs import NOW, answered, commit, issued

from harness import codec
from harness.cli import cli
from harness.errors import ForgeryError, HarnessError, MisuseError
from harness.model import Challenge, Transcript, Verdict
from harness.proof import by_file, challenge, transcript, verifier
from harness.proof.challenge import Ledger
from harness.proof.projection import Projection
from harness.proof.signing import keygen, load_key
from harness.proof.task import N_MOST, operations, task_of
from harness.proof.transcript import open_file
from harness.proof.verifier import Session

ROOT = Path(__file__).parent.parent

# --- challenges -------------------------------------------------------------------------------------------------------


def test_the_seed_is_what_it_was() -> None:
    """A changed seed is another protocol: raise the version in its domain."""
    params = b'{"mode":"int8","n":16,"openings":4,"scan_openings":0,"scans":0,"steps":2}'
    parts = (
        b"harness.challenge/2 seed",
        b"\x01drand 1",
        b"\xab" * 32,
        b"p",
        b"CPU-test",
        (1).to_bytes(8, "big"),
        params,
    )
    by_hand = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
    assert challenge.seed(issued()) == by_hand
    assert by_hand.hex().startswith("a57604e04bc17d79")


def _with(asked: Challenge, name: str, value: Any) -> Challenge:
    changed = {name: value}
    return replace(asked, **changed)


def test_every_field_of_a_challenge_but_its_times_changes_the_seed() -> None:
    base = issued()
    others: dict[str, Any] = {
        "nonce": "cd" * 32,
        "beacon": None,
        "provider": "q",
        "device_uuid": "CPU-2",
        "epoch": 2,
        "params": {**base.params, "steps": 3},
    }
    seeds = {challenge.seed(_with(base, name, value)) for name, value in others.items()}
    assert len(seeds | {challenge.seed(base)}) == 7
    assert {f.name for f in fields(Challenge)} == {*others, "schema", "issued_at", "expires_at"}


def test_a_letter_moved_from_one_field_to_the_next_changes_the_seed() -> None:
    assert challenge.seed(issued(provider="ab", device="c")) != challenge.seed(issued(provider="a", device="bc"))
    assert challenge.seed(issued(beacon=None)) != challenge.seed(issued(beacon="\x01"))
    assert challenge.framed((b"a", b"")) != challenge.framed((b"", b"a")) != challenge.framed((b"a",))


@pytest.mark.parametrize(
    "params",
    [
        {"n": 8},
        {"n": 17},
        {"n": N_MOST + 16},
        {"n": 16.0},
        {"n": True},
        {"n": "16"},
        {"steps": 0},
        {"openings": -1},
        {"mode": "int4"},
        {"scans": 1},
        {"extra": 1},
        {"n": N_MOST, "openings": 1 << 14},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(MisuseError):
        issued(**params)


def test_a_challenge_is_taken_once_and_not_too_late() -> None:
    ledger, asked = Ledger(), issued()
    ledger.add(asked)
    with pytest.raises(MisuseError, match="is in use"):
        ledger.add(asked)
    ledger.take(asked, now=NOW)
    with pytest.raises(MisuseError, match="was not issued here, or was answered before"):
        ledger.take(asked, now=NOW)
    ledger.add(asked)
    with pytest.raises(MisuseError, match="expired"):
        ledger.take(asked, now=NOW + timedelta(seconds=121))
    ledger.add(asked)
    with pytest.raises(MisuseError, match="was not issued here"):
        ledger.take(replace(asked, epoch=9), now=NOW)


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_runs_once_from_issue_to_verdict() -> None:
    asked = issued(n=32, steps=4, openings=64, scans=2, scan_openings=64)
    session = Session(asked, at_s=100.0, fastest_link_s=0.5, link_bytes_per_s=1.0)
    held = commit(asked)
    session.committed(held.root, at_s=102.0)
    session.scanned(held.scan(session.scan_key(at_s=103.0)), at_s=103.5)
    transcript, openings = held.transcript(session.ask(at_s=104.0))
    verdict = session.judge(transcript, io.BytesIO(openings), at_s=105.0)
    assert verdict.accepted, verdict.faults
    work = verdict.work
    assert work is not None
    assert work.wall_s == 2.0
    assert "at least 243.6 k of 262.1 k operations (int8, n = 32, 4 steps)" in verdict.proven[0]
    assert "at least 121.8 k operations/s, at most 174.8 k, in 2 s by the verifier's clock" in verdict.proven[-2]
    false = 1 - 0.1 ** (1 / 64)
    assert work.least_operations_per_s == pytest.approx(2 * 32**3 * 4 * (1 - 2 * false) / 2.0)
    assert work.most_operations_per_s == pytest.approx(2 * 32**3 * 4 / 1.5)
    read, rebuilt = 2 * 4 * 32**2 / 0.5, 2 * 32**3 * 4 / 1.5 / (2 * 32)
    assert work.least_read_bytes_per_s == pytest.approx(read * (1 - false))
    assert work.resident_bytes == pytest.approx(4096 * (1 - (1 + rebuilt) / read - 3 * false), abs=1)
    with pytest.raises(MisuseError, match="judge comes after 'asked'; this session is 'judged'"):
        session.judge(transcript, io.BytesIO(openings), at_s=105.0)


def test_steps_out_of_turn_are_refused() -> None:
    session = Session(issued(), at_s=0.0)
    for early in (
        lambda: session.ask(at_s=1.0),
        lambda: session.scan_key(at_s=1.0),
        lambda: session.scanned((), at_s=1.0),
    ):
        with pytest.raises(MisuseError, match="this session is 'issued'"):
            early()
    with pytest.raises(MisuseError, match="64 lower-case hex digits"):
        session.committed("AB" * 32, at_s=1.0)
    session.committed("ab" * 32, at_s=1.0)
    with pytest.raises(MisuseError, match="this challenge has no scans"):
        session.scan_key(at_s=1.0)
    with pytest.raises(MisuseError, match="this session is 'committed'"):
        session.committed("ab" * 32, at_s=1.0)


def test_a_stale_commitment_ends_the_session() -> None:
    session = Session(issued(), at_s=0.0)
    with pytest.raises(MisuseError, match=r"was good for 120 s, and 121\.0 s have passed"):
        session.committed("ab" * 32, at_s=121.0)
    assert session.state == "judged"


def test_a_session_accepts_only_its_own_answer() -> None:
    """A transcript that anybody else would accept: of another nonce, another challenge, or too late."""
    asked = issued()
    held = commit(asked)
    for late, other, wanted in (
        (False, held.transcript("12" * 32), "$.asked"),
        (False, held.transcript(None), "$.asked"),
        (False, commit(issued(nonce="cd" * 32)).transcript("ef" * 32), "$.challenge"),
        (True, held.transcript("ef" * 32), "$.challenge.expires_at"),
    ):
        assert verifier.check(other[0], io.BytesIO(other[1])).accepted
        session = Session(asked, at_s=0.0)
        session.committed(held.root, at_s=1.0)
        session.ask(at_s=2.0, nonce="ef" * 32)
        verdict = session.judge(other[0], io.BytesIO(other[1]), at_s=121.0 if late else 3.0)
        assert not verdict.accepted
        assert verdict.work is None
        assert wanted in {fault.path for fault in verdict.faults}


def test_a_third_party_is_told_less_than_who_held_the_clock() -> None:
    asked = issued(openings=512)
    transcript, openings = answered(commit(asked))
    verdict = verifier.check(transcript, io.BytesIO(openings))
    assert verdict.accepted
    assert verdict.work is not None
    assert verdict.work.least_operations_per_s is None
    assert verdict.work.skipped_most_fraction == pytest.approx(2 * (1 - (0.1 * 2**-64) ** (1 / 512)))
    assert any("2^64 tries" in what for what in verdict.not_proven)
    assert any("how fast" in what for what in verdict.not_proven)


def test_an_answer_for_a_keys_owner_must_be_signed_with_it(tmp_path: Path) -> None:
    keygen(tmp_path / "a"), keygen(tmp_path / "b")
    mine, other = load_key(tmp_path / "a"), load_key(tmp_path / "b")
    held = commit(issued(provider=mine.public_hex))
    transcript, openings = held.transcript("ef" * 32, mine)
    assert verifier.check(transcript, io.BytesIO(openings)).signed_by == mine.public_hex
    for forged in (
        replace(transcript, signature=None),
        replace(transcript, public_key=None, signature=None),
        replace(transcript, elapsed_s=0.0),
        held.transcript("ef" * 32, other)[0],
    ):
        assert not verifier.check(forged, io.BytesIO(openings)).accepted


def test_the_example_of_the_docs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "proof.md").read_text(), re.DOTALL)
    exec(example, {})  # noqa: S102 - our own page
    assert capsys.readouterr().out == "True 3.57%\n"


def test_the_threat_model_names_tests_that_exist() -> None:
    section = (ROOT / "docs" / "threat-model.md").read_text().split("## Proofs of work")[1].split("\n## ")[0]
    files = [path.read_text() for path in (ROOT / "tests").glob("test_*.py")]
    there = {name for text in files for name in re.findall(r"def (test_\w+)", text)}
    named = set(re.findall(r"`(test_\w+)`", section))
    assert named
    assert named <= there


# --- hostile files ----------------------------------------------------------------------------------------------------

_TRANSCRIPT, _OPENINGS = answered(commit(issued(openings=2, scans=1, scan_openings=1)))
_WHOLE = codec.encode(_TRANSCRIPT) + b"\n" + _OPENINGS


def judged(data: bytes) -> Verdict | None:
    """Judge a file; None is a refusal before there was a record."""
    try:
        record, openings = open_file(io.BytesIO(data))
    except ForgeryError:
        return None
    return verifier.check(record, openings)


def test_the_undamaged_file_is_accepted() -> None:
    verdict = judged(_WHOLE)
    assert verdict is not None
    assert verdict.accepted


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damages(_WHOLE))
def test_a_damaged_file_never_passes_and_never_crashes(data: bytes) -> None:
    verdict = judged(data)
    assert verdict is None or not verdict.accepted or _untimed(data) == _untimed(_WHOLE)


def _untimed(data: bytes) -> tuple[Transcript, bytes]:
    """Return what a file says but for its times, which are anybody's word where nobody signed them."""
    record, openings = open_file(io.BytesIO(data))
    openings.seek(0)
    issued = replace(record.challenge, issued_at="", expires_at="")
    return replace(record, challenge=issued, elapsed_s=0), openings.read(len(data))


@settings(max_examples=60, deadline=None)
@given(damages(_OPENINGS))
def test_damage_that_is_hashed_again_never_passes(openings: bytes) -> None:
    forged = replace(_TRANSCRIPT, openings_digest=hashlib.sha256(openings).hexdigest())
    assert not verifier.check(forged, io.BytesIO(openings)).accepted or openings == _OPENINGS


_ODD: st.SearchStrategy[Any] = st.sampled_from(
    ["", "ab" * 32, "AB" * 32, "0" * 64, "é" * 64, "\x00", "a" * 5000, None, -1, 2**53 - 1, 1e308, [], {}, ["ab" * 32]]
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        [
            *codec.plain(_TRANSCRIPT),
            *(("challenge", k) for k in codec.plain(_TRANSCRIPT.challenge)),
            *(("challenge", "params", k) for k in _TRANSCRIPT.challenge.params),
        ]
    ),
    _ODD,
)
def test_no_field_can_be_replaced(where: Any, value: Any) -> None:
    document = codec.plain(_TRANSCRIPT)
    inner, steps = document, [where] if isinstance(where, str) else [*where]
    for step in steps[:-1]:
        inner = inner[step]
    before, inner[steps[-1]] = inner[steps[-1]], value
    verdict = judged(json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n" + _OPENINGS)
    harmless = where in {"elapsed_s", ("challenge", "issued_at"), ("challenge", "expires_at")}
    assert verdict is None or not verdict.accepted or value == before or harmless


def test_a_giant_is_refused_before_anything_is_made_for_it() -> None:
    """The largest matrices there are, with one opening of the right size but the wrong content: refused in no time."""
    params: dict[str, Any] = {
        "mode": "int8",
        "n": N_MOST,
        "steps": 1 << 16,
        "openings": 1,
        "scans": 0,
        "scan_openings": 0,
    }
    giant = replace(_TRANSCRIPT, challenge=replace(_TRANSCRIPT.challenge, params=params), scan_roots=())
    began = time.process_time()
    assert "where the challenge asks for" in verifier.faults_of(giant, io.BytesIO(_OPENINGS))[0].what
    endless = _Endless()
    assert "more than" in verifier.faults_of(giant, endless)[0].what
    assert endless.read_bytes < 10 * N_MOST
    assert time.process_time() - began < 5


class _Endless:
    read_bytes = 0

    def seek(self, offset: int, /) -> object:
        return None

    def read(self, size: int, /) -> bytes:
        self.read_bytes += size
        return bytes(size)


# --- what it costs ----------------------------------------------------------------------------------------------------


def _fastest_s(run: Callable[[], object], times: int = 7) -> float:
    took = []
    for _ in range(times):
        began = time.process_time()
        run()
        took.append(time.process_time() - began)
    return min(took)


def test_checking_grows_as_n_squared_while_the_work_grows_as_n_cubed() -> None:
    def project(n: int) -> Projection:
        return Projection("int8", n, b"s" * 32, b"r", compiled=True)

    project(1024)
    small, large = (_fastest_s(partial(project, n)) for n in (2048, 4096))
    assert large / small < 6  # 4, where the work grows by 8
    assert operations(task_of(issued(n=4096).params)) / operations(task_of(issued(n=2048).params)) == 8


# --- commands ---------------------------------------------------------------------------------------------------------


def test_challenge_prove_and_check_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from proofs import CPU

    from harness.cluster import replay

    monkeypatch.setattr(replay, "_device", lambda uuid: CPU)
    files = {name: str(tmp_path / name) for name in ("challenge", "transcript", "other")}
    run = CliRunner().invoke
    new = ["challenge", "new", "--device", "CPU-test", "--n", "32", "--steps", "2"]
    assert run(cli, [*new, "--out", files["challenge"]]).exit_code == 0
    assert run(cli, [*new, "--out", files["other"]]).exit_code == 0
    assert isinstance(run(cli, [*new, "--out", files["other"]]).exception, MisuseError)  # it exists
    assert run(cli, ["prove", files["challenge"], "--out", files["transcript"]]).exit_code == 0
    good = run(cli, ["check", files["transcript"], "--challenge", files["challenge"], "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout.splitlines()[-1])["accepted"]
    assert run(cli, ["check", files["transcript"], "--challenge", files["other"]]).exit_code == ForgeryError.exit_code
    Path(files["transcript"]).write_bytes(Path(files["transcript"]).read_bytes()[:-1])
    bad = run(cli, ["check", files["transcript"]])
    assert bad.exit_code == ForgeryError.exit_code
    assert "REFUSED" in bad.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--asked", "zz"], "'zz' is not a verifier's nonce"),
        (["--asked", "AB" * 32], "is not a verifier's nonce: 64 lower-case hex digits"),
        (["--asked", "abcd"], "is not a verifier's nonce"),
        (["--out", "/nowhere/at/all"], "cannot write the transcript '/nowhere/at/all'"),
    ],
)
def test_options_are_looked_at_before_any_work_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    from harness.cluster import replay

    def used(_: str) -> None:
        pytest.fail("the device was used")

    monkeypatch.setattr(replay, "_device", used)
    asked, kept = str(tmp_path / "challenge"), tmp_path / "kept"
    by_file.challenge(device="CPU-test", out=asked, n=16, steps=2)
    kept.write_bytes(b"an answer of yesterday")
    failed = CliRunner().invoke(cli, ["prove", asked, "--out", str(kept), *options]).exception
    assert isinstance(failed, MisuseError)  # exit code 2
    assert words in str(failed)
    transcript.require_writable(kept)
    transcript.require_writable(tmp_path / "new")
    assert kept.read_bytes() == b"an answer of yesterday"
    assert not (tmp_path / "new").exists()


def test_a_stale_challenge_is_not_answered(tmp_path: Path) -> None:
    path = tmp_path / "challenge"
    path.write_bytes(codec.encode(issued()))
    assert by_file.read_challenge(path, now=NOW + timedelta(seconds=120)) == issued()
    with pytest.raises(MisuseError, match=r"expired at 2026-11-25T12:02:00Z: ask for another"):
        by_file.read_challenge(path, now=NOW + timedelta(seconds=121))


def test_checking_loads_no_library_of_gpus(tmp_path: Path) -> None:
    path = tmp_path / "transcript"
    path.write_bytes(_WHOLE)
    code = (
        "import sys, harness.cli\n"
        f"sys.argv = ['harness', 'check', {str(path)!r}]\n"
        "try: harness.cli.main()\n"
        "except SystemExit as end: print(end.code, *{'cupy', 'numba', 'pynvml', 'ray', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["0"]


# --- audits -----------------------------------------------------------------------------------------------------------


def test_an_audit_repeats_answers_and_finds_another(tmp_path: Path) -> None:
    from test_codec import REPORT

    from harness import registry
    from harness.cluster import replay
    from harness.device.cpu import CpuDevice
    from harness.measure.runner import answer_digest

    measurement = REPORT.outcomes[0].measurement
    assert measurement is not None
    job = replace(measurement.job, benchmark="sha256", version=registry.find(["sha256"])[0].version, params={"n": 64})
    backend = CpuDevice(REPORT.devices[0])
    digest = answer_digest(registry.find(["sha256"])[0].build(backend, int(job.seed, 16), job.params).run(), backend)
    true = replace(measurement, job=job, answer_digest=digest)
    assert "bit for bit" in str(replay._replayed(true).proven)
    assert "another answer" in str(replay._replayed(replace(true, answer_digest="0" * 64)).fault)
    assert "another answer" in str(replay._replayed(replace(true, job=replace(job, seed="1" * 16))).fault)
    for changed, why in (
        ({"benchmark": "nosuch"}, "no such benchmark"),
        ({"version": 99}, "measured with version 99"),
        ({"params": {"m": 1}}, "did not run here"),
    ):
        assert why in str(replay._replayed(replace(true, job=replace(job, **changed))).open_question)


def test_a_forged_report_is_not_audited(tmp_path: Path) -> None:
    from test_codec import REPORT

    from harness.cluster import replay

    path = tmp_path / "report.json"
    path.write_bytes(codec.encode(REPORT))
    assert not replay.audit(path).accepted
    with pytest.raises(HarnessError):
        replay.audit(path, count=0)
