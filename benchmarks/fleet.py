"""What a fleet costs: the time around each measurement, against one plain exclusive Ray task a benchmark, and per result up to 50,000.

    uv run python benchmarks/fleet.py [--nodes 24] [--each 20] [--plain 96] [--results 1000 10000 50000] [--markdown]

The cluster is real and on this machine; its nodes have one made-up GPU each (tests/fakefleet.py). A measurement is a benchmark that does
nearly nothing, in a process of its own as always, and a look at the device after it, in another one; a driver's own time is not in that.

Overhead is what the fleet adds to the processes themselves: scheduler, Ray, lease, spool with its sync, and the outcome's way into the
journal, with another sync. On one device it is the time from one result to the next less the time of its processes. With all devices at
once the cores are the limit, so it is the time of the whole run less that of the same processes started by as many threads as there are
cores, without Ray, scheduler, spool and journal, divided by the number of measurements.

A cluster at rest is not idle: its daemons poll, and on one machine all of them do so on the same cores. How much of the cores that takes is
printed; of the overhead all at once it is a part that grows with the nodes of a machine, not with its measurements.

The plain tasks do the same measurements the way Ray's own documentation would: `num_gpus=1, max_calls=1`, a new worker for each, no retries.
The last part measures nothing at all, so that what is left is the cost of a result.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fakefleet import ENVIRONMENT, QUICK, FakeLease, IdleLease, fleet, orders, surroundings

from harness import codec
from harness.cluster.errand import Errand
from harness.cluster.fanout import connect, inspect_on_ray, run_on_ray
from harness.cluster.journal import Journal
from harness.cluster.lease import Lease, Order
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory, Look, Task
from harness.measure.runner import now
from harness.model import Device, Job, Outcome, Report, Skipped
from harness.proof.seal import OPEN

__all__ = ["main"]

PLUGIN = '''
"""Next to nothing."""
from harness.registry import Case, Work, benchmark

@benchmark(version=1, n=tuple(range(10000)))
def nothing(backend, seed, *, n):
    """Double a few numbers."""
    x = backend.xp.arange(256.0)
    return Case(run=lambda: 2 * x, work=Work(flops=256), check=lambda y: bool((y - x == x).all()))
'''


class TellingLease(FakeLease):
    """A lease that tells how long the processes of each measurement took, instead of what it measured."""

    deadline_s = 60.0  # two cores start the processes of all nodes at once: the first of them wait for many seconds
    spent_s = 0.0

    def look(self, device: Device) -> Look:
        began = time.monotonic()
        seen = Lease.look(self, replace(device, driver=None))  # a process, that finds no driver to ask
        self.spent_s += time.monotonic() - began
        return seen

    def _attempt(self, attempt: str, task: Task, deadline: float, env: Mapping[str, str]) -> Reply:
        reply = super()._attempt(attempt, task, deadline, env)
        self.spent_s += reply.elapsed_s
        return reply

    def carry_out(self, order: Order) -> Reply:
        self.spent_s = 0.0
        return super().carry_out(order)

    def _try(self, order: Order, before: Look) -> Reply:
        reply = super()._try(order, before)
        good = all(outcome.measurement for outcome in reply.outcomes)
        told = str(self.spent_s) if good else f"not measured: {reply}"
        return replace(reply, outcomes=tuple(Outcome(skipped=Skipped(job=job, reason=told)) for job in order.jobs))


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


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run took: until every device had given a result, and for those that came after that."""

    before_s: float
    after_s: float
    after_count: int
    overheads_s: list[float]  # from one result of a device to its next, less the time of its processes

    @property
    def each_s(self) -> float:
        return self.after_s / self.after_count


def through_leases(ray: Any, found: Sequence[Inventory], each: int, lease: Any) -> Run:
    work = errands(found, each)
    last: dict[str, float] = {}
    overheads: list[float] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, journals(work, Path(folder)) as books:
        for errand, outcome in run_on_ray(work, orders(lease=lease), ray):
            books[errand.inventory.node.name].append(outcome)
            at, key = time.monotonic(), errand.inventory.node.name
            if outcome.skipped is None or outcome.skipped.reason.startswith("not measured"):
                sys.exit(f"not measured: {outcome}")
            if key in last and outcome.skipped.reason[0].isdigit():
                overheads.append(at - last[key] - float(outcome.skipped.reason))
            if key not in last:
                all_begun_at, after_count = at, 0
            else:
                after_count += 1
            last[key] = at
    return Run(
        before_s=all_begun_at - began,
        after_s=max(last.values()) - all_begun_at,
        after_count=after_count,
        overheads_s=overheads,
    )


def through_nurseries(found: Sequence[Inventory], count: int) -> float:
    """Return the seconds that the processes of so many measurements take, started by one thread a core and nothing around them."""
    (errand,) = errands(found[:1], count)
    device, cores = found[0].devices[1], len(os.sched_getaffinity(0))
    orders_ = [Order(attempt="0", jobs=(job,), device=device, effort=QUICK) for job in errand.jobs]

    def work(lease: TellingLease, own: Sequence[Order]) -> None:
        for order in own:
            if not lease.carry_out(order).outcomes[0].skipped:
                sys.exit("not measured")

    with ExitStack() as held, ThreadPoolExecutor(cores) as pool:
        leases = [held.enter_context(TellingLease()) for _ in range(cores)]
        for lease in leases:
            work(lease, orders_[:1])  # its nursery is up
        began = time.monotonic()
        list(pool.map(work, leases, [orders_[i::cores] for i in range(cores)]))
        return time.monotonic() - began


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


def busy_s() -> float:
    """Return the processor time that this machine has spent on anything since its start, all cores together."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def share_at_rest(rest_s: float = 10.0) -> float:
    """Return the share of all cores that is in use while nothing is asked of the cluster."""
    began_s, before_s = time.monotonic(), busy_s()
    time.sleep(rest_s)
    return (busy_s() - before_s) / (time.monotonic() - began_s) / (os.cpu_count() or 1)


def measure(ray: Any, args: argparse.Namespace) -> Iterator[Row]:
    found = [i for i in inspect_on_ray(ray, lease=FakeLease) if i.node.name != "head"]
    yield Row(what=f"the cores in use while {len(found)} nodes are at rest", value=f"{100 * share_at_rest():.0f} %")
    alone = through_leases(ray, found[:1], 5 * args.each, TellingLease).overheads_s
    yield Row(what="overhead a measurement, one device", value=f"median {1e3 * statistics.median(alone):.1f} ms")
    run = through_leases(ray, found, args.each, TellingLease)
    bare_s = through_nurseries(found, run.after_count) / run.after_count
    count = len(found) * args.each
    yield Row(what=f"{count} measurements on {len(found)} nodes, until all had begun", value=f"{run.before_s:.1f} s")
    yield Row(what=f"{run.after_count} of them after that", value=f"{1e3 * run.each_s:.1f} ms each")
    yield Row(what="their processes alone, without a fleet", value=f"{1e3 * bare_s:.1f} ms each")
    yield Row(what="overhead a measurement, all at once", value=f"{1e3 * (run.each_s - bare_s):.1f} ms")
    if args.plain:
        plain_s = 1 / through_plain_tasks(ray, found, args.plain)
        ours_s = (run.before_s + run.after_s) / count
        yield Row(
            what=f"{args.plain} plain exclusive tasks, all in all",
            value=f"{1e3 * plain_s:.0f} ms each; the {count}, all in all, {1e3 * ours_s:.0f} ms: {plain_s / ours_s:.1f} times",
        )
    for results in args.results:
        idle = through_leases(ray, found, results // len(found), IdleLease)
        yield Row(what=f"{results} results of nothing", value=f"{1e3 * idle.each_s:.2f} ms each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=24)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--plain", type=int, default=96)
    parser.add_argument("--results", type=int, nargs="*", default=[1_000, 10_000, 50_000])
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
