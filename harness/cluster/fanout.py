"""Runs jobs next to their devices: in processes of this machine, or through Ray. The only door to Ray.

Both ways take the same errands and give the same outcomes. Whatever comes back from Ray is bytes, decoded as strictly as a
stranger's file: a worker is a prover. All retries are ours, and there are none yet: every attempt's end is its outcome.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from harness import codec
from harness.cluster.lease import Lease, answered
from harness.cluster.plan import deadline_s
from harness.cluster.task import Inventory
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.measure.rounds import Effort
from harness.measure.runner import now
from harness.model import Device, Failed, FailureKind, Job, Outcome, Skipped

__all__ = ["Errand", "Orders", "inspect_here", "inspect_on_ray", "run_here", "run_on_ray"]

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


def inspect_here(address: str | None = None) -> tuple[Inventory, ...]:  # noqa: ARG001 - the signature of its sibling
    """Return what this machine has."""
    with Lease() as lease:
        return (lease.inspect(),)


def run_here(errands: Sequence[Errand], orders: Orders, address: str | None = None) -> Iterator[tuple[Errand, Outcome]]:  # noqa: ARG001
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


def inspect_on_ray(address: str | None = None) -> tuple[Inventory, ...]:
    """Return what each live node of a Ray cluster has.

    Raises:
        MisuseError: there is no cluster at that address.
        FailureError: a node did not answer.
    """
    with _cluster(address) as ray:
        scouts = {node["NodeID"]: _actor(ray, node, ()) for node in _live(ray)}
        try:
            asked = {place: scout.inspect.remote() for place, scout in scouts.items()}
            return tuple(_inventory(ray, place, ref) for place, ref in asked.items())
        finally:
            for scout in scouts.values():
                ray.kill(scout)


def run_on_ray(
    errands: Sequence[Errand], orders: Orders, address: str | None = None
) -> Iterator[tuple[Errand, Outcome]]:
    """Carry out errands through Ray: one exclusive lease a device, each working off its own queue."""
    with _cluster(address) as ray:
        nodes = {node["NodeID"]: node for node in _live(ray)}
        queues = [_Queue(ray, nodes, errand, uuid, orders) for errand in errands for uuid in _devices(errand)]
        try:
            while any(q.busy or q.waiting for q in queues):
                yield from (pair for q in queues for pair in q.turn())
                refs = [q.busy.ref for q in queues if q.busy]
                if refs:
                    ray.wait(refs, num_returns=1, timeout=_POLL_S)
        finally:
            for queue in queues:
                queue.close()


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
        self._ray, self._errand, self._orders = ray, errand, orders
        self._node = nodes.get(errand.inventory.place or "")
        self.waiting = [job for job in errand.jobs if job.device_uuid == uuid]
        self._device = errand.device(self.waiting[0])
        self._lease: Any = None
        self.busy: _Busy | None = None

    def turn(self) -> Iterator[tuple[Errand, Outcome]]:
        """Hand over what has ended, and start what may start."""
        if self.busy:
            outcome = self._collect(self.busy)
            if outcome is None:
                return
            self.busy = None
            yield self._errand, outcome
        while self.waiting and not self.busy:
            job = self.waiting.pop(0)
            reason = self._orders.out_of_time()
            if reason:
                yield self._errand, Outcome(skipped=Skipped(job=job, reason=reason))
            elif self._node is None:
                yield self._errand, Outcome(skipped=Skipped(job=job, reason="its node has left the cluster"))
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
        except (self._ray.exceptions.RayError, ForgeryError) as err:
            return self._lost(busy, "crashed", f"its lease was lost: {type(err).__name__}")

    def _lost(self, busy: _Busy, how: FailureKind, reason: str) -> Outcome:
        self.close()  # the next job gets a new lease
        elapsed_s = time.monotonic() - busy.began
        failed = Failed(job=busy.job, started_at=busy.started_at, elapsed_s=elapsed_s, outcome=how, reason=reason)
        return Outcome(failed=failed)


class _Remote:
    """A lease as an actor. It speaks canonical bytes, so that nothing it returns is ever unpickled into an object of ours."""

    def __init__(self, kinds: tuple[Any, ...]) -> None:
        self._lease = Lease(kinds)

    def inspect(self) -> bytes:
        return codec.encode(self._lease.inspect())

    def measure(self, job: bytes, device: bytes, effort: bytes) -> bytes:
        args = codec.decode(job, Job), codec.decode(device, Device), codec.decode(effort, Effort)
        return codec.encode(self._lease.measure(*args))


def _actor(ray: Any, node: Any, kinds: tuple[str, ...], *, gpus: int = 0) -> Any:
    """Start a lease on one node. Never restarted and never retried by Ray: a benchmark must not run twice unseen."""
    remote = ray.remote(num_gpus=gpus, num_cpus=0, max_restarts=0, max_task_retries=0)(_Remote)
    return remote.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote(kinds)


def _inventory(ray: Any, place: str, ref: Any) -> Inventory:
    try:
        return replace(codec.decode(ray.get(ref, timeout=_LEASE_S), Inventory), place=place)
    except (ray.exceptions.RayError, ForgeryError) as err:
        msg = f"node {place[:8]} of the Ray cluster did not say what it has: {type(err).__name__}"
        raise FailureError(msg) from err


def _live(ray: Any) -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Connect to a cluster for the length of a context; `local` starts one of this machine and ends it."""
    ray = _import_ray()
    local = address in {None, "local"}
    try:
        ray.init(
            address="local" if local else address,
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
    except (ConnectionError, ValueError, RuntimeError) as err:
        msg = f"no Ray cluster answers at {address!r}: {str(err).splitlines()[0]}; use HOST:PORT of its head, or local"
        raise MisuseError(msg) from err
    try:
        yield ray
    finally:
        ray.shutdown()


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
