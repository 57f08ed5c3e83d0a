"""A run that is killed has lost nothing it had measured; resumed, it measures the rest and nothing twice."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fakefleet import ENVIRONMENT

import harness
from harness import codec
from harness.cluster import journal as journals
from harness.cluster.journal import Journal, prepare_folder, reopen
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.model import Job, Node, Outcome, Report, Skipped
from harness.proof.seal import OPEN
from harness.proof.signing import load_key
from harness.proof.verify import job_of

PLUGIN = '''
"""A while each."""
import time
from harness.registry import Case, Work, benchmark

@benchmark(version=1, step=tuple(range(1, 13)))
def steps(backend, seed, *, step):
    """Take some time, and do no harm."""
    time.sleep(0.1)
    x = backend.rng(seed).uniform(1 << 8, "float64")
    return Case(run=lambda: 2 * x, work=Work(flops=1 << 8), check=lambda y: bool(((y - x) == x).all()))
'''
NODE = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())
FINAL = re.compile(rf"\d{{8}}T\d{{6}}Z-{re.escape(NODE)}-([0-9a-f]{{8}})\.json")


def read(path: Path) -> Report:
    return codec.read(path, Report)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the plug-in, and return the environment that finds it."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "stepped").mkdir()
    (folder / "stepped" / "__init__.py").write_text(PLUGIN)
    info = folder / "stepped-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stepped\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.benchmarks]\nstepped = stepped\n")
    return {k: v for k, v in os.environ.items() if k != "HARNESS_KEY"} | {"PYTHONPATH": str(folder)}


@dataclass(frozen=True, kw_only=True)
class Killed:
    """What a killed run left: a signed report with at least two of twelve outcomes."""

    environment: dict[str, str]
    key: Path
    other_key: Path
    partial: Path
    outcomes_seen: int

    def harness(self, *args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness", *map(str, args)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=120)

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copy(self.partial, folder))


@pytest.fixture(scope="module")
def killed(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    keys = [tmp_path_factory.mktemp("keys") / name for name in ("key", "other")]
    for key in keys:
        harness.keygen(key)
    command = [sys.executable, "-m", "harness", "run", "steps", "--device", "cpu"]
    command += ["--key", str(keys[0]), "--out", str(folder / "results")]
    seen = 0
    with (
        (folder / "output").open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as run,
    ):
        deadline = time.monotonic() + 60
        while seen < 2 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            # At any moment the file is a whole report; only before the first one is it an empty claim on its name.
            for path in (folder / "results").glob("*.json"):
                seen = len(read(path).outcomes) if path.stat().st_size else 0
        run.kill()
    assert seen >= 2, (folder / "output").read_text()
    (partial,) = (folder / "results").glob("*.json")
    return Killed(environment=environment, key=keys[0], other_key=keys[1], partial=partial, outcomes_seen=seen)


@pytest.mark.slow
def test_what_a_killed_run_had_measured_verifies(killed: Killed) -> None:
    assert killed.partial.name.endswith(f"-{NODE}-partial.json")
    (verdict,) = harness.verify(killed.partial, signer=load_key(killed.key).public_hex)
    assert (verdict.accepted, verdict.complete) == (True, False)
    report = read(killed.partial)
    assert killed.outcomes_seen <= len(report.outcomes) < len(report.plan) == 12
    assert all(o.measurement for o in report.outcomes)
    assert killed.harness("verify", killed.partial).returncode == 0


@pytest.mark.slow
def test_a_resumed_run_measures_the_rest_and_nothing_twice(killed: Killed, tmp_path: Path) -> None:
    partial, before = killed.copy(tmp_path), read(killed.partial)
    torn = partial.with_suffix(".partial")  # what a kill in the middle of a write leaves beside the report
    torn.write_bytes(partial.read_bytes()[:-100])
    ended = killed.harness("run", "--resume", partial, "--key", killed.key)
    assert ended.returncode == 0, ended.stderr
    done = len(before.outcomes)
    assert f"12 jobs on cpu ({before.devices[0].name}), {done} already done" in ended.stderr
    assert f"[{done + 1}/12] " in ended.stderr
    assert f"[{done}/12] " not in ended.stderr
    (final,) = tmp_path.iterdir()
    after = read(final)
    named = FINAL.fullmatch(final.name)
    assert named
    assert after.seal.digest.startswith(named[1])
    assert final.name.startswith(re.sub("[-:]", "", after.sealed_at))
    assert after.outcomes[:done] == before.outcomes
    assert after.seal.outcomes[:done] == before.seal.outcomes
    assert (after.plan, after.seed, after.created_at) == (before.plan, before.seed, before.created_at)
    assert sorted(map(str, map(job_of, after.outcomes))) == sorted(map(str, after.plan))
    (verdict,) = harness.verify(final, signer=load_key(killed.key).public_hex)
    assert (verdict.accepted, verdict.complete) == (True, True)

    again = killed.harness("run", "--resume", final, "--key", killed.key)
    assert again.returncode == 2
    assert "is complete: there is nothing to resume" in again.stderr

    second = killed.harness("run", "launch", "--device", "cpu", "--out", tmp_path, "--key", killed.key)
    assert second.returncode == 0, second.stderr
    (newer,) = set(tmp_path.iterdir()) - {final}
    assert read(newer).previous == after.seal.digest
    assert sorted(tmp_path.iterdir()) == [final, newer]
    assert all(v.accepted for v in harness.verify(final, newer))
    refused = [v for v in harness.verify(newer, final) if not v.accepted]
    assert [v.subject for v in refused] == [str(final)]
    assert "the chain is broken" in refused[0].faults[0].what


@pytest.mark.slow
def test_a_report_is_resumed_with_its_own_key_only(killed: Killed, tmp_path: Path) -> None:
    partial = killed.copy(tmp_path)
    kept = partial.read_bytes()
    for more in ([], ["--key", killed.other_key]):
        ended = killed.harness("run", "--resume", partial, *more)
        assert ended.returncode == 2
        assert "resume it with the same key" in ended.stderr
    assert partial.read_bytes() == kept


@pytest.mark.slow
def test_a_changed_report_is_not_resumed(killed: Killed, tmp_path: Path) -> None:
    partial = killed.copy(tmp_path)
    report = read(partial)
    measured = report.outcomes[0].measurement
    assert measured
    faster = Outcome(measurement=replace(measured, elapsed_s=measured.elapsed_s / 2))
    partial.write_bytes(codec.encode(replace(report, outcomes=(faster, *report.outcomes[1:]))))
    ended = killed.harness("run", "--resume", partial, "--key", killed.key)
    assert ended.returncode == 4
    assert "$.outcomes[0]" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_torn_or_missing_report_is_not_resumed(killed: Killed, tmp_path: Path) -> None:
    torn = tmp_path / "torn.json"
    torn.write_bytes(killed.partial.read_bytes()[:-1])
    assert killed.harness("run", "--resume", torn).returncode == 4
    assert killed.harness("run", "--resume", tmp_path / "none.json").returncode == 2


@pytest.mark.slow
def test_a_report_is_resumed_only_where_its_devices_are(tmp_path: Path) -> None:
    journal = Journal(tmp_path, head(3), None)
    die(journal)
    with pytest.raises(MisuseError, match="this machine does not have"):
        harness.run(resume=journal.path)


def test_a_run_killed_before_it_could_take_its_name_takes_it_when_resumed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, head(2), None)
    for job in journal.pending():
        journal.append(skip(job))
    die(journal)
    (finished,) = harness.run(resume=journal.path)
    assert finished.path.name.endswith(f"-{finished.report.seal.digest[:8]}.json")
    assert list(tmp_path.iterdir()) == [finished.path]
    with pytest.raises(MisuseError, match="there is nothing to resume"):
        harness.run(resume=finished.path)


def head(jobs: int, node: str = "a node") -> Report:
    """Return a report of nothing yet."""
    plan = [Job(benchmark="steps", version=1, params={"step": i}, device_uuid="CPU-1", seed="0") for i in range(jobs)]
    return Report(
        schema="harness.report/2",
        created_at="2026-01-02T03:04:05Z",
        sealed_at="2026-01-02T03:04:05Z",
        node=Node(name=node),
        environment=ENVIRONMENT,
        devices=(harness.Device(uuid="CPU-1", name="a processor", kind="cpu", selector="cpu", sensors={}),),
        preflight=(),
        emulated=False,
        preset="quick",
        seed="0",
        plan=tuple(plan),
        outcomes=(),
        previous=None,
        seal=OPEN,
    )


def skip(job: Job) -> Outcome:
    return Outcome(skipped=Skipped(job=job, reason="a test"))


def die(journal: Journal) -> None:
    """Let go of a journal's lock as the end of its process does, and of nothing else."""
    journal._log._closer()


def test_after_every_outcome_the_file_is_a_report_that_verifies(tmp_path: Path) -> None:
    journal = Journal(tmp_path, head(4), None)
    for done in range(5):
        (path,) = tmp_path.glob("*.json")
        (verdict,) = harness.verify(path)
        assert (verdict.accepted, verdict.complete) == (True, done == 4)
        assert len(read(path).outcomes) == done
        assert path.read_bytes() == codec.encode(journal.report)
        if done < 4:
            assert journal.finish() == path
            journal.append(skip(journal.pending()[0]))
    assert journal.pending() == ()


@pytest.mark.parametrize("when", ["os.fsync", "pathlib.Path.replace"])
def test_a_kill_in_the_middle_of_a_write_leaves_the_report_before_it_and_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    journal = Journal(tmp_path, head(3), None)
    journal.append(skip(journal.pending()[0]))
    kept = journal.path.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(when, stop)
        with pytest.raises(KeyboardInterrupt):
            journal.append(skip(journal.pending()[0]))
    die(journal)
    assert journal.path.read_bytes() == kept
    assert harness.verify(journal.path)[0].accepted
    resumed = reopen(journal.path, None)
    assert len(resumed.pending()) == 1
    resumed.append(skip(resumed.pending()[0]))
    final = resumed.finish()
    assert list(tmp_path.iterdir()) == [final]


def test_reports_that_overlap_form_a_chain_in_the_order_they_end(tmp_path: Path) -> None:
    """Two runs in one folder at once: the one that began first ends last."""
    slow, fast, stranger = (Journal(tmp_path, head(1, node), None) for node in ("n", "n", "n-2"))
    assert len({slow.path, fast.path, stranger.path}) == 3
    finals = []
    for journal in (fast, stranger, slow):
        journal.append(skip(journal.pending()[0]))
        finals.append(journal.finish())
    first, other, last = map(read, finals)
    assert (first.previous, other.previous, last.previous) == (None, None, first.seal.digest)
    assert all(v.accepted for v in harness.verify(*finals))


def test_what_is_no_report_does_not_break_the_chain(tmp_path: Path) -> None:
    (tmp_path / "99990101T000000Z-n-01234567.json").write_text("{}")
    (tmp_path / "99990101T000000Z-n-notes.json").write_text("{}")
    assert Journal(tmp_path, head(1, "n"), None).report.previous is None


def test_a_node_of_any_name_gets_a_file_of_a_plain_one(tmp_path: Path) -> None:
    names = {node: Journal(tmp_path, head(1, node), None).path.name for node in ("../a b", "[*]", "..")}
    assert list(names.values()) == [
        "20260102T030405Z-a-b-partial.json",
        "20260102T030405Z-node-partial.json",
        "20260102T030405Z-node-partial2.json",
    ]


def test_a_full_disk_or_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / ".", head(2), None)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FailureError, match="No space left on device"):
        journal.append(skip(journal.pending()[0]))
    (tmp_path / "file").write_text("")
    with pytest.raises(MisuseError, match="name a folder you may write to"):
        prepare_folder(tmp_path / "file")
    monkeypatch.setattr(journals, "range", lambda *_: (), raising=False)
    with pytest.raises(FailureError, match="no free name"):
        Journal(tmp_path, head(2), None)


def test_a_forged_partial_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, head(2), None)
    journal.append(skip(journal.pending()[0]))
    die(journal)
    forged = replace(journal.report, seed="1")
    journal.path.write_bytes(codec.encode(forged))
    with pytest.raises(ForgeryError, match="the head of the report"):
        reopen(journal.path, None)
    assert read(journal.path) == forged
