"""The log beside a growing report: each outcome is on disk once, costs the same however many there are, and nobody can slip one in."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_resume import die, head, read, skip
from test_scheduler import measured

import harness
from harness import codec
from harness.cluster import journal as journals
from harness.cluster.journal import Journal, reopen
from harness.cluster.plan import plan
from harness.cluster.room import Size, least
from harness.cluster.session import Silent
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.measure import timing
from harness.measure.rounds import EFFORTS
from harness.model import Device, Job, Outcome, Round, Skipped, TelemetrySample
from harness.proof import log as logs
from harness.proof.signing import Key, load_key
from harness.proof.verify import job_of

H100 = Device(
    uuid="GPU-00000000-0000-0000-0000-000000000000",
    name="NVIDIA H100 80GB HBM3",
    kind="cuda",
    selector="cuda:0",
    memory_bytes=80 << 30,
    l2_bytes=50 << 20,
    compute_capability="9.0",
    sm_count=132,
    memory_bus_bits=5120,
    sensors={},
)
LOGGED = 2  # outcomes that stand in the log, of 45


@pytest.fixture
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    path = tmp_path_factory.mktemp("keys") / "key"
    harness.keygen(path)
    return load_key(path)


def begun(folder: Path, key: Key | None = None, *, jobs: int = 60, done: int = 45) -> Path:
    """Return the report of a run that was killed with some outcomes in its log."""
    journal = Journal(folder, head(jobs), key)
    for job in journal.pending()[:done]:
        journal.append(skip(job))
    die(journal)
    return journal.path


def jobs_of(path: Path) -> list[Job | None]:
    return [job_of(outcome) for outcome in read(path).outcomes]


def test_a_report_is_sealed_after_each_of_the_first_outcomes_and_then_ever_more_rarely(tmp_path: Path) -> None:
    journal = Journal(tmp_path, head(100), None)
    sealed = []
    for job in journal.pending():
        journal.append(skip(job))
        sealed.append(len(journal.report.outcomes))
        assert sealed[-1] >= len(sealed) * 19 / 20
    assert sealed[:20] == list(range(1, 21))
    assert len(set(sealed)) < 60
    assert len(read(journal.finish()).outcomes) == 100
    assert list(tmp_path.iterdir()) == [journal.path]


@pytest.mark.parametrize("signed", [False, True])
def test_what_stands_in_the_log_is_told_and_resumed(tmp_path: Path, key: Key, *, signed: bool) -> None:
    signing = key if signed else None
    path = begun(tmp_path, signing)
    assert len(read(path).outcomes) == 45 - LOGGED
    (verdict,) = harness.verify(path)
    assert (verdict.accepted, verdict.complete) == (True, False)
    assert any(f"the log beside it follows on it and holds more outcomes: {LOGGED};" in said for said in verdict.proven)
    assert "what 15 of 60 planned jobs would have given" in verdict.not_proven
    resumed = reopen(path, signing)
    assert len(resumed.pending()) == 15
    assert not logs.path_of(path).read_bytes()
    assert len(read(path).outcomes) == 45
    for job in resumed.pending():
        resumed.append(skip(job))
    final = resumed.finish()
    assert jobs_of(final) == list(head(60).plan)
    (verdict,) = harness.verify(final, signer=key.public_hex if signed else None)
    assert (verdict.accepted, verdict.complete) == (True, True)


def test_a_line_that_a_kill_tore_is_dropped(tmp_path: Path) -> None:
    path = begun(tmp_path)
    log = logs.path_of(path)
    log.write_bytes(log.read_bytes()[:-20])
    assert "more outcomes: 1;" in str(harness.verify(path)[0].proven)
    assert len(reopen(path, None).pending()) == 16


def test_a_kill_between_the_report_and_its_emptied_log_counts_nothing_twice(tmp_path: Path) -> None:
    path = begun(tmp_path)
    log, kept = logs.path_of(path), logs.path_of(path).read_bytes()
    die(reopen(path, None))
    log.write_bytes(kept)
    assert harness.verify(path)[0].accepted
    resumed = reopen(path, None)
    assert len(resumed.pending()) == 15
    assert len(resumed.report.outcomes) == 45


def changed(text: bytes) -> bytes:
    return text.replace(b'"a test"', b'"a lie"', 1)


def without_the_first(text: bytes) -> bytes:
    return b"".join(text.splitlines(keepends=True)[1:])


def turned_round(text: bytes) -> bytes:
    return b"".join(reversed(text.splitlines(keepends=True)))


def twice(text: bytes) -> bytes:
    return text + text.splitlines(keepends=True)[-1]


def no_json(text: bytes) -> bytes:
    return text + b"{}\n"


def other_spelling(text: bytes) -> bytes:
    return text.replace(b'{"before":', b'{ "before":', 1)


def with_a_signature(text: bytes) -> bytes:
    return text.replace(b'"signature":null', b'"signature":"00"', 1)


def nothing_proven(_: bytes) -> bytes:
    return logs.line(logs.start(head(2)), codec.encode(skip(head(2).plan[0])), None)


def endless(_: bytes) -> bytes:
    return b"\n" * (codec.MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (changed, "log line 2", "does not follow on the line before it"),
        (without_the_first, "log line 1", "does not follow on this report"),
        (turned_round, "log line 1", "does not follow on this report"),
        (twice, "log line 3", "does not follow on the line before it"),
        (no_json, "log line 3: $", "missing field"),
        (other_spelling, "log line 1: ", "second spelling"),
        (with_a_signature, "log line 1", "is signed, but the report is not"),
        (nothing_proven, "log line 1", "it is the log of another"),
        (endless, "log", "bytes that a log may have"),
    ],
)
def test_a_log_that_was_changed_is_refused_with_words(
    tmp_path: Path, change: Callable[[bytes], bytes], where: str, what: str
) -> None:
    path = begun(tmp_path)
    log, kept = logs.path_of(path), path.read_bytes()
    broken = change(log.read_bytes())
    log.write_bytes(broken)
    (verdict,) = harness.verify(path)
    assert not verdict.accepted
    assert verdict.faults[0].path.startswith(where)
    assert what in verdict.faults[0].what
    with pytest.raises(ForgeryError, match=what):
        reopen(path, None)
    assert (path.read_bytes(), log.read_bytes()) == (kept, broken)


def test_a_log_is_signed_by_who_signed_its_report(tmp_path: Path, key: Key) -> None:
    path = begun(tmp_path, key)
    log = logs.path_of(path)
    first, last = log.read_bytes().splitlines(keepends=True)
    forged = changed(last)
    log.write_bytes(first + forged)
    with pytest.raises(ForgeryError, match="log line 2: was changed, or is not signed by"):
        reopen(path, key)
    log.write_bytes(first + last.split(b',"signature"')[0] + b',"signature":null}\n')
    assert not harness.verify(path)[0].accepted


def test_an_outcome_of_the_report_that_the_log_has_otherwise_is_refused(tmp_path: Path) -> None:
    path = begun(tmp_path)
    report = read(path)
    before = logs.start(report)
    for digest in report.seal.outcomes[:-1]:
        before = logs.follow(before, digest)
    logs.path_of(path).write_bytes(logs.line(before, codec.encode(skip(report.plan[-1])), None))
    with pytest.raises(ForgeryError, match=r"log line 1: is not outcome 42 of the report"):
        reopen(path, None)


def test_what_a_log_says_is_judged_like_what_a_report_says(tmp_path: Path) -> None:
    path = begun(tmp_path, done=20)
    report = read(path)
    before = logs.start(report)
    for digest in report.seal.outcomes:
        before = logs.follow(before, digest)
    stranger = replace(report.plan[0], benchmark="other")
    logs.path_of(path).write_bytes(logs.line(before, codec.encode(skip(stranger)), None))
    assert "was not planned" in harness.verify(path)[0].faults[0].what
    with pytest.raises(ForgeryError, match="was not planned"):
        reopen(path, None)


def test_a_report_of_a_run_that_is_alive_is_not_resumed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, head(3), None)
    journal.append(skip(journal.pending()[0]))
    with pytest.raises(MisuseError, match="belongs to a run that is alive"):
        reopen(journal.path, None)
    journal.append(skip(journal.pending()[0]))
    journal.close()
    assert list(tmp_path.iterdir()) == [journal.path]
    with reopen(journal.path, None) as resumed:
        assert len(resumed.pending()) == 1
    assert list(tmp_path.iterdir()) == [journal.path]


def test_a_lock_on_a_log_that_was_removed_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = begun(tmp_path, done=3)
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        logs.path_of(path).unlink()  # as the run that had it does when it ends
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    resumed = reopen(path, None)
    with pytest.raises(MisuseError, match="alive"):
        reopen(path, None)
    assert len(resumed.pending()) == 57


def test_a_log_that_cannot_be_opened_or_read_is_told(tmp_path: Path) -> None:
    path = begun(tmp_path, done=3)
    logs.path_of(path).unlink()
    logs.path_of(path).mkdir()
    with pytest.raises(MisuseError, match="cannot open the log"):
        reopen(path, None)
    with pytest.raises(MisuseError, match="cannot read the log"):
        harness.verify(path)


def test_a_full_disk_leaves_no_half_line_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begun(tmp_path)
    journal = reopen(path, None)
    write = os.write

    def half(fd: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", full)
        return write(fd, data[: len(data) // 2])

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(FailureError, match=r"cannot write the log .*No space left on device"):
        journal.append(skip(journal.pending()[0]))
    monkeypatch.setattr(os, "write", write)
    assert not logs.path_of(path).read_bytes()
    for job in journal.pending()[:2]:
        journal.append(skip(job))
    die(journal)
    assert len(reopen(path, None).pending()) == 13


def test_a_report_takes_one_outcome_of_each_planned_job(tmp_path: Path) -> None:
    journal = Journal(tmp_path, head(3), None)
    first, second, _ = journal.pending()
    journal.append(skip(first))
    for refused in (skip(first), skip(replace(second, benchmark="other")), Outcome()):
        with pytest.raises(FailureError, match="does not take an outcome"):
            journal.append(refused)
    assert len(read(journal.path).outcomes) == 1


@pytest.mark.parametrize(("limit", "most"), [("MAX_BYTES", 60_000), ("MAX_VALUES", 20_000)])
def test_what_a_report_has_no_room_for_is_a_failure_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    journal = Journal(tmp_path, head(60), None)
    monkeypatch.setattr(codec, limit, most)
    stands = []
    for job in journal.pending():
        large = Skipped(job=job, reason='"' * 600)  # as many values as escapes
        stands.append(journal.append(Outcome(skipped=large)))
    report = read(journal.finish())
    assert report.outcomes == tuple(stands)
    assert all(outcome.skipped for outcome in stands[:10])
    assert sum(outcome.failed is not None for outcome in stands) > 10
    assert {o.failed.reason for o in report.outcomes if o.failed} == {journals._FULL}
    assert Size.of(codec.encode(stands[-1])).within(least(codec.encode(job)))


def test_a_plan_without_room_for_its_failures_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, head(60), None)
    monkeypatch.setattr(codec, "MAX_BYTES", 18_000)

    def fill() -> None:
        for job in journal.pending():
            journal.append(skip(job))

    with pytest.raises(FailureError, match="as large as one may be"):
        fill()
    journal.close()
    assert 20 < len(read(journal.path).outcomes) < 60


@pytest.mark.parametrize("preset", EFFORTS)
def test_the_report_of_a_node_with_eight_gpus_can_be_read(preset: str) -> None:
    sizes = [Size.of(codec.encode(wordy(job))) for job in plan([H100], (), preset, "ab")]
    assert len(sizes) >= 17
    assert 8 * sum(size.length_bytes for size in sizes) < codec.MAX_BYTES
    assert 8 * sum(size.value_count for size in sizes) < codec.MAX_VALUES


def wordy(job: Job) -> Outcome:
    """Return an outcome with a typical number of rounds, and as many samples of all sensors as the clockwork keeps of a load of a minute."""
    told = TelemetrySample(
        **dict.fromkeys(("at_s", "power_w", "power_average_w", "energy_j", "temperature_c"), 1 / 3),
        **dict.fromkeys(("memory_temperature_c", "sm_clock_mhz", "memory_clock_mhz"), 1 / 3),
        **dict.fromkeys(("utilization_fraction", "memory_utilization_fraction"), 1 / 3),
        throttle_reasons=("sw_power_cap",),
        throttle_s=dict.fromkeys(("hw_power_brake", "hw_thermal", "sw_power_cap", "sw_thermal", "sync_boost"), 1 / 3),
        pcie_generation=5,
        pcie_width=16,
        pcie_tx_bytes_per_s=12_345_678_901,
        pcie_rx_bytes_per_s=12_345_678_901,
        ecc_corrected_count=0,
        ecc_uncorrected_count=0,
    )
    assert all(value is not None for value in codec.plain(told).values())
    made = measured(job).measurement
    assert made
    taken = Round(at_s=1 / 3, batch=1, times_s=(1e-3 / 3,) * 30, host_time_s=1e-3 / 3, clock_mhz=1755.1)
    samples = timing._KEPT_MOST + (60 if job.regime == "sustained" else 0)
    return Outcome(
        measurement=replace(
            made, rounds=(taken,) * 11, warmup_times_s=(1e-3 / 3,) * 100, telemetry=(told,) * samples, reason="x" * 100
        )
    )


@pytest.mark.parametrize("seed", range(8))
def test_reports_that_are_completed_in_the_same_second_are_in_the_order_of_their_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(journals, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(journals, "now", lambda: f"2026-11-26T00:00:{int(sum(slept) + 0.8):02}Z")
    both = [Journal(tmp_path, replace(head(1), seed=f"{seed}{n}"), None) for n in range(2)]
    for journal in both:
        journal.append(skip(journal.pending()[0]))
    finals = [journal.finish() for journal in both]
    assert finals == sorted(finals)
    assert all(verdict.accepted for verdict in harness.verify(*finals))
    assert 0 < sum(slept) < 1


def test_a_clock_that_was_set_back_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(journals, "time", SimpleNamespace(sleep=slept.append))
    for hour in (13, 12):
        monkeypatch.setattr(journals, "now", lambda hour=hour: f"2026-11-26T{hour}:00:00Z")
        journal = Journal(tmp_path, head(1), None)
        journal.append(skip(journal.pending()[0]))
        journal.finish()
    assert sum(slept) < 1.01


class Impatient(Silent):
    """Interrupts a run after its first outcome, as a user does."""

    def ended(self, outcome: Outcome) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_run_seals_what_it_has_and_lets_go_of_its_report(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        harness.run("launch", device="cpu", out=tmp_path, progress=Impatient())
    (path,) = tmp_path.glob("*.json")
    assert not logs.path_of(path).exists()
    assert len(read(path).outcomes) == 1
    (finished,) = harness.run(resume=path)
    assert len(finished.report.outcomes) == len(finished.report.plan) > 1
    assert list(tmp_path.iterdir()) == [finished.path]


DRIVER = """
import sys
from pathlib import Path
from test_resume import head, skip
from harness.cluster.journal import Journal, reopen
path = sys.argv[2]
journal = reopen(path, None) if path else Journal(Path(sys.argv[1]), head(400), None)
print("ready", flush=True)
for job in journal.pending():
    journal.append(skip(job))
    print(job.params["step"], flush=True)
journal.finish()
"""


@pytest.mark.slow
def test_a_driver_killed_at_any_moment_has_lost_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    path, kills, dice = "", 0, random.Random(5)  # noqa: S311 - moments, not secrets
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    while not kills or "partial" in path:
        command = [sys.executable, "-c", DRIVER, str(tmp_path), path]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout
            assert driver.stdout.readline() == "ready\n"
            if kills < 5:
                time.sleep(dice.uniform(0.0, 0.3))
                driver.kill()
                kills += 1
            told += [line.strip() for line in driver.stdout if line.endswith("\n")]
        (report,) = tmp_path.glob("*.json")
        assert harness.verify(report)[0].accepted
        path = str(report)
    assert harness.verify(path)[0].complete
    jobs = [job.params["step"] for job in jobs_of(Path(path)) if job]
    assert sorted(jobs) == list(range(400))
    assert len(told) == len(set(told))
    assert set(told) <= {str(job) for job in jobs}
    assert len(told) >= 400 - kills  # a kill may fall between the disk and the word of it


def spent_s(journal: Journal, outcomes: Sequence[Outcome]) -> float:
    """Return the seconds of this process that it takes to put these outcomes on record."""
    began = time.process_time()
    for outcome in outcomes:
        journal.append(outcome)
    return time.process_time() - began


@pytest.mark.slow
def test_the_cost_of_an_outcome_does_not_grow_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run of 8,000 outcomes against four of 1,000, in turns; without the disk's part, which is one sync each, however many."""
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    large = Journal(tmp_path, head(8_000), None)
    jobs, many_s, few_s = large.pending(), 0.0, 0.0
    for begin in range(0, 8_000, 1_000):
        many_s += spent_s(large, [skip(job) for job in jobs[begin : begin + 1_000]])
        if begin % 2_000:
            continue
        small = Journal(tmp_path, head(1_000, "small"), None)
        few_s += spent_s(small, [skip(job) for job in small.pending()])
        die(small)
    assert len(read(large.finish()).outcomes) == 8_000
    many, few = many_s / 8_000, few_s / 4_000
    assert many < 2 * few, (many, few)
