"""Through Ray the same jobs give the same records, and what goes wrong in one stays there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakefleet import ENVIRONMENT

import harness
from harness import codec
from harness.cluster import fanout
from harness.cluster.errand import Errand, Orders
from harness.cluster.fanout import connect, inspect_on_ray, run_on_ray
from harness.cluster.lease import Order
from harness.cluster.signals import Patience
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory
from harness.errors import FailureError, MisuseError
from harness.measure.rounds import Effort
from harness.model import Device, Job, Node, Outcome, Skipped

SEED = "5eed"
PLUGIN = '''"""A benchmark that breaks its process, and one that looks around."""
import os
from harness.registry import Case, Skip, Work, benchmark

@benchmark(version=1)
def surroundings(backend, seed):
    """Say what a library that computes on many cores would see."""
    raise Skip(f"{os.environ.get('OMP_NUM_THREADS')} {os.nice(0)} {[k for k in os.environ if k.startswith('RAY_')]}")

@benchmark(version=1)
def crasher(backend, seed):
    """End the process in the middle of a run."""
    return Case(run=os.abort, work=Work(flops=1), check=lambda _: True)
'''


@pytest.fixture(scope="module")
def through_ray(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run through a cluster of this machine, in a process of its own: Ray leaves threads and handlers behind."""
    folder = tmp_path_factory.mktemp("ray")
    package = folder / "plugin" / "ray_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "crasher.py").write_text(PLUGIN)
    info = folder / "plugin" / "ray_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ray_plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[harness.benchmarks]\nray_plugin = ray_plugin\n")
    env = {**os.environ, "PYTHONPATH": str(folder / "plugin"), "RAY_ADDRESS": "127.0.0.1:1", "MARK_OF_THIS_TEST": "1"}
    names, out = ("launch", "fft", "crasher", "surroundings"), ("--out", str(folder / "out"), "--json")
    return subprocess.run(
        [sys.executable, "-m", "harness", "run", *names, "--ray", "local", "--device", "cpu", "--seed", SEED, *out],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def outcomes(document: dict[str, Any]) -> list[dict[str, Any]]:
    (entry,) = document["reports"]
    found: list[dict[str, Any]] = entry["report"]["outcomes"]
    return found


@pytest.mark.slow
def test_a_crash_on_ray_is_an_outcome_and_the_exit_code_says_so(
    through_ray: subprocess.CompletedProcess[str],
) -> None:
    assert through_ray.returncode == 1, through_ray.stderr
    failed = [o["failed"] for o in outcomes(json.loads(through_ray.stdout)) if o["failed"]]
    assert [f["job"]["benchmark"] for f in failed] == ["crasher"]
    assert failed[0]["outcome"] == "crashed"
    assert "SIGABRT" in failed[0]["reason"]


# What passes with time, and what follows from it.
OF_TIME = {
    *(
        "created_at",
        "sealed_at",
        "started_at",
        "elapsed_s",
        "loaded_s",
        "time_s",
        "interval",
        "warmup_times_s",
        "rounds",
    ),
    *("telemetry", "state", "reason", "ceiling", "clock_mhz", "energy", "activity"),
    *("load_average_1min", "memory_free_bytes", "idle_power_w", "notes", "seal"),
}


def timeless(value: Any, at: str = "") -> Any:
    """Return a document with no more than the type of what depends on when it was made."""
    if at in OF_TIME:
        return None if value is None else type(value).__name__
    if isinstance(value, dict):
        return {name: timeless(inner, name) for name, inner in value.items()}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_ray_and_this_process_give_records_that_differ_in_nothing_but_time_and_node(
    through_ray: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    (finished,) = harness.run("launch", "fft", device="cpu", seed=SEED, out=tmp_path)
    here = json.loads(finished.path.read_bytes())
    there = json.loads(through_ray.stdout)["reports"][0]["report"]
    names = {job["benchmark"] for job in here["plan"]}
    for report in (here, there):
        report["plan"] = [job for job in report["plan"] if job["benchmark"] in names]
        report["outcomes"] = sorted(
            (o for o in report["outcomes"] if json.loads(key(o))["benchmark"] in names), key=key
        )
        for outcome in report["outcomes"]:
            outcome["attempts"] = []  # over there in the company of one that crashed
    assert len(here["outcomes"]) > 2
    assert all(o["measurement"]["time_s"] > 0 for o in (*here["outcomes"], *there["outcomes"]))
    assert timeless(here) == timeless(there)


def key(outcome: dict[str, Any]) -> str:
    result = outcome["measurement"] or outcome["failed"] or outcome["skipped"]
    return json.dumps(result["job"], sort_keys=True)


@pytest.mark.slow
def test_a_benchmark_sees_nothing_of_ray(through_ray: subprocess.CompletedProcess[str]) -> None:
    """Ray gives its workers one thread and the lowest priority: a matrix product would be half as fast, or less."""
    (skipped,) = [o["skipped"] for o in outcomes(json.loads(through_ray.stdout)) if o["skipped"]]
    assert skipped["reason"] == f"{os.environ.get('OMP_NUM_THREADS')} {os.nice(0)} []"


@pytest.mark.slow
def test_ray_itself_says_nothing_and_leaves_nothing_behind(through_ray: subprocess.CompletedProcess[str]) -> None:
    assert len(through_ray.stdout.splitlines()) == 1
    assert "raylet" not in through_ray.stderr
    assert "Traceback" not in through_ray.stderr
    deadline = time.monotonic() + 20
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left_behind()


def left_behind() -> list[str]:
    """Find live processes of that run, by the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"MARK_OF_THIS_TEST=1" in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [command for command in found if command]


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:notaport", "auto"])
def test_an_address_that_is_none_is_misuse(address: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="HOST:PORT"):
        harness.run("launch", ray=address, out=tmp_path)


def test_an_address_where_nobody_listens_is_refused_before_ray_is_imported(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: a connection is refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MisuseError, match=f"no Ray cluster answers at '{address}'"):
            harness.run("launch", ray=address, out=tmp_path)
    assert not list(tmp_path.iterdir())


class RayError(Exception):
    """What all of Ray's errors derive from."""


@dataclass(frozen=True, eq=False)
class Ref:
    """A call's answer: bytes, an error, or nothing at all."""

    answer: object


class FakeRay:
    """A cluster of one node in this process, whose leases answer what they are told: bytes, an error, or nothing at all."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, answers: Callable[[Job], object], pong: object = b"") -> None:
        self.answers, self.pong = answers, pong
        self.gpus: list[int] = []  # that each lease asked for
        self.killed = 0

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"NodeID": "node-2", "Alive": False, "Resources": {}}
        return [{"NodeID": "node-1", "Alive": True, "Resources": {"GPU": 2.0}}, gone]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address="", get_node_id=lambda: "node-1")

    def remote(self, *, num_gpus: int, num_cpus: int, max_restarts: int, max_task_retries: int, **more: int) -> Any:
        assert (num_cpus, max_restarts, max_task_retries, more) == (0, 0, 0, {"max_concurrency": 4})
        self.gpus.append(num_gpus)

        def method(answer: Callable[..., object]) -> Any:
            return SimpleNamespace(remote=lambda *sent: Ref(answer(*sent)))

        actor = SimpleNamespace(
            inspect=method(lambda _: b"{}"),
            collect=method(lambda *_: b"[]"),
            acknowledge=method(lambda _: b""),
            ping=method(lambda: self.pong),
            measure=method(lambda order, _: self.measured(codec.decode(order, Order))),
        )
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: actor))

    def measured(self, order: Order) -> object:
        answers = [self.answers(job) for job in order.jobs]
        outcomes = tuple(a for a in answers if isinstance(a, Outcome))
        if len(outcomes) < len(answers):
            return next(a for a in answers if not isinstance(a, Outcome))
        return codec.encode(Reply(attempt=order.attempt, started_at="", elapsed_s=0.0, outcomes=outcomes))

    def wait(self, refs: list[Ref], *, timeout: float, num_returns: int = 1) -> tuple[list[Ref], list[Ref]]:
        return [r for r in refs if r.answer is not ...], [r for r in refs if r.answer is ...]

    def get(self, ref: Ref, *, timeout: float) -> object:
        if isinstance(ref.answer, Exception):
            raise ref.answer
        return ref.answer

    def kill(self, actor: object) -> None:
        self.killed += 1


def skip(job: Job) -> Outcome:
    return Outcome(skipped=Skipped(job=job, reason="a test"))


def errand(*uuids: str, place: str = "node-1") -> Errand:
    """Return one job for each of these devices; those called CPU-... are CPUs."""
    devices = tuple(
        Device(uuid=u, name=u, kind="cpu" if u.startswith("CPU") else "cuda", selector=u, sensors={})
        for u in dict.fromkeys(uuids)
    )
    jobs = tuple(Job(benchmark="b", version=1, params={"n": i}, device_uuid=u, seed="0") for i, u in enumerate(uuids))
    return Errand(
        inventory=Inventory(node=Node(name="n"), place=place, environment=ENVIRONMENT, devices=devices), jobs=jobs
    )


HASTE = Patience(lease_s=0.2, grace_s=-119.9, ping_s=0.1, rejoin_s=0.2, backoff_s=0.01)


def carry_out(
    ray: FakeRay, errand: Errand, reason: str | None = None, patience: Patience = HASTE
) -> tuple[list[Outcome], list[Job]]:
    """Return the outcomes in the order they came, and the jobs in the order they were started."""
    started: list[Job] = []
    orders = Orders(
        effort=Effort(warmup_s=0.0, budget_s=0.0), started=started.append, out_of_time=lambda: reason, patience=patience
    )
    return [outcome for _, outcome in run_on_ray([errand], orders, ray)], started


def test_a_cpu_has_its_turn_after_the_gpus_of_its_node() -> None:
    ray, work = FakeRay(answers=skip), errand("CPU-1", "GPU-1", "GPU-2", "CPU-1", "GPU-1")
    outcomes_, started = carry_out(ray, work)
    assert [job.device_uuid for job in started] == ["GPU-1", "GPU-1", "GPU-2", "CPU-1", "CPU-1"]
    assert sorted(map(str, (o.skipped.job for o in outcomes_ if o.skipped))) == sorted(map(str, work.jobs))
    assert (ray.gpus, ray.killed) == ([1, 1, 0], 3)


@pytest.mark.parametrize(
    ("answer", "how", "reason"),
    [
        (RayError("the actor died"), "lost", "its lease was lost: RayError"),
        (b"no record", "crashed", "its lease was lost: ForgeryError"),
        (None, "lost", "its lease was lost: TypeError"),
        (..., "timeout", "its lease lives, but did not answer in time and was killed"),
    ],
)
def test_a_lost_lease_is_an_attempt_and_the_next_try_gets_a_new_one(answer: object, how: str, reason: str) -> None:
    answers = iter([answer])
    ray = FakeRay(answers=lambda job: next(answers, skip(job)))
    (outcome,), started = carry_out(ray, errand("CPU-1"))
    assert outcome.skipped
    (attempt,) = outcome.attempts
    assert (attempt.number, attempt.ended, attempt.reason, attempt.place) == (1, how, reason, "node-1")
    assert len(started) == 2
    assert (len(ray.gpus), ray.killed) == (2, 2)


def test_a_lease_that_answers_nothing_at_all_is_lost() -> None:
    answers: Iterator[object] = iter([...])
    ray = FakeRay(answers=lambda job: next(answers, skip(job)), pong=...)
    (outcome,), _ = carry_out(ray, errand("CPU-1"))
    (attempt,) = outcome.attempts
    assert (attempt.ended, attempt.reason) == ("lost", "its lease did not answer in time, nor a ping for 0.1 s")


def test_the_outcome_of_another_job_is_refused() -> None:
    work = errand("CPU-1")
    other = replace(work.jobs[0], seed="1")
    (outcome,), _ = carry_out(FakeRay(answers=lambda _: skip(other)), work)
    assert outcome.failed
    assert (outcome.failed.outcome, outcome.failed.reason) == ("crashed", "its lease was lost: ForgeryError")
    assert [a.ended for a in outcome.attempts] == ["crashed"]


def test_a_node_that_left_is_awaited_for_a_while_and_a_spent_budget_skips_what_is_left() -> None:
    ray = FakeRay(answers=skip)
    (outcome,), started = carry_out(ray, errand("CPU-1", place="node-2"))
    assert outcome.failed
    assert outcome.failed.outcome == "lost"
    assert outcome.failed.reason == "its device is out of the run: it was lost and not seen again within 0.2 s"
    (outcome,), _ = carry_out(ray, errand("CPU-1"), reason="too late")
    assert outcome.skipped
    assert outcome.skipped.reason == "too late"
    assert (started, ray.gpus) == ([], [])


def test_a_gpu_that_ray_was_not_told_of_is_reported_at_once() -> None:
    ray = FakeRay(answers=skip)
    ray.nodes = lambda: [{"NodeID": "node-1", "Alive": True, "Resources": {}}]  # type: ignore[method-assign]
    (outcome,), _ = carry_out(ray, errand("GPU-1"), patience=Patience())
    assert outcome.failed
    assert outcome.failed.reason.endswith("Ray was told of no GPU on its node: start the node so that it sees them")


def test_a_node_that_does_not_say_what_it_has_fails_the_run() -> None:
    ray = FakeRay(answers=skip)
    with pytest.raises(FailureError, match="node node-1 of the Ray cluster did not say what it has: ForgeryError"):
        inspect_on_ray(ray)
    assert ray.killed == 1


def test_an_error_of_ray_itself_ends_a_run_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    fake = SimpleNamespace(
        init=lambda **_: None, shutdown=lambda: ended.append("shutdown"), exceptions=FakeRay.exceptions
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(fanout, "prepare", lambda _: nullcontext())
    with pytest.raises(FailureError, match=r"at '10.0.0.1:1' was lost \(RayError\)"), connect("10.0.0.1:1"):
        raise RayError
    assert ended == ["shutdown"]


def test_an_interrupted_run_gives_its_devices_back() -> None:
    ray = FakeRay(answers=skip)
    orders = Orders(effort=Effort(warmup_s=0.0, budget_s=0.0), started=lambda _: None, out_of_time=lambda: None)
    following = run_on_ray([errand("CPU-1", "CPU-1")], orders, ray)
    next(following)
    assert isinstance(following, Generator)
    following.close()
    assert (len(ray.gpus), ray.killed) == (1, 1)
