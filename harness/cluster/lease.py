"""Exclusive use of a node's isolated processes, one task at a time. The same class serves this process and a Ray actor."""

from __future__ import annotations

from collections.abc import Collection
from typing import Self

from harness import codec
from harness.cluster.isolate import Nursery
from harness.cluster.plan import deadline_s
from harness.cluster.task import Inventory, Task, environment_for
from harness.errors import FailureError, ForgeryError
from harness.measure.rounds import Effort
from harness.measure.runner import now
from harness.model import Device, DeviceKind, Failed, Job, Outcome
from harness.proof.verify import job_of

__all__ = ["Lease", "answered"]

_INSPECT_S = 120.0


class Lease:
    """Runs tasks in fresh processes on the machine it lives on. Close it, or use it as a context."""

    def __init__(self, kinds: Collection[DeviceKind] = ()) -> None:
        """Prepare for measuring on these kinds of device; none is needed to inspect."""
        wanted = {"cpu": ("numba",), "cuda": ("numba", "cupy", "numba.cuda")}
        heavy = dict.fromkeys(module for kind in sorted(kinds) for module in wanted[kind])
        self._nursery = Nursery(("harness.cluster.task", *heavy))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End whatever still runs."""
        self._nursery.close()

    def inspect(self) -> Inventory:
        """Find out what this node has, in a process to spare: a driver that hangs or crashes hurts nobody else.

        Raises:
            FailureError: that process crashed or did not end.
        """
        ended = self._nursery.run(codec.encode(Task(kind="inspect")), deadline_s=_INSPECT_S)
        if ended.how != "ok":
            msg = f"cannot inspect this node's devices: {ended.why}"
            raise FailureError(msg)
        return codec.decode(ended.result, Inventory)

    def measure(self, job: Job, device: Device, effort: Effort) -> Outcome:
        """Carry out one job. However it ends, that is its outcome."""
        started_at = now()
        task = codec.encode(Task(kind="measure", job=job, device=device, effort=effort))
        ended = self._nursery.run(task, deadline_s=deadline_s(effort, device), env=environment_for(device))
        how, why = ended.how, ended.why
        if how == "ok":
            try:
                return answered(ended.result, job)
            except ForgeryError as err:
                how, why = "crashed", f"the process did not answer with this job's outcome: {err}"
        failed = Failed(job=job, started_at=started_at, elapsed_s=ended.elapsed_s, outcome=how, reason=why)
        return Outcome(failed=failed)


def answered(data: bytes, job: Job) -> Outcome:
    """Read the outcome of a job from the bytes that came back for it.

    Raises:
        ForgeryError: they are no outcome, or another job's.
    """
    outcome = codec.decode(data, Outcome)
    if job_of(outcome) != job:
        what = "not the outcome of the job that was asked for"
        raise ForgeryError(what)
    return outcome
