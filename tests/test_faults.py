"""A cluster of fake nodes, and everything that goes wrong on one: each fault ends as it should, and nothing is lost or measured twice.

Ray, its nodes, the leases, the processes and the faults are real; the GPUs are made up (see fakefleet.py).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakedriver import Driver, each_once
from fakefleet import FAKE_DEADLINE_S, PACED, FakeLease, Nodes, fleet, orders, surroundings, to_do
from test_isolate import marked, wait_for
from test_piecework import node as priced_node
from test_plugin import install

from harness import codec
from harness.cli.fleet_quotes import quotes_through
from harness.cluster.errand import Errand
from harness.cluster.fanout import connect, inspect_on_ray, run_on_ray
from harness.cluster.local import run_here
from harness.cluster.signals import Patience
from harness.cluster.task import Inventory
from harness.errors import ForgeryError
from harness.model import Job, Measurement, Outcome
from harness.proof.verify import job_of
from harness.scoring import evidence, piecework

pytestmark = pytest.mark.slow

PLUGIN = '''
"""Ways to go wrong on a fleet, most of them once: what a file says has been done is not done again."""
import ctypes, os, signal, time
from pathlib import Path
import numpy as np
from harness.registry import Case, Skip, Work, benchmark

NOTES = Path(os.environ.get("FAKE_NOTES", ""))

def once(what):
    try:
        (NOTES / f"once-{what}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)

def fork():
    if os.fork() == 0:
        os.setsid()
        os.fork()
        os.environ["LEFT"] = "1"
        os.execve("/bin/sleep", ["sleep", "1000"], {"LEFT_BY_A_JOB": "1"})

def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

def lease():
    if once("lease"):
        os.kill(parent(os.getppid()), signal.SIGKILL)  # our parent is the nursery, its parent the lease
        time.sleep(1000)

def bus():
    (NOTES / ("lost-" + os.environ["FAKE_UUID"])).touch()
    raise RuntimeError("the GPU has fallen off the bus")

def slow():
    (NOTES / "slow-began").touch()
    if once("slow"):
        time.sleep(1000)

WAYS = {
    "segfault": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(1000),
    "deaf": deaf,
    "memory": lambda: np.zeros(1 << 58, dtype=np.uint8),
    "fork": fork,
    "lease": lease,
    "bus": bus,
    "slow": slow,
    "good": lambda: None,
    "again": lambda: None,
    "count": lambda: (NOTES / f"count-{time.monotonic_ns()}").touch(),
}

@benchmark(version=1, how=tuple(WAYS))
def mishap(backend, seed, *, how):
    """Go wrong."""
    WAYS[how]()
    x = backend.xp.arange(256.0)
    return Case(run=lambda: 2 * x, work=Work(flops=256), check=lambda y: bool((y - x == x).all()))

@benchmark(version=1, step=tuple(range(100)))
def stamp(backend, seed, *, step):
    """Say from when until when it had the device; the first and the fourth wait for another device to be at the same step."""
    began = time.monotonic()
    if step in (0, 4):
        (NOTES / f"met-{step}-{os.environ['FAKE_UUID']}").touch()
        while len(list(NOTES.glob(f"met-{step}-*"))) < 2:
            time.sleep(0.01)
    time.sleep(0.3 if os.environ["FAKE_UUID"] == "GPU-a1" else 0.02)
    raise Skip(f"{began} {time.monotonic()}")
'''
A, B = ("GPU-a0=NVIDIA H100 80GB HBM3", "GPU-a1=NVIDIA H100 80GB HBM3"), ("GPU-b0=RTX 4090", "GPU-b1=L4")


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    install(folder, "mishaps", mishap=PLUGIN, paced=PACED)
    return folder


@pytest.fixture(scope="module")
def nodes(notes: Path, plugin: Path) -> Iterator[Nodes]:
    with surroundings(plugin), fleet(notes, {"a": A, "b": B}) as held:
        yield held


@pytest.fixture(scope="module")
def ray(nodes: Nodes) -> Iterator[Any]:
    with connect(nodes.address) as ray:
        yield ray


@pytest.fixture(scope="module")
def found(ray: Any) -> dict[str, Inventory]:
    return {inventory.node.name: inventory for inventory in inspect_on_ray(ray, lease=FakeLease)}


def carry_out(ray: Any, *errands: Errand, log: list[Job] | None = None, **more: Any) -> list[Outcome]:
    return [outcome for _, outcome in run_on_ray(errands, orders(log, **more), ray)]


def ends(outcome: Outcome) -> list[tuple[int, str]]:
    return [(attempt.number, attempt.ended) for attempt in outcome.attempts]


def measured(outcome: Outcome) -> Measurement:
    assert outcome.measurement, outcome
    return outcome.measurement


def by_way(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """Return the outcomes of mishaps by how they went wrong."""
    return {str(job.params["how"]): outcome for outcome in outcomes if (job := job_of(outcome))}


def test_each_node_says_what_it_has_and_no_two_need_be_alike(found: dict[str, Inventory]) -> None:
    gpus = {name: [(d.uuid, d.name) for d in i.devices if d.kind == "cuda"] for name, i in found.items()}
    told = {"a": A, "b": B, "head": ("GPU-untold=T4",)}
    assert gpus == {name: [tuple(gpu.split("=")) for gpu in told[name]] for name in told}
    assert len({inventory.place for inventory in found.values()}) == 3


# Two runs in which all that can go wrong on nodes that stay does so, since each lease takes seconds to begin.


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of a run: the outcomes of mishaps by device and way, and from when until when stamps had their device."""

    ended: dict[tuple[str, str], Outcome]
    spans: dict[str, list[tuple[float, float]]]
    started_before_the_first_ended: float  # fraction of its jobs


def run(ray: Any, *errands: Errand, **more: Any) -> Run:
    log: list[Job] = []
    ended: dict[tuple[str, str], Outcome] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    started = None
    for _, outcome in run_on_ray(errands, orders(log, **more), ray):
        started = len(log) if started is None else started
        job = job_of(outcome)
        assert job
        if job.benchmark == "mishap":
            ended[job.device_uuid, str(job.params["how"])] = outcome
        else:
            assert outcome.skipped, outcome
            begin, end = map(float, outcome.skipped.reason.split())
            spans.setdefault(job.device_uuid, []).append((begin, end))
    count = sum(len(errand.jobs) for errand in errands)
    return Run(ended=ended, spans=spans, started_before_the_first_ended=(started or count) / count)


def both(first: Errand, *others: Errand) -> Errand:
    """Return one errand for the jobs of several, on the same node."""
    return replace(first, jobs=tuple(job for errand in (first, *others) for job in errand.jobs))


@pytest.fixture(scope="module")
def broken(ray: Any, found: dict[str, Inventory]) -> Run:
    """Processes and leases break; and two errands are for the same GPU, which its two leases must not do at once."""
    a, b = found["a"], found["b"]
    return run(
        ray,
        to_do(a, "GPU-a0", "stamp", "sustained", step=[0, 1, 2]),  # one after the other, alone
        both(
            to_do(a, "GPU-a0", "stamp", "sustained", step=[50, 51, 52]),
            to_do(a, "GPU-a0", "mishap", how=["segfault", "fork", "good"]),  # all three, in one process
        ),
        to_do(a, "GPU-a1", "mishap", "sustained", how=["lease", "hang"]),
        both(
            to_do(b, "GPU-b0", "stamp", "sustained", step=[0, 1, 2]),
            to_do(b, "GPU-b0", "mishap", how=["deaf", "memory"]),
        ),
    )


def test_a_device_does_one_thing_at_a_time_while_others_work_and_results_come_as_they_are_made(broken: Run) -> None:
    """Ray only counts GPUs: it is the lease that keeps off what another one has."""
    assert {uuid: len(own) for uuid, own in broken.spans.items()} == {"GPU-a0": 6, "GPU-b0": 3}
    for own in broken.spans.values():
        assert not any(overlap(a, b) for a, b in itertools.combinations(own, 2))
    assert any(overlap(a, b) for a in broken.spans["GPU-a0"] for b in broken.spans["GPU-b0"])
    assert broken.started_before_the_first_ended < 0.5


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def test_what_breaks_a_process_is_told_and_goes_no_further(broken: Run) -> None:
    ended = {how: outcome for (_, how), outcome in broken.ended.items()}
    failed = {how: o.failed.outcome for how, o in ended.items() if o.failed}
    assert failed == {"segfault": "crashed", "hang": "timeout", "deaf": "timeout", "memory": "out_of_memory"}
    # In company one brings all down: the last try of each is its own.
    assert ends(ended["segfault"]) == [(1, "crashed")]
    assert ends(ended["hang"]) == [(1, "timeout")]
    assert ends(ended["deaf"]) == [(1, "timeout")]
    for how in ("fork", "good"):
        measured(ended[how])
        assert ends(ended[how]) == [(1, "crashed")]  # in the company of the one that crashed
    reason = ended["hang"].failed.reason if ended["hang"].failed else ""
    assert reason == f"still running after {FAKE_DEADLINE_S:.0f} s: killed"
    wait_for(lambda: not marked("LEFT_BY_A_JOB=1"))


def test_a_killed_lease_is_a_lost_try_and_the_next_one_is_measured(broken: Run) -> None:
    outcome = broken.ended["GPU-a1", "lease"]
    measured(outcome)
    assert ends(outcome) == [(1, "lost")]
    assert outcome.attempts[0].reason.startswith("its lease was lost: ")


@pytest.fixture(scope="module")
def disturbed(ray: Any, found: dict[str, Inventory], notes: Path) -> Run:
    """The GPUs of a node work together until one falls off the bus; and a stranger computes on another node's."""
    (notes / "busy-GPU-b0").write_text("4711")
    ended = run(
        ray,
        both(
            to_do(found["a"], "GPU-a0", "stamp", "sustained", step=range(1, 5)),
            to_do(found["a"], "GPU-a0", "mishap", "sustained", how=["bus", "good"]),
            to_do(found["a"], "GPU-a1", "stamp", "sustained", step=range(1, 5)),
            to_do(found["a"], "GPU-a1", "mishap", "sustained", how=["good"]),
        ),
        to_do(found["b"], "GPU-b0", "mishap", how=["good"]),
        together=True,
    )
    (notes / "lost-GPU-a0").unlink()
    return ended


def test_together_the_gpus_of_a_node_begin_each_batch_when_both_are_done_with_the_last(disturbed: Run) -> None:
    """One takes fifteen times as long as the other, which would otherwise run ahead; at the last step each waits until the other has begun."""
    rounds = list(zip(*disturbed.spans.values(), strict=True))
    assert len(rounds) == 4
    for earlier, later in itertools.pairwise(rounds):
        assert max(end for _, end in earlier) <= min(begin for begin, _ in later)
    assert overlap(*rounds[-1])


def test_a_gpu_lost_in_the_middle_ends_its_queue_and_no_other(disturbed: Run) -> None:
    bus, rest = disturbed.ended["GPU-a0", "bus"].failed, disturbed.ended["GPU-a0", "good"].failed
    assert bus
    assert rest
    assert bus.outcome == "lost"
    assert "the driver does not list its device any more" in bus.reason
    assert rest.reason == "its device is out of the run: the driver does not list its device any more"
    measured(disturbed.ended["GPU-a1", "good"])


def test_a_gpu_that_somebody_else_computes_on_is_not_believed_unless_forced(
    disturbed: Run, found: dict[str, Inventory], notes: Path, plugin: Path
) -> None:
    outcome = disturbed.ended["GPU-b0", "good"]
    assert outcome.failed
    assert outcome.failed.outcome == "contended"
    assert "other processes computed on the GPU: 4711" in outcome.failed.reason
    assert ends(outcome) == [(1, "contended"), (2, "contended")]
    errand = to_do(found["b"], "GPU-b0", "mishap", how=["good"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_NOTES", str(notes))
        patch.syspath_prepend(plugin)
        ((_, forced),) = run_here([errand], orders(force=True))
    (notes / "busy-GPU-b0").unlink()
    measured(forced)


def test_a_fleets_quotes_by_the_cores_of_three_nodes_are_those_of_this_process_to_the_byte(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piecework, "_CHUNK_BYTES", 1)
    for at in range(12):
        (tmp_path / f"{at:03}.json").write_bytes(codec.encode(priced_node(at)))
    here = evidence.quote(tmp_path, profile="hpc", history=[tmp_path])
    there = quotes_through(ray, piecework.order(profile="hpc", history=[tmp_path]), [tmp_path])
    assert [codec.encode(one) for one in there] == [codec.encode(one) for one in here] != []
    (tmp_path / "007.json").write_bytes(b"{}")
    with pytest.raises(ForgeryError, match=f"in {tmp_path}/007.json"):
        tuple(quotes_through(ray, piecework.order(), [tmp_path]))


def test_a_request_that_ray_can_never_meet_is_reported_in_seconds(ray: Any, found: dict[str, Inventory]) -> None:
    began = time.monotonic()
    (outcome,) = carry_out(ray, to_do(found["head"], "GPU-untold", "mishap", how=["good"]), patience=Patience())
    assert time.monotonic() - began < 5
    assert outcome.failed
    assert "Ray was told of no GPU on its node" in outcome.failed.reason


def test_a_lease_that_is_not_to_be_had_is_reported_in_seconds(ray: Any, found: dict[str, Inventory]) -> None:
    class Holder:
        def hold(self) -> bool:
            return True

    selector = {"ray.io/node-id": found["b"].place}
    holder = ray.remote(num_gpus=2, num_cpus=0)(Holder).options(label_selector=selector).remote()
    assert ray.get(holder.hold.remote(), timeout=30)
    began = time.monotonic()
    (outcome,) = carry_out(ray, to_do(found["b"], "GPU-b0", "mishap", how=["good"]), patience=Patience(lease_s=1))
    ray.kill(holder)
    assert time.monotonic() - began < 5
    assert outcome.failed
    assert "it was not to be had within 1 s" in outcome.failed.reason


def test_a_run_whose_driver_is_killed_twice_measures_every_job_once(nodes: Nodes, ray: Any, tmp_path: Path) -> None:
    """The second time with half a line at the end of its log, as a power cut would leave it."""
    out = tmp_path / "out"
    drive = partial(Driver, "b", tmp_path, "--ray", nodes.address, env={**os.environ, "FAKE_GPUS": ",".join(B)})
    resume: tuple[str, ...] = ("paced", "--device", "cuda:0", "--out", str(out))
    for kill_after in (3, 4):
        driver = drive(*resume)
        driver.work_until(kill_after)
        time.sleep(0.1)  # in the middle of the next one
        driver.process.kill()
        wait_for(lambda ran=driver: ran.over)  # type: ignore[misc]
        (growing,) = out.glob("*-partial.json")
        with growing.with_suffix(".jsonl").open("ab") as log:
            log.write(b'{"half a li')
        resume = ("--resume", str(growing))
    last = drive(*resume)
    assert last.code() == 0, last.log.read_text()
    (final,) = out.iterdir()
    wasted = [a.ended for o in each_once(final) for a in o.attempts]
    assert 1 <= len(wasted) <= 4
    assert set(wasted) == {"aborted"}


# What follows kills nodes; it comes last.


def torn(ray: Any, errands: Sequence[Errand], began: Path, tear: Callable[[], None], **more: Any) -> list[Outcome]:
    """Carry errands out, and in the middle of it tear nodes away: here, since Ray starts nodes in the main thread only."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(carry_out, ray, *errands, **more)
        wait_for(lambda: began.exists() or future.done())
        tear()
        return future.result(timeout=90)


def test_a_node_that_is_torn_away_and_comes_back_goes_on_and_what_it_had_measured_counts(
    nodes: Nodes, ray: Any, found: dict[str, Inventory], notes: Path
) -> None:
    """One of its GPUs is at work, and that is lost; the other had done its work, and only the word of it is lost."""

    def tear() -> None:
        wait_for((notes / "muted-GPU-b1").exists)
        nodes.kill("b")
        nodes.add("b", *B)

    (notes / "mute-GPU-b1").touch()
    errands = [
        to_do(found["b"], "GPU-b0", "mishap", how=["slow"]),
        to_do(found["b"], "GPU-b1", "mishap", how=["count"]),
        to_do(found["a"], "GPU-a0", "mishap", how=["good"]),
    ]
    ended = by_way(torn(ray, errands, notes / "slow-began", tear))
    for outcome in ended.values():
        measured(outcome)
    assert ends(ended["good"]) == []
    (lost,) = ended["slow"].attempts
    assert (lost.number, lost.ended, lost.place) == (1, "lost", found["b"].place)
    (unheard,) = ended["count"].attempts
    assert (unheard.number, unheard.ended) == (1, "lost")
    assert unheard.reason.endswith("; its answer lay in its node's spool, and counts")
    assert len(list(notes.glob("count-*"))) == 1
    kept = [path for path in (notes / "state-b").rglob("*-*") if not path.name.startswith((".", "lock-"))]
    assert kept == []


def test_a_node_that_does_not_come_back_is_given_up_and_the_others_finish(
    nodes: Nodes, ray: Any, found: dict[str, Inventory], notes: Path
) -> None:
    for note in ("slow-began", "once-slow"):
        (notes / note).unlink(missing_ok=True)
    errands = [
        to_do(replace(found["b"], place=nodes.place("b")), "GPU-b0", "mishap", "sustained", how=["slow", "again"]),
        to_do(found["a"], "GPU-a0", "mishap", how=["good"]),
    ]
    tear = partial(nodes.kill, "b")
    ended = by_way(torn(ray, errands, notes / "slow-began", tear, patience=Patience(rejoin_s=3)))
    assert ended["slow"].failed
    assert ended["slow"].failed.outcome == "lost"
    assert ended["again"].failed
    assert "not seen again within 3 s" in ended["again"].failed.reason
    measured(ended["good"])
