"""Whatever a benchmark does to its process becomes its outcome, and the next one runs as if nothing had been."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakefleet import ENVIRONMENT

import harness
from harness import codec
from harness.cluster import isolate, task
from harness.cluster.errand import Errand, Orders
from harness.cluster.isolate import Nursery
from harness.cluster.lease import Lease
from harness.cluster.local import run_here
from harness.cluster.nursery import _children
from harness.cluster.task import Inventory, Task, answered
from harness.device.sampler import FakeSensors
from harness.errors import FailureError, ForgeryError
from harness.measure.rounds import Effort
from harness.model import Attempt, Device, Failed, Job, Node, Outcome, Report, Skipped, TelemetrySample
from harness.proof.verify import job_of

PLUGIN = '''
"""Every way to go wrong that we could think of, and a few to go right."""
import ctypes, os, signal, sys, time
import numpy as np
from harness.registry import Case, Skip, Work, benchmark

class Stubborn(Exception):
    def __reduce__(self):
        raise TypeError("not to be pickled")

def sleep():
    if "FLAG" in os.environ:
        open(os.environ["FLAG"], "w").close()
    time.sleep(1000)

def deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)

def flood():
    for fd in (1, 2):
        for _ in range(10):
            os.write(fd, b"x" * (1 << 20))

def leave(own_session=False, nested=False):
    if os.fork() == 0:
        if own_session:
            os.setsid()
        if nested:
            os.fork()
        time.sleep(1000)

def fail(err):
    raise err

WAYS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "unnamed": lambda: os.kill(os.getpid(), 40),
    "exit": lambda: os._exit(3),
    "silent": lambda: os._exit(0),
    "quit": lambda: sys.exit("enough"),
    "last_words": lambda: (os.write(2, b"a clue\\n" + b"y" * 100_000 + b"\\n\\n"), os._exit(4)),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sleep": sleep,
    "deaf": deaf,
    "gil": lambda: ctypes.PyDLL(None).sleep(1000),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": lambda: fail(ValueError("bad news")),
    "stubborn": lambda: fail(Stubborn("no way")),
    "wordy": lambda: fail(ValueError("z" * 10_000_000)),
    "lines": lambda: fail(ValueError("one\\ntwo\\nthree")),
    "undecodable": lambda: fail(ValueError(os.fsdecode(b"caf\\xe9"))),
    "memory": lambda: fail(MemoryError("no room")),
    "allocate": lambda: np.zeros(1 << 58, dtype=np.uint8),
    "flood": flood,
    "leave": leave,
    "hide": lambda: leave(own_session=True, nested=True),
    "skip": lambda: fail(Skip("not here")),
    "pid": lambda: fail(Skip(str(os.getpid()))),
    "environment": lambda: fail(Skip(" ".join(sorted(os.environ)))),
    "good": lambda: None,
    "wrong": lambda: None,
    "wrong_later": lambda: None,
}

@benchmark(version=1, how=tuple(WAYS))
def trouble(backend, seed, *, how):
    """Go wrong."""
    WAYS[how]()
    answers = iter(range(1 << 62))
    right = {"wrong": lambda n: False, "wrong_later": lambda n: n == 0}.get(how, lambda n: True)
    return Case(run=lambda: (np.zeros(1), next(answers)), work=Work(flops=1), check=lambda answer: right(answer[1]))

@benchmark(version=1, step=tuple(range(1, 17)))
def steps(backend, seed, *, step):
    """Take half a second, and do no harm."""
    time.sleep(0.3)
    x = backend.rng(seed).uniform(1 << 8, "float64")
    return Case(run=lambda: 2 * x, work=Work(flops=1 << 8), check=lambda y: bool(((y - x) == x).all()))
'''

DEVICE = Device(uuid="CPU-test", name="test", kind="cpu", selector="cpu", sensors={})
INVENTORY = Inventory(
    node=Node(name="n"),
    environment=ENVIRONMENT,
    devices=(DEVICE,),
)
EFFORT = Effort(warmup_s=0.0, budget_s=0.01, samples=2, rounds_min=2, rounds_max=3)


def job(how: str) -> Job:
    return Job(benchmark="trouble", version=1, params={"how": how}, device_uuid=DEVICE.uuid, seed="0" * 16)


def marked(mark: str) -> set[int]:
    """Return the processes that were started with this mark in their environment; a zombie has none left."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_for(what: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "troubled").mkdir()
    (folder / "troubled" / "__init__.py").write_text(PLUGIN)
    info = folder / "troubled-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: troubled\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.benchmarks]\ntroubled = troubled\n")
    return folder


@pytest.fixture(scope="module")
def mark() -> str:
    return f"HARNESS_TEST_MARK={uuid.uuid4()}"


@pytest.fixture(scope="module")
def lease(plugin: Path, mark: str) -> Iterator[Lease]:
    """One lease for all tests: what an earlier one broke, a later one would notice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(plugin)
        patch.setenv(*mark.split("=", 1))
        with Lease() as lease:
            assert lease.measure(job("good"), DEVICE, EFFORT).measurement
            yield lease
    assert marked(mark) == set()


def nursery_pid(lease: Lease) -> int:
    process = lease._nursery._process
    assert process
    return process.pid


def hurry(monkeypatch: pytest.MonkeyPatch, seconds: float = 2) -> None:
    monkeypatch.setattr("harness.cluster.lease.deadline_s", lambda *_: seconds)


def failed(outcome: Outcome) -> Failed:
    assert outcome.failed, outcome
    assert outcome.failed.elapsed_s > 0
    assert len(outcome.failed.reason) < 1000
    assert len(outcome.failed.reason.splitlines()) == 1
    return outcome.failed


def skipped(outcome: Outcome) -> Skipped:
    assert outcome.skipped, outcome
    return outcome.skipped


def still_well(lease: Lease, mark: str) -> None:
    """Require that nothing is left of a job, and that the next one works."""
    assert marked(mark) == {nursery_pid(lease)}
    assert lease.measure(job("good"), DEVICE, EFFORT).measurement


@pytest.mark.parametrize(
    ("how", "outcome", "reason"),
    [
        ("segfault", "crashed", "signal SIGSEGV"),
        ("abort", "crashed", "signal SIGABRT"),
        ("unnamed", "crashed", "signal 40"),
        ("exit", "crashed", "exit code 3"),
        ("silent", "crashed", "the process did not answer with this job's outcome"),
        ("quit", "crashed", "exit code 1: SystemExit: enough"),
        ("last_words", "crashed", "exit code 4: yyy"),
        ("raise", "failed", "ValueError: bad news (__init__.py:"),
        ("stubborn", "failed", "Stubborn: no way"),
        ("wordy", "failed", "ValueError: zzz"),
        ("lines", "failed", "ValueError: one two three"),
        ("undecodable", "failed", "ValueError: caf"),
        ("memory", "out_of_memory", "MemoryError: no room"),
        ("allocate", "out_of_memory", "Unable to allocate"),
        ("killed", "out_of_memory", "killed from outside"),
        ("wrong", "wrong_answer", "of the first run"),
        ("wrong_later", "wrong_answer", "after the timed rounds"),
    ],
)
def test_what_goes_wrong_is_told_and_goes_no_further(
    lease: Lease, mark: str, how: str, outcome: str, reason: str
) -> None:
    told = failed(lease.measure(job(how), DEVICE, EFFORT))
    assert (told.outcome, told.job) == (outcome, job(how))
    assert reason in told.reason
    still_well(lease, mark)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sleep", "deaf", "gil", "stopped"])
def test_a_hang_of_any_kind_ends_at_the_deadline(
    lease: Lease, mark: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    still_well(lease, mark)
    with monkeypatch.context() as patch:
        hurry(patch)
        told = failed(lease.measure(job(how), DEVICE, EFFORT))
    assert (told.outcome, told.reason) == ("timeout", "still running after 2 s: killed")
    assert 2 <= told.elapsed_s < 30
    still_well(lease, mark)


@pytest.mark.parametrize("how", ["flood", "leave", "hide"])
def test_a_flood_of_output_or_a_process_left_behind_spoils_no_measurement(lease: Lease, mark: str, how: str) -> None:
    outcome = lease.measure(job(how), DEVICE, EFFORT)
    assert outcome.measurement
    assert outcome.measurement.elapsed_s < 60
    still_well(lease, mark)


def test_a_skip_is_no_failure(lease: Lease, mark: str) -> None:
    assert skipped(lease.measure(job("skip"), DEVICE, EFFORT)).reason == "not here"
    still_well(lease, mark)


def test_each_job_has_a_process_of_its_own(lease: Lease) -> None:
    pids = {skipped(lease.measure(job("pid"), DEVICE, EFFORT)).reason for _ in range(3)}
    assert len(pids | {str(nursery_pid(lease)), str(os.getpid())}) == 5


def test_keys_and_secrets_do_not_reach_a_benchmark(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin)
    for name in ("HARNESS_KEY", "RAY_ADDRESS", "AWS_SECRET_ACCESS_KEY", "HARNESS_TEST_MARK"):
        monkeypatch.setenv(name, "something")
    with Lease() as lease:
        names = skipped(lease.measure(job("environment"), DEVICE, EFFORT)).reason.split()
    assert {"HARNESS_TEST_MARK", "PYTHONPATH"} <= set(names)
    assert not [n for n in names if n.startswith(("RAY_", "AWS_", "HARNESS_KEY"))]


def test_what_a_task_is_to_see_is_set_for_it_alone(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin)
    task = codec.encode(Task(kind="measure", jobs=(job("environment"),), device=DEVICE, effort=EFFORT))
    with Nursery() as nursery:
        told = [
            skipped(codec.decode(nursery.run(task, deadline_s=60, env=env).result.strip(), Outcome)).reason.split()
            for env in ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, None)
        ]
    assert ["CUDA_VISIBLE_DEVICES" in names for names in told] == [True, "CUDA_VISIBLE_DEVICES" in os.environ]


def test_a_task_that_cannot_be_read_is_told() -> None:
    with Nursery() as nursery:
        ended = nursery.run(b"{}", deadline_s=60)
        assert (ended.how, ended.result) == ("crashed", b"")
        assert "exit code 1: harness.errors.ForgeryError" in ended.why
        empty = codec.encode(
            {"kind": "measure", "jobs": [], "device": None, "effort": None, "idle_w": None, "idle_s": 0, "live": None}
        )
        assert "a measuring task names jobs" in nursery.run(empty, deadline_s=60).why


def test_an_answer_without_end_is_refused(lease: Lease, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(isolate, "_MAX_RESULT", 100)
        told = failed(lease.measure(job("good"), DEVICE, EFFORT))
    assert (told.outcome, told.reason) == ("crashed", "its result is larger than 100 bytes")
    still_well(lease, mark)


def test_a_nursery_killed_while_idle_is_replaced(lease: Lease, mark: str) -> None:
    still_well(lease, mark)
    before = nursery_pid(lease)
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert lease.measure(job("good"), DEVICE, EFFORT).measurement
    assert nursery_pid(lease) != before


def test_a_nursery_that_dies_as_it_is_asked_costs_one_outcome(lease: Lease, mark: str) -> None:
    still_well(lease, mark)
    assert lease._nursery._sock
    lease._nursery._sock.shutdown(socket.SHUT_WR)
    told = failed(lease.measure(job("good"), DEVICE, EFFORT))
    assert (told.outcome, told.reason) == ("crashed", "the process that starts others died: Broken pipe")
    assert lease.measure(job("good"), DEVICE, EFFORT).measurement


@pytest.mark.slow
def test_a_nursery_killed_at_work_takes_its_job_along_and_is_replaced(lease: Lease, mark: str) -> None:
    still_well(lease, mark)
    killer = threading.Timer(1.5, os.kill, (nursery_pid(lease), signal.SIGKILL))
    killer.start()
    told = failed(lease.measure(job("sleep"), DEVICE, EFFORT))
    killer.join()
    assert (told.outcome, told.reason) == ("crashed", "the process that starts others died")
    wait_for(lambda: not marked(mark))
    assert lease.measure(job("good"), DEVICE, EFFORT).measurement


def test_a_nursery_that_cannot_start_says_why() -> None:
    with Nursery(("no_such_module",)) as nursery, pytest.raises(FailureError, match="No module named 'no_such_module'"):
        nursery.run(b"", deadline_s=1)


def test_the_working_folder_is_not_searched_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken in')")
    monkeypatch.chdir(tmp_path)
    with Lease() as lease:
        told = failed(lease.measure(replace(job("good"), benchmark="nowhere"), DEVICE, EFFORT))
    assert told.reason.startswith("no benchmark 'nowhere'")


def test_looking_around_may_take_as_long_as_it_was_told_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.cluster.lease._INSPECT_S", 2.0)
    with Lease() as lease:
        (seen,) = [p for p in lease.inspect(3.0).preflight if p.device_uuid.startswith("CPU-")]
    assert all(note.severity != "refuse" for note in seen.notes)


def test_devices_are_watched_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    opened: list[FakeSensors] = []

    def sensors(device: Device) -> FakeSensors:
        opened.append(FakeSensors([TelemetrySample(at_s=0.0, power_w=float(device.uuid))]))
        return opened[-1]

    monkeypatch.setattr(task, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(task, "_sensors", sensors)
    found = task.watch([replace(DEVICE, uuid=f"{n}") for n in range(16)], 10.0)
    assert slept == [10.0]
    assert {uuid: {s.power_w for s in seen.samples} for uuid, seen in found.items()} == {
        f"{n}": {float(n)} for n in range(16)
    }
    assert all(one.closed for one in opened)


def test_an_interrupted_lease_forgets_the_job(lease: Lease, mark: str) -> None:
    """In a notebook Ctrl-C ends a call and not the process; the next call must not get the answer to this one."""
    still_well(lease, mark)
    killer = threading.Timer(1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        lease.measure(job("sleep"), DEVICE, EFFORT)
    killer.join()
    wait_for(lambda: not marked(mark))
    assert skipped(lease.measure(job("skip"), DEVICE, EFFORT)).job == job("skip")


def test_what_an_interrupted_batch_had_measured_is_kept_and_nothing_said_of_the_rest(
    plugin: Path, tmp_path: Path
) -> None:
    """Two are done when Ctrl-C comes; the third, which had crashed once, would have gone on for ever: its try stays on record as one that never ended."""
    jobs = (job("good"), job("skip"), replace(job("sleep"), regime="sustained"))
    crash = Attempt(
        number=1, started_at="2026-11-25T12:00:00Z", elapsed_s=1.0, ended="crashed", reason="it was", place=None
    )
    errand = Errand(inventory=INVENTORY, jobs=jobs, past=lambda one: {"old-1": crash} if one == jobs[2] else {})
    begun: list[str] = []
    orders = Orders(
        effort=EFFORT,
        started=lambda _: None,
        out_of_time=lambda: None,
        tried=lambda _, __, ___, attempt: begun.append(attempt.ended),
    )
    ended: list[Outcome] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.cluster.errand.batches", lambda own: [tuple(own)])
        patch.setenv("FLAG", str(tmp_path / "asleep"))
        patch.syspath_prepend(plugin)
        killer = threading.Thread(target=interrupt, args=[(tmp_path / "asleep").exists, threading.get_ident()])
        killer.start()
        with pytest.raises(KeyboardInterrupt):
            ended.extend(outcome for _, outcome in run_here([errand], orders))
        killer.join()
    assert [job_of(outcome) for outcome in ended] == list(jobs[:2])
    assert ended[0].measurement
    assert ended[1].skipped
    assert begun == ["aborted"] * 3


def interrupt(when: Callable[[], bool], thread: int) -> None:
    wait_for(when)
    signal.pthread_kill(thread, signal.SIGINT)


def test_the_outcome_of_another_job_is_refused() -> None:
    theirs = codec.encode(Outcome(skipped=Skipped(job=job("exit"), reason=""))) + b"\n"
    (outcome,) = answered(theirs, [job("abort"), job("exit")])
    assert job_of(outcome) == job("exit")
    with pytest.raises(ForgeryError, match="not the outcome of a job that was asked for"):
        answered(theirs, [job("abort")])
    with pytest.raises(ForgeryError, match="not the outcome"):
        answered(theirs + theirs, [job("exit")])
    with pytest.raises(ForgeryError, match="not the outcome"):
        answered(codec.encode(Outcome()) + b"\n", [job("abort")])
    with pytest.raises(ForgeryError):
        answered(b"{}\n", [job("abort")])
    assert answered(theirs[:-1], [job("exit")]) == ()  # cut short


def test_a_crash_in_company_is_its_own_jobs_failure_and_nobody_elses(lease: Lease, mark: str) -> None:
    jobs = tuple(job(how) for how in ("good", "segfault", "skip", "raise"))
    orders = Orders(effort=EFFORT, started=lambda _: None, out_of_time=lambda: None)
    outcomes = [outcome for _, outcome in run_here([Errand(inventory=INVENTORY, jobs=jobs)], orders)]
    assert len(outcomes) == len(jobs)
    good, segfault, skip, broken = (next(o for o in outcomes if job_of(o) == one) for one in jobs)
    assert good.measurement
    assert failed(segfault).outcome == "crashed"
    (first,) = segfault.attempts
    assert (first.number, first.ended) == (1, "crashed")
    assert first.reason.startswith("in company of other jobs: signal SIGSEGV")
    assert skipped(skip).reason == "not here"
    assert failed(broken).reason.startswith("ValueError: bad news")
    still_well(lease, mark)


def test_children_are_found_by_their_parent() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert process.pid in set(_children())
        process.kill()


def environment(plugin: Path, mark: str, **more: str) -> dict[str, str]:
    name, value = mark.split("=")
    return {**os.environ, "PYTHONPATH": str(plugin), name: value, **more}


@pytest.mark.slow
def test_a_killed_owner_takes_nursery_and_job_along(plugin: Path, tmp_path: Path) -> None:
    mark, flag = f"HARNESS_TEST_MARK={uuid.uuid4()}", tmp_path / "flag"
    code = "import test_isolate as t; t.Lease().measure(t.job('sleep'), t.DEVICE, t.EFFORT)"
    paths = os.pathsep.join((str(plugin), str(Path(__file__).parent)))
    env = environment(plugin, mark, FLAG=str(flag)) | {"PYTHONPATH": paths}
    with subprocess.Popen([sys.executable, "-c", code], env=env) as owner:
        wait_for(flag.exists)
        assert len(marked(mark)) == 3
        owner.kill()
    wait_for(lambda: not marked(mark), 20)


@pytest.mark.slow
def test_ctrl_c_leaves_a_report_that_verifies(plugin: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole foreground process group."""
    mark = f"HARNESS_TEST_MARK={uuid.uuid4()}"
    command = [sys.executable, "-m", "harness", "run", "steps", "--device", "cpu", "--out", str(tmp_path)]
    with subprocess.Popen(
        command,
        env=environment(plugin, mark),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: process.poll() is not None or outcomes_in(tmp_path) > 0)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "harness: interrupted"
    assert "Traceback" not in said
    assert marked(mark) == set()
    (partial,) = tmp_path.glob("*.json")
    (verdict,) = harness.verify(partial)
    assert (verdict.accepted, verdict.complete) == (True, False)


def outcomes_in(folder: Path) -> int:
    return sum(len(codec.read(p, Report).outcomes) for p in folder.glob("*.json") if p.stat().st_size)
