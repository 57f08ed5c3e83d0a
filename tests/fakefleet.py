"""Fake nodes with fake GPUs, for real Ray clusters on one machine: everything is real but the devices, which are this CPU by other names.

A node is told by its environment who it is (FAKE_NODE), which GPUs it has (FAKE_GPUS, `uuid=name` and commas) and where the tests leave
notes for it (FAKE_NOTES): a file `lost-UUID` takes a GPU from the bus, `busy-UUID` puts a stranger's process on it, and `mute-UUID` keeps
the next reply of its lease from ever being heard.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
from harness.cluster.errand import Errand, Orders
from harness.cluster.lease import Lease, Order
from harness.cluster.rayenv import Access, applied, environment, make_token, private_folder
from harness.cluster.signals import Patience
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory, Look, Task
from harness.device.sensors import GpuProcess
from harness.measure.rounds import Effort
from harness.model import Device, DeviceKind, Environment, Job, Node, Outcome, Regime, Skipped

__all__ = [
    "FAKE_DEADLINE_S",
    "PACED",
    "QUICK",
    "FakeLease",
    "IdleLease",
    "Nodes",
    "fleet",
    "orders",
    "surroundings",
    "to_do",
]

FAKE_DEADLINE_S = 3.0
QUICK = Effort(
    warmup_s=0.0,
    budget_s=0.01,
    samples=2,
    rounds_min=2,
    rounds_max=3,
    soak_min_s=0.0,
    soak_max_s=0.01,
    space_s=0.0,
    energy_s=0.0,
)
PACED = '''
"""One job after the other."""
import time
from harness.registry import Case, Work, benchmark

@benchmark(version=1, step=tuple(range(12)))
def paced(backend, seed, *, step):
    """Take some time, and do no harm."""
    time.sleep(0.2)
    x = backend.xp.arange(256.0)
    return Case(run=lambda: 2 * x, work=Work(flops=256), check=lambda y: bool((y - x == x).all()))
'''
QUICK_NOTICE = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
}
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


class FakeLease(Lease):
    """A lease whose GPUs are made up and whose deadlines are short."""

    deadline_s = FAKE_DEADLINE_S

    def __init__(self, kinds: Collection[DeviceKind] = ()) -> None:
        super().__init__(())  # nothing that takes long to import: our benchmarks do without Numba

    def inspect(self, idle_s: float = 0.0) -> Inventory:
        name = os.environ["FAKE_NODE"]
        gpus = [entry.split("=") for entry in os.environ.get("FAKE_GPUS", "").split(",") if entry]
        cpu = Device(uuid=f"CPU-{name}", name="Fake CPU", kind="cpu", selector="cpu", sensors={})
        devices = (
            Device(uuid=uuid, name=what, kind="cuda", selector=f"cuda:{i}", driver="1", sensors={})
            for i, (uuid, what) in enumerate(gpus)
        )
        return Inventory(node=Node(name=name), environment=ENVIRONMENT, devices=(cpu, *devices))

    def look(self, device: Device) -> Look:
        busy = _note("busy", device.uuid)
        neighbours = (GpuProcess(int(busy.read_text()), None),) if busy.exists() else ()
        return Look(present=not _note("lost", device.uuid).exists(), neighbours=neighbours)

    def carry_out(self, order: Order) -> Reply:
        reply = super().carry_out(order)
        mute = _note("mute", order.device.uuid)
        if mute.exists():
            mute.rename(mute.with_name(f"muted-{order.device.uuid}"))
            time.sleep(1000)
        return reply

    def _attempt(self, attempt: str, task: Task, deadline: float, env: Mapping[str, str]) -> Reply:
        device = replace(task.device, kind="cpu") if task.device else None
        more = {"FAKE_UUID": device.uuid} if device else {}
        slow = any("slow" in str(job.params.get("how")) or job.params.get("step") == 0 for job in task.jobs)
        return super()._attempt(attempt, replace(task, device=device), 100.0 if slow else self.deadline_s, more)


class IdleLease(FakeLease):
    """A lease that measures nothing: what is left is the cost of asking."""

    def _attempt(self, attempt: str, task: Task, deadline: float, env: Mapping[str, str]) -> Reply:
        outcomes = tuple(Outcome(skipped=Skipped(job=job, reason="nothing to do")) for job in task.jobs)
        return Reply(attempt=attempt, started_at="", elapsed_s=0.0, outcomes=outcomes)


def _note(what: str, uuid: str) -> Path:
    return Path(os.environ.get("FAKE_NOTES", "/nonexistent")) / f"{what}-{uuid}"


def orders(log: list[Job] | None = None, **more: Any) -> Orders:
    """Return orders for a short run over fake nodes."""
    patience = Patience(lease_s=60, grace_s=15, ping_s=2, rejoin_s=60, backoff_s=0.1)
    settings: dict[str, Any] = {"effort": QUICK, "lease": FakeLease, "patience": patience, "out_of_time": lambda: None}
    settings |= {"started": (log if log is not None else []).append} | more
    return Orders(**settings)


def to_do(inventory: Inventory, uuid: str, benchmark: str, regime: Regime = "burst", **params: Sequence[Any]) -> Errand:
    """Return an errand for one device: a job for each value of one parameter."""
    ((key, values),) = params.items()
    jobs = (
        Job(benchmark=benchmark, version=1, params={key: value}, device_uuid=uuid, seed=f"{i:016x}", regime=regime)
        for i, value in enumerate(values)
    )
    return Errand(inventory=inventory, jobs=tuple(jobs), run=f"{benchmark} on {uuid}")


@contextmanager
def surroundings(*folders: Path) -> Iterator[None]:
    """Give this process what a cluster's processes need, and for a while nothing of the user's own.

    That is our modules and those in `folders`, a token, quick notice of deaths, and none of Ray's habits.
    """
    before = dict(os.environ)
    with private_folder() as folder:
        (folder / "ray").mkdir()
        make_token(folder / "token")
        variables, dropped = environment(Access(address="", token=folder / "token"), folder, current=QUICK_NOTICE)
        paths = (Path(harness.__file__).parent.parent, Path(__file__).parent, *folders)
        kept = {name: value for name, value in before.items() if not name.startswith(("CUDA_", "HARNESS_", "RAY_"))}
        _become(kept | {"PYTHONPATH": os.pathsep.join(map(str, paths))})
        try:
            with applied(variables, dropped):
                yield
        finally:
            _become(before)


def _become(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]


class Nodes:
    """A cluster of fake nodes, to which nodes come and from which they are torn."""

    def __init__(self, cluster: Any, notes: Path) -> None:
        self.cluster, self.notes = cluster, notes
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, name: str, *gpus: str, offered: int | None = None) -> None:
        """Start a node that has these GPUs, of which Ray is told so many."""
        told = {"FAKE_NODE": name, "FAKE_GPUS": ",".join(gpus), "FAKE_NOTES": str(self.notes)}
        told["XDG_STATE_HOME"] = str(self.notes / f"state-{name}")
        count = len(gpus) if offered is None else offered
        self._nodes[name] = self.cluster.add_node(num_cpus=1, num_gpus=count, resources={name: 1}, env_vars=told)

    def place(self, name: str) -> str:
        """Return what Ray calls a node."""
        return str(self._nodes[name].node_id)

    def kill(self, name: str) -> None:
        """End a node as a power cut would."""
        self.cluster.remove_node(self._nodes.pop(name), allow_graceful=False)


@contextmanager
def fleet(notes: Path, nodes: Mapping[str, Sequence[str]]) -> Iterator[Nodes]:
    """Hold a cluster of these nodes, each with its GPUs, around a head with one that Ray is not told of."""
    from ray.cluster_utils import Cluster

    told = {"FAKE_NODE": "head", "FAKE_GPUS": "GPU-untold=T4"}
    head = {"num_cpus": 1, "num_gpus": 0, "env_vars": told, "include_dashboard": False}
    head |= {"no_monitor": True, "include_log_monitor": False}
    head["_system_config"] = {"prestart_worker_first_driver": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        held = Nodes(cluster, notes)
        for name, gpus in nodes.items():
            held.add(name, *gpus)
        yield held
    finally:
        cluster.shutdown()
