"""Runs jobs next to their devices: in processes of this machine, or through Ray. The only door to Ray.

Both ways take the same errands and give the same outcomes. Whatever comes back from Ray is bytes, decoded as strictly as a
stranger's file: a worker is a prover. All retries are ours, and there are none yet: every attempt's end is its outcome.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import codec, registry
from harness.cluster.lease import Lease
from harness.cluster.plan import batches, deadline_s
from harness.cluster.task import Inventory, answered
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.measure.rounds import Effort
from harness.measure.runner import now
from harness.model import Device, DeviceKind, Failed, FailureKind, Job, Outcome, Skipped

__all__ = ["Errand", "Orders", "connect", "inspect_here", "inspect_on_ray", "run_here", "run_on_ray"]

_CONNECT_S = 5.0
_PATIENCE = "RAY_gcs_server_port_wait_time_s"
_LEASE_S = 120.0  # to start an actor and have it answer
_GRACE_S = 15.0  # a lease enforces a job's deadline itself; past this much more it is given up for lost
_POLL_S = 0.5
_ONE_GPU = (
    "it takes the other GPUs of its node too, and a lease through Ray holds one: run it on that node without --ray"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """The jobs of one node."""

    inventory: Inventory
    jobs: tuple[Job, ...]

    def device(self, job: Job) -> Device:
        """Return the device that a job names."""
        return next(d for d in self.inventory.devices if d.uuid == job.device_uuid)

    def idle_w(self, job: Job) -> float | None:
        """Return what the device of a job takes at rest, where that was seen."""
        seen = self.inventory.seen(job.device_uuid)
        return seen.idle_power_w if seen else None

    def refusal(self, job: Job, orders: Orders) -> str | None:
        """Return why the device of a job should not be measured as it is, or None."""
        seen = self.inventory.seen(job.device_uuid)
        grave = [note for note in seen.notes if note.severity == "refuse"] if seen and not orders.force else []
        return f"{grave[0].what}: {grave[0].advice}, or measure all the same with --force" if grave else None

    def peers(self, job: Job) -> tuple[str, ...]:
        """Return the UUIDs of the other GPUs that a job uses.

        They begin with the one after its own and go round, so that over all its GPUs a node's neighbours are measured in a ring.
        """
        if not _takes_peers(job, self.device(job)):
            return ()
        usable = [d.uuid for d in self.inventory.devices if d.kind == "cuda" and d.unusable_reason is None]
        at = usable.index(job.device_uuid)
        return (*usable[at + 1 :], *usable[:at])


def _takes_peers(job: Job, device: Device) -> bool:
    bench = registry.benchmarks().get(job.benchmark)
    return bench is not None and bench.peers and device.kind == "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """How to carry errands out, and whom to tell."""

    effort: Effort
    started: Callable[[Job], None]
    out_of_time: Callable[[], str | None]  # the reason not to start anything any more
    force: bool = False  # measure also what the preflight advises against


def inspect_here(idle_s: float = 0.0) -> tuple[Inventory, ...]:
    """Return what this machine has, after watching it at rest for a while."""
    with Lease() as lease:
        return (lease.inspect(idle_s),)


def run_here(errands: Sequence[Errand], orders: Orders) -> Iterator[tuple[Errand, Outcome]]:
    """Carry out errands on this machine, one device after the other, so that no measurement disturbs another."""
    kinds = {errand.device(job).kind for errand in errands for job in errand.jobs}
    with Lease(kinds) as lease:
        for errand in errands:
            for jobs in batches(errand.jobs):
                reason = orders.out_of_time() or errand.refusal(jobs[0], orders)
                if reason:
                    yield from ((errand, Outcome(skipped=Skipped(job=job, reason=reason))) for job in jobs)
                    continue
                for job in jobs:
                    orders.started(job)
                device, peers = errand.device(jobs[0]), errand.peers(jobs[0])
                yield from (
                    (errand, outcome)
                    for outcome in lease.measure_together(
                        jobs, device, orders.effort, peers=peers, idle_w=errand.idle_w(jobs[0])
                    )
                )


def inspect_on_ray(ray: Any, idle_s: float = 0.0) -> tuple[Inventory, ...]:
    """Return what each live node of a Ray cluster has; `ray` is what `connect` gives.

    Raises:
        FailureError: a node did not answer.
    """
    scouts = {node["NodeID"]: _actor(ray, node, ()) for node in _live(ray)}
    try:
        asked = {place: scout.inspect.remote(idle_s) for place, scout in scouts.items()}
        return tuple(_inventory(ray, place, ref) for place, ref in asked.items())
    finally:
        for scout in scouts.values():
            ray.kill(scout)


def run_on_ray(errands: Sequence[Errand], orders: Orders, ray: Any) -> Iterator[tuple[Errand, Outcome]]:
    """Carry out errands through Ray: one exclusive lease a device, each working off its own queue.

    The GPUs of a node work side by side; its CPU has its turn after them, since kernels on every core starve what feeds a GPU.
    """
    nodes = {node["NodeID"]: node for node in _live(ray)}
    queues = [_Queue(ray, nodes, errand, uuid, orders) for errand in errands for uuid in _devices(errand)]
    try:
        while any(q.active for q in queues):
            yield from (pair for q in queues if not _held_back(q, queues) for pair in q.turn())
            refs = [q.busy.ref for q in queues if q.busy]
            if refs:
                ray.wait(refs, num_returns=1, timeout=_POLL_S)
    finally:
        for queue in queues:
            queue.close()


def _held_back(queue: _Queue, queues: Sequence[_Queue]) -> bool:
    return queue.kind == "cpu" and any(q.active and q.kind != "cpu" and q.errand is queue.errand for q in queues)


def _devices(errand: Errand) -> tuple[str, ...]:
    return tuple(dict.fromkeys(job.device_uuid for job in errand.jobs))


@dataclass(slots=True, kw_only=True)
class _Busy:
    jobs: tuple[Job, ...]
    ref: Any
    started_at: str
    began: float
    deadline: float


class _Queue:
    """The jobs of one device, its lease, and at most one batch of them in flight."""

    def __init__(self, ray: Any, nodes: dict[str, Any], errand: Errand, uuid: str, orders: Orders) -> None:
        self._ray, self._orders, self.errand = ray, orders, errand
        self._node = nodes.get(errand.inventory.place or "")
        own = [job for job in errand.jobs if job.device_uuid == uuid]
        self.waiting = list(batches(own))
        self._device = errand.device(own[0])
        self._lease: Any = None
        self.busy: _Busy | None = None

    @property
    def kind(self) -> DeviceKind:
        """The kind of its device."""
        return self._device.kind

    @property
    def active(self) -> bool:
        """Whether any of its jobs has not ended."""
        return bool(self.busy or self.waiting)

    def turn(self) -> Iterator[tuple[Errand, Outcome]]:
        """Hand over what has ended, and start what may start."""
        if self.busy:
            outcomes = self._collect(self.busy)
            if outcomes is None:
                return
            self.busy = None
            yield from ((self.errand, outcome) for outcome in outcomes)
        while self.waiting and not self.busy:
            jobs = self.waiting.pop(0)
            reason = self._orders.out_of_time() or self._hindrance(jobs[0])
            if reason:
                yield from ((self.errand, Outcome(skipped=Skipped(job=job, reason=reason))) for job in jobs)
            else:
                self._start(jobs)

    def _hindrance(self, job: Job) -> str | None:
        if self._node is None:
            return "its node has left the cluster"
        return self.errand.refusal(job, self._orders) or (_ONE_GPU if _takes_peers(job, self._device) else None)

    def close(self) -> None:
        """Give the device back."""
        if self._lease is not None:
            self._ray.kill(self._lease)
            self._lease = None

    def _start(self, jobs: tuple[Job, ...]) -> None:
        first = self._lease is None
        if first and self._node is not None:
            gpus = 1 if self._device.kind == "cuda" and self._node["Resources"].get("GPU") else 0
            self._lease = _actor(self._ray, self._node, (self._device.kind,), gpus=gpus)
        for job in jobs:
            self._orders.started(job)
        request = tuple(map(codec.encode, (jobs, self._device, self._orders.effort)))
        # A batch that broke is tried again job by job, each within a deadline of its own.
        tries = deadline_s(self._orders.effort, self._device, jobs) + sum(
            deadline_s(self._orders.effort, self._device, [job]) for job in jobs[1:]
        )
        allowed = tries + _GRACE_S + (_LEASE_S if first else 0)
        began = time.monotonic()
        ref = self._lease.measure.remote(*request, self.errand.idle_w(jobs[0]))
        self.busy = _Busy(jobs=jobs, ref=ref, started_at=now(), began=began, deadline=began + allowed)

    def _collect(self, busy: _Busy) -> tuple[Outcome, ...] | None:
        done, _ = self._ray.wait([busy.ref], timeout=0)
        if not done and time.monotonic() < busy.deadline:
            return None
        try:
            if not done:
                return self._lost(busy, "timeout", "its lease did not answer in time and was killed")
            outcomes = answered(bytes(self._ray.get(busy.ref, timeout=_GRACE_S)), busy.jobs)
            if len(outcomes) < len(busy.jobs):
                return self._lost(busy, "crashed", "its lease did not answer with an outcome for each job")
        except (self._ray.exceptions.RayError, ForgeryError, TypeError) as err:  # a killed call may "return" None
            return self._lost(busy, "crashed", f"its lease was lost: {type(err).__name__}")
        return outcomes

    def _lost(self, busy: _Busy, how: FailureKind, reason: str) -> tuple[Outcome, ...]:
        self.close()  # the next jobs get a new lease
        elapsed_s = time.monotonic() - busy.began
        return tuple(
            Outcome(failed=Failed(job=job, started_at=busy.started_at, elapsed_s=elapsed_s, outcome=how, reason=reason))
            for job in busy.jobs
        )


class _Remote:
    """A lease as an actor. It speaks canonical bytes, so that nothing it returns is ever unpickled into an object of ours."""

    def __init__(self, kinds: tuple[DeviceKind, ...]) -> None:
        self._lease = Lease(kinds)

    def inspect(self, idle_s: float) -> bytes:
        return codec.encode(self._lease.inspect(idle_s))

    def measure(self, jobs: bytes, device: bytes, effort: bytes, idle_w: float | None) -> bytes:
        args = codec.decode(jobs, tuple[Job, ...]), codec.decode(device, Device), codec.decode(effort, Effort)
        if b"OMP_NUM_THREADS=" not in Path("/proc/self/environ").read_bytes():
            os.environ.pop("OMP_NUM_THREADS", None)  # before each call Ray sets it to 1: BLAS would use one core
        return b"".join(codec.encode(outcome) + b"\n" for outcome in self._lease.measure_together(*args, idle_w=idle_w))


def _actor(ray: Any, node: Any, kinds: tuple[DeviceKind, ...], *, gpus: int = 0) -> Any:
    """Start a lease on one node. Never restarted and never retried by Ray: a benchmark must not run twice unseen."""
    remote = ray.remote(num_gpus=gpus, num_cpus=0, max_restarts=0, max_task_retries=0)(_Remote)
    return remote.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote(kinds)


def _inventory(ray: Any, place: str, ref: Any) -> Inventory:
    try:
        return replace(codec.decode(ray.get(ref, timeout=_LEASE_S), Inventory), place=place)
    except (ray.exceptions.RayError, ForgeryError, TypeError) as err:
        msg = f"node {place[:8]} of the Ray cluster did not say what it has: {type(err).__name__}"
        raise FailureError(msg) from err


def _live(ray: Any) -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster for the length of a context, which is given the module; `local` starts a cluster and ends it.

    Raises:
        MisuseError: there is no cluster at that address.
    """
    local = address == "local"
    if not local:
        _knock(address)
    ray = _import_ray()
    if not local:
        os.environ[_PATIENCE] = "1"  # one try of 40 s, where somebody listens who is not Ray, rather than twenty
    try:
        ray.init(
            address=address,
            include_dashboard=False if local else None,
            num_cpus=1 if local else None,  # a lease takes none; Ray would start a worker for each
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except (ConnectionError, ValueError, RuntimeError) as err:
        msg = f"no Ray cluster answers at {address!r}: {str(err).splitlines()[0]}; use HOST:PORT of its head, or local"
        raise MisuseError(msg) from err
    finally:
        os.environ.pop(_PATIENCE, None)
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Refuse an address where nobody listens. Ray itself goes on trying for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        msg = f"{address!r} is not the address of a Ray cluster: use HOST:PORT of its head, such as 10.0.0.1:6379, or local"
        raise MisuseError(msg)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as err:
        msg = f"no Ray cluster answers at {address!r}: {err}; use HOST:PORT of its head, or local"
        raise MisuseError(msg) from err


def _import_ray() -> Any:
    """Import Ray after setting what it reads once.

    Its uv hook would pack the working folder and restart workers under `uv run`; its workers run at niceness 15, which starves
    whatever they measure; and RAY_ADDRESS or a stray cluster of this machine must not decide where we run.
    """
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own spelling
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    return ray
