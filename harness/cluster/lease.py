"""Exclusive use of a node's isolated processes, one task at a time. The same class serves this process and a Ray actor."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from harness import codec
from harness.cluster.isolate import Interrupted, Nursery
from harness.cluster.plan import deadline_s
from harness.cluster.spool import Reply, Spool, claim
from harness.cluster.task import Inventory, Look, Task, answered, environment_for
from harness.device.sensors import GpuProcess
from harness.errors import FailureError, ForgeryError
from harness.measure.rounds import Effort, adapted
from harness.measure.runner import now
from harness.model import Device, DeviceKind, Failed, Job, Outcome
from harness.proof.verify import job_of

__all__ = ["CutShort", "Lease", "Order"]

_INSPECT_S = 120.0  # besides watching: the GPUs at rest, and then the CPU
_LOOK_S = 30.0
_MOMENT_S = 1.0
_OUTLIVED_S = 1.0  # when a driver dies, Ray kills the processes of a lease before the lease: that is no crash of theirs


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One try at a batch of jobs of one device."""

    attempt: str
    jobs: tuple[Job, ...]
    device: Device
    effort: Effort
    peers: tuple[str, ...] = ()
    idle_w: float | None = None
    alone: bool = True  # whether it matters that nobody else computes on the device
    live: str | None = None  # the file to pin each moment to; empty: the node's own, which can be asked for


class CutShort(KeyboardInterrupt):
    """Ctrl-C in the middle of a batch; `reply` holds the outcomes that were known by then."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class Lease:
    """Runs tasks in fresh processes on the machine it lives on. Close it, or use it as a context."""

    def __init__(self, kinds: Collection[DeviceKind] = ()) -> None:
        """Prepare for measuring on these kinds of device; none is needed to inspect."""
        wanted = {"cpu": ("harness.device.numba_ready",), "cuda": ("harness.device.numba_ready", "cupy", "numba.cuda")}
        heavy = dict.fromkeys(module for kind in sorted(kinds) for module in wanted[kind])
        self._nursery = Nursery(("harness.cluster.task", *heavy))
        self._looked: tuple[str, float, Look] | None = None  # at which device, when, and what was seen
        self._spool: Spool | None = None
        self._claim: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End whatever still runs."""
        self._nursery.close()
        if self._spool:
            self._spool.close()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def abort(self) -> None:
        """End the task that runs now, from another thread than it was started from: its outcome is a crash."""
        self._nursery.abort()

    def inspect(self, idle_s: float = 0.0) -> Inventory:
        """Find out what this node has, in a process to spare: a driver that hangs or crashes hurts nobody else.

        With `idle_s` the devices are watched at rest for so long, first all GPUs and then the CPU.

        Raises:
            FailureError: that process crashed or did not end.
        """
        asked = codec.encode(Task(kind="inspect", idle_s=idle_s))
        ended = self._nursery.run(asked, deadline_s=_INSPECT_S + 2 * idle_s)
        if ended.how != "ok":
            msg = f"cannot inspect this node's devices: {ended.why}"
            raise FailureError(msg)
        return codec.decode(ended.result, Inventory)

    def look(self, device: Device) -> Look:
        """Find out whether a GPU is still there and who else computes on it; a CPU always is, and shared with everybody."""
        if device.kind == "cpu" or device.emulated:
            return Look(present=True)
        ended = self._nursery.run(codec.encode(Task(kind="look", device=device)), deadline_s=_LOOK_S)
        # A driver that hangs or crashes on a mere look is as good as a card that has gone.
        return codec.decode(ended.result, Look) if ended.how == "ok" else Look(present=False, why=ended.why)

    def collect(self, run: str, uuid: str, have: Collection[str]) -> tuple[Reply, ...]:
        """Wait for a device to be nobody else's; return what was measured of it in a run and never acknowledged.

        From now on the replies are kept, and no other lease of this node gets the device.

        Raises:
            FailureError: there is no place to keep them in.
        """
        if self._claim is None:
            self._claim = claim(uuid)
        self._spool = Spool(run, uuid)
        return self._spool.collect(have)

    def acknowledge(self, have: Collection[str]) -> None:
        """Forget replies that have arrived."""
        if self._spool:
            self._spool.forget(have)

    def carry_out(self, order: Order) -> Reply:
        """Make one try at a batch; keep the reply, where there is a spool, before giving it: a crash only once it is outlived.

        Raises:
            CutShort: by Ctrl-C, when some of the batch had been measured.
        """
        before = self._just_seen(order.device) or self.look(order.device)
        reply = self._lost(order, before) if not before.present else self._try(order, before)
        if self._spool:
            if _crashed(reply):
                time.sleep(_OUTLIVED_S)
            self._spool.keep(reply)
        return reply

    def measure(self, job: Job, device: Device, effort: Effort) -> Outcome:
        """Make one try at one job. However it ends, that is its outcome."""
        (outcome,) = self.carry_out(Order(attempt="0", jobs=(job,), device=device, effort=effort)).outcomes
        return outcome

    def _try(self, order: Order, before: Look) -> Reply:
        task = Task(
            kind="measure",
            jobs=order.jobs,
            device=order.device,
            effort=adapted(order.effort, order.device.kind),
            idle_w=order.idle_w,
            live=order.live,
        )
        deadline = deadline_s(order.effort, order.device, order.jobs)
        started_at = now()
        cut: KeyboardInterrupt | None = None
        try:
            reply = self._attempt(order.attempt, task, deadline, environment_for(order.device, order.peers))
        except Interrupted as err:
            reply, cut = _known(order, err.result, started_at), err
            if not reply.outcomes:
                raise
        try:
            judged = self._judged(order, before, reply)
        except KeyboardInterrupt as err:
            if cut is not None:
                raise  # the second one does not wait
            cut, judged = err, self._judged(order, before, reply)
        if cut is not None:
            raise CutShort(judged) from cut
        return judged

    def _judged(self, order: Order, before: Look, reply: Reply) -> Reply:
        """Return a reply with what a look at the device says of it: whether it is there, and who else computed on it."""
        after = self.look(order.device)
        self._looked = (order.device.uuid, time.monotonic(), after)
        return replace(
            reply,
            contended=_company(before, after) if order.alone else None,
            device_lost=None if after.present else _gone(after),
        )

    def _just_seen(self, device: Device) -> Look | None:
        """Return what was seen of a device after the try before, if that was a moment ago: a look costs a process."""
        if self._looked is None:
            return None
        uuid, at, look = self._looked
        return look if uuid == device.uuid and time.monotonic() - at < _MOMENT_S else None

    def _lost(self, order: Order, look: Look) -> Reply:
        started_at, reason = now(), _gone(look)
        outcomes = (
            Outcome(failed=Failed(job=job, started_at=started_at, elapsed_s=0.0, outcome="lost", reason=reason))
            for job in order.jobs
        )
        return Reply(
            attempt=order.attempt,
            started_at=started_at,
            elapsed_s=0.0,
            outcomes=tuple(outcomes),
            device_lost=reason,
        )

    def _attempt(self, attempt: str, task: Task, deadline: float, env: Mapping[str, str]) -> Reply:
        """Carry out a task once; answer with an outcome for each of its jobs, a failure for those that did not say any."""
        started_at = now()
        ended = self._nursery.run(codec.encode(task), deadline_s=deadline, env=env)
        how, why, outcomes = ended.how, ended.why, list[Outcome]()
        try:
            outcomes += answered(ended.result, task.jobs)
        except ForgeryError as err:
            how, why = "crashed", f"the process did not answer with this job's outcome: {err}"
        if how == "ok":
            how, why = "crashed", "the process did not answer with this job's outcome"
        told = [job_of(outcome) for outcome in outcomes]
        silent = (job for job in task.jobs if job not in told)
        failures = (
            Failed(job=job, started_at=started_at, elapsed_s=ended.elapsed_s, outcome=how, reason=why) for job in silent
        )
        outcomes += [Outcome(failed=failed) for failed in failures]
        outcomes.sort(key=lambda outcome: task.jobs.index(job_of(outcome)))
        return Reply(attempt=attempt, started_at=started_at, elapsed_s=ended.elapsed_s, outcomes=tuple(outcomes))


def _known(order: Order, result: bytes, started_at: str) -> Reply:
    """Return what a process had measured when it was interrupted; of the other jobs, nothing."""
    try:
        outcomes = answered(result, order.jobs)
    except ForgeryError:
        outcomes = ()
    return Reply(attempt=order.attempt, started_at=started_at, elapsed_s=0.0, outcomes=outcomes)


def _crashed(reply: Reply) -> bool:
    return any(outcome.failed and outcome.failed.outcome == "crashed" for outcome in reply.outcomes)


def _gone(look: Look) -> str:
    return ": ".join(filter(None, ("the driver does not list its device any more", look.why)))


def _company(before: Look, after: Look) -> str | None:
    seen: Sequence[GpuProcess] = (*(before.neighbours or ()), *(after.neighbours or ()))
    pids = ", ".join(str(pid) for pid in sorted({p.pid for p in seen}))
    return (
        f"other processes computed on the GPU: {pids}; end them, or measure all the same with --force" if pids else None
    )
