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

from harness import codec
from harness.cluster.lease import Lease, answered
from harness.cluster.plan import deadline_s
from harness.cluster.task import Inventory
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """The jobs of one node."""

    inventory: Inventory
    jobs: tuple[Job, ...]

    def device(self, job: Job) -> Device:
        """Return the device that a job names."""
        return next(d for d in self.inventory.devices if d.uuid == job.device_uuid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """How to carry errands out, and whom to tell."""

    effort: Effort
    started: Callable[[Job], None]
    out_of_time: Callable[[], str | None]  # the reason not to start anything any more


def inspect_here() -> tuple[Inventory, ...]:
    """Return what this machine has."""
    with Lease() as lease:
        return (lease.inspect(),)


def run_here(errands: Sequence[Errand], orders: Orders) -> Iterator[tuple[Errand, Outcome]]:
    """Carry out errands on this machine, one job after the other, so that no measurement disturbs another."""
    kinds = {errand.device(job).kind for errand in errands for job in errand.jobs}
    with Lease(kinds) as lease:
        for errand in errands:
            for job in errand.jobs:
                reason = orders.out_of_time()
                if reason:
                    yield errand, Outcome(skipped=Skipped(job=job, reason=reason))
                    continue
                orders.started(job)
                yield errand, lease.measure(job, errand.device(job), orders.effort)


def inspect_on_ray(ray: Any) -> tuple[Inventory, ...]:
    """Return what each live node of a Ray cluster has; `ray` is what `connect` gives.

    Raises:
        FailureError: a node did not answer.
    """
    scouts = {node["NodeID"]: _actor(ray, node, ()) for node in _live(ray)}
    try:
        asked = {place: scout.inspect.remote() for place, scout in scouts.items()}
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
    job: Job
    ref: Any
    started_at: str
    began: float
    deadline: float


class _Queue:
    """The jobs of one device, its lease, and at most one job in flight."""

    def __init__(self, ray: Any, nodes: dict[str, Any], errand: Errand, uuid: str, orders: Orders) -> None:
        self._ray, self._orders, self.errand = ray, orders, errand
        self._node = nodes.get(errand.inventory.place or "")
        self.waiting = [job for job in errand.jobs if job.device_uuid == uuid]
        self._device = errand.device(self.waiting[0])
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
            outcome = self._collect(self.busy)
            if outcome is None:
                return
            self.busy = None
            yield self.errand, outcome
        while self.waiting and not self.busy:
            job = self.waiting.pop(0)
            reason = self._orders.out_of_time()
            if reason:
                yield self.errand, Outcome(skipped=Skipped(job=job, reason=reason))
            elif self._node is None:
                yield self.errand, Outcome(skipped=Skipped(job=job, reason="its node has left the cluster"))
            else:
                self._start(job)

    def close(self) -> None:
        """Give the device back."""
        if self._lease is not None:
            self._ray.kill(self._lease)
            self._lease = None

    def _start(self, job: Job) -> None:
        first = self._lease is None
        if first and self._node is not None:
            gpus = 1 if self._device.kind == "cuda" and self._node["Resources"].get("GPU") else 0
            self._lease = _actor(self._ray, self._node, (self._device.kind,), gpus=gpus)
        self._orders.started(job)
        request = tuple(map(codec.encode, (job, self._device, self._orders.effort)))
        allowed = deadline_s(self._orders.effort, self._device) + _GRACE_S + (_LEASE_S if first else 0)
        began = time.monotonic()
        ref = self._lease.measure.remote(*request)
        self.busy = _Busy(job=job, ref=ref, started_at=now(), began=began, deadline=began + allowed)

    def _collect(self, busy: _Busy) -> Outcome | None:
        done, _ = self._ray.wait([busy.ref], timeout=0)
        if not done and time.monotonic() < busy.deadline:
            return None
        try:
            if not done:
                return self._lost(busy, "timeout", "its lease did not answer in time and was killed")
            return answered(self._ray.get(busy.ref, timeout=_GRACE_S), busy.job)
        except (self._ray.exceptions.RayError, ForgeryError, TypeError) as err:  # a killed call may "return" None
            return self._lost(busy, "crashed", f"its lease was lost: {type(err).__name__}")

    def _lost(self, busy: _Busy, how: FailureKind, reason: str) -> Outcome:
        self.close()  # the next job gets a new lease
        elapsed_s = time.monotonic() - busy.began
        failed = Failed(job=busy.job, started_at=busy.started_at, elapsed_s=elapsed_s, outcome=how, reason=reason)
        return Outcome(failed=failed)


class _Remote:
    """A lease as an actor. It speaks canonical bytes, so that nothing it returns is ever unpickled into an object of ours."""

    def __init__(self, kinds: tuple[DeviceKind, ...]) -> None:
        self._lease = Lease(kinds)

    def inspect(self) -> bytes:
        return codec.encode(self._lease.inspect())

    def measure(self, job: bytes, device: bytes, effort: bytes) -> bytes:
        args = codec.decode(job, Job), codec.decode(device, Device), codec.decode(effort, Effort)
        if b"OMP_NUM_THREADS=" not in Path("/proc/self/environ").read_bytes():
            os.environ.pop("OMP_NUM_THREADS", None)  # before each call Ray sets it to 1: BLAS would use one core
        return codec.encode(self._lease.measure(*args))


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
