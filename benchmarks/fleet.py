"""What a fleet costs: the time around each measurement, against one plain exclusive Ray task a benchmark, and per result up to 50,000.

    uv run python benchmarks/fleet.py [--nodes 24] [--each 20] [--plain 96] [--results 10000 50000] [--markdown]

The cluster is real and on this machine; its nodes have one made-up GPU each (tests/fakefleet.py). A measurement is a benchmark that does
nearly nothing, in a process of its own as always; its own time is what that process took. The overhead is everything else from one result
of a device to the next: scheduler, Ray, lease, spool with its fsync, and the outcome's way into the journal, with another. The plain tasks
do the same measurements the way Ray's own documentation would: `num_gpus=1, max_calls=1`, a new worker for each, no retries. The last part
measures nothing at all, so that what is left is the cost of a result.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fakefleet import ENVIRONMENT, QUICK, FakeLease, IdleLease, fleet, orders, surroundings

from harness import codec
from harness.cluster.errand import Errand
from harness.cluster.fanout import connect, inspect_on_ray, run_on_ray
from harness.cluster.journal import Journal
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory, Task
from harness.measure.runner import now
from harness.model import Job, Outcome, Report, Skipped
from harness.proof.seal import OPEN

__all__ = ["main"]

PLUGIN = '''
"""Next to nothing."""
from harness.registry import Case, Work, benchmark

@benchmark(version=1, n=tuple(range(10000)))
def nothing(backend, seed, *, n):
    """Double a few numbers."""
    x = backend.rng(seed).uniform(1 << 8, "float64")
    return Case(run=lambda: 2 * x, work=Work(flops=1 << 8), check=lambda y: bool(((y - x) == x).all()))
'''


class TellingLease(FakeLease):
    """A lease that tells how long the process of each measurement took, instead of what it measured."""

    def _attempt(self, attempt: str, task: Task, deadline: float, env: Mapping[str, str]) -> Reply:
        reply = super()._attempt(attempt, task, deadline, env)
        good = all(outcome.measurement for outcome in reply.outcomes)
        told = tuple(
            Outcome(skipped=Skipped(job=job, reason=str(reply.elapsed_s) if good else "nan")) for job in task.jobs
        )
        return replace(reply, outcomes=told)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result."""

    what: str
    value: str


def errands(found: Sequence[Inventory], each: int) -> list[Errand]:
    work = []
    for inventory in found:
        for device in (d for d in inventory.devices if d.kind == "cuda"):
            jobs = tuple(
                Job(
                    benchmark="nothing",
                    version=1,
                    params={"n": n},
                    device_uuid=device.uuid,
                    seed=f"{n:016x}",
                    regime="sustained",  # so that each is a batch of its own
                )
                for n in range(each)
            )
            work.append(Errand(inventory=inventory, jobs=jobs, run=str(time.monotonic_ns())))
    return work


@contextmanager
def journals(work: Sequence[Errand], folder: Path) -> Iterator[dict[str, Journal]]:
    made = {}
    for errand in work:
        head = Report(
            schema="harness.report/2",
            created_at=now(),
            sealed_at=now(),
            node=errand.inventory.node,
            environment=ENVIRONMENT,
            devices=errand.inventory.devices,
            preflight=(),
            emulated=False,
            preset="quick",
            seed="0",
            plan=errand.jobs,
            outcomes=(),
            previous=None,
            seal=OPEN,
        )
        made[errand.inventory.node.name] = Journal(folder, head, None)
    try:
        yield made
    finally:
        for journal in made.values():
            journal.close()


def through_leases(ray: Any, found: Sequence[Inventory], each: int, lease: Any) -> tuple[float, float, list[float]]:
    """Return results a second once all leases are there, seconds until then, and the overheads."""
    work = errands(found, each)
    last: dict[str, float] = {}
    overheads: list[float] = []
    began = time.monotonic()
    first = 0.0
    with tempfile.TemporaryDirectory() as folder, journals(work, Path(folder)) as books:
        for errand, outcome in run_on_ray(work, orders(lease=lease), ray):
            books[errand.inventory.node.name].append(outcome)
            at, key = time.monotonic(), errand.inventory.node.name
            if outcome.skipped is None:
                sys.exit(f"not measured: {outcome}")
            if key in last and outcome.skipped.reason[0].isdigit():
                overheads.append(at - last[key] - float(outcome.skipped.reason))
            last[key] = at
            if len(last) == len(work) and not first:
                first = at
        ended = time.monotonic()
    return len(work) * each / (ended - began), first - began, overheads


def plain(request: bytes) -> int:
    from harness.cluster.task import perform

    return sum(len(answer) for answer in perform(request))


def through_plain_tasks(ray: Any, found: Sequence[Inventory], count: int) -> float:
    """Return results a second of one exclusive task a benchmark."""
    work = errands(found, 1)
    device = replace(work[0].inventory.devices[0], kind="cpu")
    requests = [
        codec.encode(
            Task(kind="measure", jobs=(replace(work[0].jobs[0], params={"n": n}),), device=device, effort=QUICK)
        )
        for n in range(count)
    ]
    task = ray.remote(num_gpus=1, num_cpus=0, max_calls=1, max_retries=0)(plain)
    began = time.monotonic()
    waiting = [task.remote(request) for request in requests]
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=60)
        ray.get(done, timeout=60)
    return count / (time.monotonic() - began)


def measure(ray: Any, args: argparse.Namespace) -> Iterator[Row]:
    found = [i for i in inspect_on_ray(ray, lease=FakeLease) if i.node.name != "head"]
    rate, leased_s, overheads = through_leases(ray, found, args.each, TellingLease)
    share = sorted(overheads)
    yield Row(what=f"{len(found)} nodes x {args.each} measurements", value=f"{rate:.1f} a second in all")
    yield Row(what="until every device had given its first result", value=f"{leased_s:.1f} s")
    median, high = 1e3 * statistics.median(share), 1e3 * share[int(0.95 * len(share))]
    yield Row(what="overhead a measurement, all at once", value=f"median {median:.0f} ms, 95 % {high:.0f} ms")
    _, _, alone = through_leases(ray, found[:1], 5 * args.each, TellingLease)
    yield Row(what="overhead a measurement, one device", value=f"median {1e3 * statistics.median(alone):.1f} ms")
    if args.plain:
        slow = through_plain_tasks(ray, found, args.plain)
        yield Row(
            what=f"{args.plain} plain exclusive tasks", value=f"{slow:.2f} a second: {rate / slow:.1f} times slower"
        )
    for count in args.results:
        rate, _, _ = through_leases(ray, found, count // len(found), IdleLease)
        yield Row(what=f"{count} results of nothing", value=f"{1e3 / rate:.2f} ms each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=24)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--plain", type=int, default=96)
    parser.add_argument("--results", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        package, info = root / "nothings", root / "nothings-1.0.dist-info"
        package.mkdir()
        info.mkdir()
        (package / "__init__.py").write_text(PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nothings\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[harness.benchmarks]\nnothings = nothings\n")
        names = {f"n{i}": [f"GPU-{i}=made up"] for i in range(args.nodes)}
        with (
            surroundings(root, Path(__file__).parent),
            fleet(root, names) as nodes,
            connect(nodes.address) as ray,
        ):
            for row in measure(ray, args):
                print(f"| {row.what} | {row.value} |" if args.markdown else f"{row.what:<48} {row.value}", flush=True)


if __name__ == "__main__":
    from fleet import main as run  # by this name Ray's workers find the lease, not as __main__

    run()
