"""Exclusive use of a node's isolated processes, one task at a time. The same class serves this process and a Ray actor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Self

from harness import codec
from harness.cluster.isolate import Nursery
from harness.cluster.plan import deadline_s
from harness.cluster.task import Inventory, Task, answered, environment_for
from harness.errors import FailureError, ForgeryError
from harness.measure.rounds import Effort, adapted
from harness.measure.runner import now
from harness.model import Attempt, Device, DeviceKind, Failed, Job, Outcome
from harness.proof.verify import job_of

__all__ = ["Lease"]

_INSPECT_S = 120.0


class Lease:
    """Runs tasks in fresh processes on the machine it lives on. Close it, or use it as a context."""

    def __init__(self, kinds: Collection[DeviceKind] = ()) -> None:
        """Prepare for measuring on these kinds of device; none is needed to inspect."""
        wanted = {"cpu": ("harness.device.numba_ready",), "cuda": ("harness.device.numba_ready", "cupy", "numba.cuda")}
        heavy = dict.fromkeys(module for kind in sorted(kinds) for module in wanted[kind])
        self._nursery = Nursery(("harness.cluster.task", *heavy))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End whatever still runs."""
        self._nursery.close()

    def inspect(self, idle_s: float = 0.0) -> Inventory:
        """Find out what this node has, in a process to spare: a driver that hangs or crashes hurts nobody else.

        With `idle_s` the devices are watched at rest for so long, each in its turn.

        Raises:
            FailureError: that process crashed or did not end.
        """
        ended = self._nursery.run(codec.encode(Task(kind="inspect", idle_s=idle_s)), deadline_s=_INSPECT_S)
        if ended.how != "ok":
            msg = f"cannot inspect this node's devices: {ended.why}"
            raise FailureError(msg)
        return codec.decode(ended.result, Inventory)

    def measure(self, job: Job, device: Device, effort: Effort, peers: Sequence[str] = ()) -> Outcome:
        """Carry out one job, which sees its device and these other GPUs. However it ends, that is its outcome."""
        (outcome,) = self.measure_together([job], device, effort, peers=peers)
        return outcome

    def measure_together(
        self,
        jobs: Sequence[Job],
        device: Device,
        effort: Effort,
        *,
        peers: Sequence[str] = (),
        idle_w: float | None = None,
    ) -> tuple[Outcome, ...]:
        """Carry out jobs of one device in one process, taking turns; return an outcome for each, in their order.

        Whatever goes wrong in company is tried again alone, in a process of its own: one job's crash is no other's failure.
        """

        def attempt(chosen: Sequence[Job]) -> tuple[Outcome, ...]:
            task = Task(
                kind="measure", jobs=tuple(chosen), device=device, effort=adapted(effort, device.kind), idle_w=idle_w
            )
            return self._attempt(task, deadline_s(effort, device, chosen), environment_for(device, peers))

        outcomes = attempt(jobs)
        if len(jobs) == 1:
            return outcomes
        return tuple(
            _after(o.failed, *attempt([o.failed.job])) if o.failed and _may_be_anothers_fault(o.failed) else o
            for o in outcomes
        )

    def _attempt(self, task: Task, deadline: float, env: Mapping[str, str]) -> tuple[Outcome, ...]:
        """Carry out a task once; return an outcome for each of its jobs, a failure for those that did not answer."""
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
        return tuple(sorted(outcomes, key=lambda outcome: task.jobs.index(job_of(outcome))))


def _may_be_anothers_fault(failed: Failed) -> bool:
    return failed.outcome != "wrong_answer"


def _after(failed: Failed, outcome: Outcome) -> Outcome:
    """Return a second try's outcome with the first one, which was made in company, on record."""
    attempt = Attempt(
        number=1,
        started_at=failed.started_at,
        elapsed_s=failed.elapsed_s,
        ended=failed.outcome,
        reason=f"in company of other jobs: {failed.reason}",
    )
    return replace(outcome, attempts=(attempt,))
