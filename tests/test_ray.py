"""Through Ray the same jobs give the same records, and what goes wrong in one stays there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import harness
from harness import codec
from harness.cluster import fanout
from harness.cluster import plan as plans
from harness.cluster.fanout import Errand, Orders, inspect_on_ray, run_on_ray
from harness.cluster.task import Inventory
from harness.errors import FailureError, MisuseError
from harness.measure.rounds import Effort
from harness.model import Device, Environment, Job, Node, Outcome, Skipped

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


@pytest.mark.slow
def test_ray_and_this_process_give_the_same_records_but_for_time(
    through_ray: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    there = {key(o): o["measurement"] for o in outcomes(json.loads(through_ray.stdout)) if o["measurement"]}
    (finished,) = harness.run("launch", "fft", device="cpu", seed=SEED, out=tmp_path)
    report_here, report_there = (
        json.loads(finished.path.read_bytes()),
        json.loads(through_ray.stdout)["reports"][0]["report"],
    )
    here = report_here["outcomes"]
    for field in ("schema", "devices", "emulated", "node", "preset", "seed"):
        assert report_here[field] == report_there[field]
    assert {key(o) for o in here} == set(there)
    for o in here:
        ours, theirs = o["measurement"], there[key(o)]
        assert ours.keys() == theirs.keys()
        for field in ("job", "work", "metric", "answer_digest"):
            assert ours[field] == theirs[field]


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


class FakeRay:
    """A cluster of one node in this process, whose leases answer what they are told: bytes, an error, or nothing at all."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, answers: Callable[[Job], object]) -> None:
        self.answers = answers
        self.gpus: list[int] = []  # that each lease asked for
        self.killed = 0

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"NodeID": "node-2", "Alive": False, "Resources": {}}
        return [{"NodeID": "node-1", "Alive": True, "Resources": {"GPU": 1.0}}, gone]

    def remote(self, *, num_gpus: int, num_cpus: int, max_restarts: int, max_task_retries: int) -> Any:
        assert (num_cpus, max_restarts, max_task_retries) == (0, 0, 0)
        self.gpus.append(num_gpus)
        measure = SimpleNamespace(remote=lambda jobs, *_: self.answers(*codec.decode(jobs, tuple[Job, ...])))
        actor = SimpleNamespace(measure=measure, inspect=SimpleNamespace(remote=lambda _: b"{}"))
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: actor))

    def wait(self, refs: list[object], *, timeout: float, num_returns: int = 1) -> tuple[list[object], list[object]]:
        return [r for r in refs if r is not ...], [r for r in refs if r is ...]

    def get(self, ref: object, *, timeout: float) -> object:
        if isinstance(ref, Exception):
            raise ref
        return ref

    def kill(self, actor: object) -> None:
        self.killed += 1


ENVIRONMENT = Environment(
    harness_version="0",
    python="3",
    os="Linux",
    packages={},
    cpu_limit_count=None,
    niceness=None,
    load_average_1min=None,
    memory_free_bytes=None,
    governor=None,
)


def skip(job: Job) -> bytes:
    return codec.encode(Outcome(skipped=Skipped(job=job, reason="a test"))) + b"\n"


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_TOGETHER", 1)


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


def carry_out(ray: FakeRay, errand: Errand, reason: str | None = None) -> tuple[list[Outcome], list[Job]]:
    """Return the outcomes in the order they came, and the jobs in the order they were started."""
    started: list[Job] = []
    effort = Effort(warmup_s=0.0, budget_s=0.0)
    orders = Orders(effort=effort, started=started.append, out_of_time=lambda: reason)
    return [outcome for _, outcome in run_on_ray([errand], orders, ray)], started


@pytest.mark.usefixtures("one_by_one")
def test_a_cpu_has_its_turn_after_the_gpus_of_its_node() -> None:
    ray, work = FakeRay(answers=skip), errand("CPU-1", "GPU-1", "GPU-2", "CPU-1", "GPU-1")
    outcomes_, started = carry_out(ray, work)
    assert [job.device_uuid for job in started] == ["GPU-1", "GPU-2", "GPU-1", "CPU-1", "CPU-1"]
    assert sorted(map(str, (o.skipped.job for o in outcomes_ if o.skipped))) == sorted(map(str, work.jobs))
    assert (ray.gpus, ray.killed) == ([1, 1, 0], 3)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize(
    ("answer", "how", "reason"),
    [
        (RayError("the actor died"), "crashed", "its lease was lost: RayError"),
        (b"no record\n", "crashed", "its lease was lost: ForgeryError"),
        (None, "crashed", "its lease was lost: TypeError"),
        (..., "timeout", "its lease did not answer in time and was killed"),
    ],
)
def test_a_lost_lease_is_an_outcome_and_the_next_job_gets_a_new_one(
    monkeypatch: pytest.MonkeyPatch, answer: object, how: str, reason: str
) -> None:
    for wait in ("_LEASE_S", "_GRACE_S"):
        monkeypatch.setattr(fanout, wait, 0.0)
    monkeypatch.setattr(fanout, "deadline_s", lambda *_: 0.1)
    ray = FakeRay(answers=lambda job: answer if job.params["n"] == 0 else skip(job))
    (lost, next_), _ = carry_out(ray, errand("CPU-1", "CPU-1"))
    assert lost.failed
    assert (lost.failed.outcome, lost.failed.reason, lost.failed.job.params["n"]) == (how, reason, 0)
    assert next_.skipped
    assert (len(ray.gpus), ray.killed) == (2, 2)


@pytest.mark.usefixtures("one_by_one")
def test_the_outcome_of_another_job_is_refused() -> None:
    work = errand("CPU-1", "CPU-1")
    (first, _), _ = carry_out(FakeRay(answers=lambda _: skip(work.jobs[1])), work)
    assert first.failed
    assert first.failed.reason == "its lease was lost: ForgeryError"


def test_a_node_that_left_or_a_spent_budget_skips_what_is_left() -> None:
    ray = FakeRay(answers=skip)
    (outcome,), started = carry_out(ray, errand("CPU-1", place="node-2"))
    assert outcome.skipped
    assert outcome.skipped.reason == "its node has left the cluster"
    (outcome,), _ = carry_out(ray, errand("CPU-1"), reason="too late")
    assert outcome.skipped
    assert outcome.skipped.reason == "too late"
    assert (started, ray.gpus) == ([], [])


def test_a_node_that_does_not_say_what_it_has_fails_the_run() -> None:
    ray = FakeRay(answers=skip)
    with pytest.raises(FailureError, match="node node-1 of the Ray cluster did not say what it has: ForgeryError"):
        inspect_on_ray(ray)
    assert ray.killed == 1


@pytest.mark.usefixtures("one_by_one")
def test_an_interrupted_run_gives_its_devices_back() -> None:
    ray = FakeRay(answers=skip)
    orders = Orders(effort=Effort(warmup_s=0.0, budget_s=0.0), started=lambda _: None, out_of_time=lambda: None)
    following = run_on_ray([errand("CPU-1", "CPU-1")], orders, ray)
    next(following)
    assert isinstance(following, Generator)
    following.close()
    assert (len(ray.gpus), ray.killed) == (1, 1)
