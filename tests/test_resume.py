"""A run killed at any moment leaves a report that verifies, and is finished without measuring anything twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness import codec
from harness.cluster.journal import Journal
from harness.errors import MisuseError
from harness.model import Report
from harness.proof.verify import job_of

RUN = [sys.executable, "-m", "harness", "run"]


def finish(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *map(str, args)], capture_output=True, text=True, check=False, timeout=120)


def kill_after(outcomes: int, folder: Path, *args: str | Path) -> Path:
    """Start a run, kill it with -9 once so many outcomes are on disk, and return what is left."""
    process = subprocess.Popen(
        [*RUN, "launch", "chase", "--device", "cpu", "--out", str(folder), *map(str, args)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for path in folder.glob("*-partial.json"):
                text = path.read_bytes()
                # Read as a stranger would, at any moment: there is never half a file.
                if text and len(codec.decode(text, Report).outcomes) >= outcomes:
                    process.send_signal(signal.SIGKILL)
                    assert process.wait() == -signal.SIGKILL
                    return path
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    pytest.fail(f"no {outcomes} outcomes within a minute")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A run of five jobs killed after its second, and its bytes."""
    path = kill_after(2, tmp_path_factory.mktemp("killed"))
    return path, path.read_bytes()


def copied(killed: tuple[Path, bytes], folder: Path) -> Path:
    path = folder / killed[0].name
    path.write_bytes(killed[1])
    return path


@pytest.mark.slow
def test_what_was_measured_is_in_the_file_and_verifies(killed: tuple[Path, bytes], tmp_path: Path) -> None:
    (verdict,) = harness.verify(copied(killed, tmp_path))
    assert verdict.accepted
    assert not verdict.complete
    report = codec.decode(killed[1], Report)
    assert 2 <= len(report.outcomes) < len(report.plan) == 5
    assert all(o.measurement for o in report.outcomes)


@pytest.mark.slow
def test_the_rest_is_measured_once_and_the_first_results_stay_to_the_byte(
    killed: tuple[Path, bytes], tmp_path: Path
) -> None:
    path, before = copied(killed, tmp_path), codec.decode(killed[1], Report)
    (tmp_path / path.name).with_suffix(".partial").write_bytes(killed[1][: len(killed[1]) // 2])  # a torn write
    ended = finish("--resume", path, "--json")
    assert ended.returncode == 0, ended.stderr
    (entry,) = json.loads(ended.stdout.splitlines()[-1])["reports"]
    after = codec.read(Path(entry["path"]), Report)
    assert after.outcomes[: len(before.outcomes)] == before.outcomes
    assert after.seal.outcomes[: len(before.outcomes)] == before.seal.outcomes
    done = [codec.digest(job_of(o)) for o in after.outcomes]
    assert sorted(done) == sorted(codec.digest(job) for job in before.plan)
    assert after.plan == before.plan
    assert after.created_at == before.created_at
    assert Path(entry["path"]).name.endswith(f"-{after.seal.digest[:8]}.json")
    assert not path.exists()
    (verdict,) = harness.verify(entry["path"])
    assert verdict.accepted
    assert verdict.complete
    assert f"{len(before.outcomes)} already done" in ended.stderr
    assert ended.stderr.count("\n[") + ended.stderr.startswith("[") == len(before.plan) - len(before.outcomes)


@pytest.mark.slow
def test_a_complete_report_is_not_resumed(tmp_path: Path) -> None:
    (finished,) = harness.run("launch", device="cpu", out=tmp_path)
    ended = finish("--resume", finished.path)
    assert ended.returncode == 2
    assert "complete" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_changed_report_is_not_resumed(killed: tuple[Path, bytes], tmp_path: Path) -> None:
    path = copied(killed, tmp_path)
    path.write_bytes(killed[1].replace(b'"preset":"quick"', b'"preset":"quack"'))
    ended = finish("--resume", path)
    assert ended.returncode == 4
    assert "changed" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_signed_report_is_resumed_with_its_own_key_only(tmp_path: Path) -> None:
    own, other = tmp_path / "own.pem", tmp_path / "other.pem"
    public = harness.keygen(own)
    harness.keygen(other)
    path = kill_after(1, tmp_path / "out", "--key", own)
    for key in (None, other):
        with pytest.raises(MisuseError, match=f"signed by {public}"):
            harness.run(resume=path, key=key)
    (finished,) = harness.run(resume=path, key=own)
    (verdict,) = harness.verify(finished.path, signer=public)
    assert verdict.accepted
    assert verdict.complete


@pytest.mark.slow
def test_reports_of_one_folder_form_a_chain_and_its_order_counts(tmp_path: Path) -> None:
    first, second = (harness.run("launch", device="cpu", out=tmp_path)[0] for _ in range(2))
    assert first.report.previous is None
    assert second.report.previous == first.report.seal.digest
    assert sorted(tmp_path.glob("*.json")) == sorted([first.path, second.path])
    assert all(v.accepted for v in harness.verify(first.path, second.path))
    swapped = harness.verify(second.path, first.path)
    assert [v.accepted for v in swapped] == [True, False]
    assert "chain" in swapped[1].faults[0].what


def test_a_growing_report_is_the_same_bytes_as_one_encoded_whole(killed: tuple[Path, bytes], tmp_path: Path) -> None:
    report = codec.decode(killed[1], Report)
    journal = Journal(tmp_path, replace(report, outcomes=()), None)
    for outcome in report.outcomes:
        journal.append(outcome)
        assert journal.path.read_bytes() == codec.encode(journal.report)
    assert len(journal.pending()) == len(report.plan) - len(report.outcomes)
    assert journal.finish() == journal.path  # unfinished: it keeps its name
