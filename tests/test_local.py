"""On this machine devices have their turns, or begin together; an interrupted run ends what it had begun."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from fakefleet import QUICK, IdleLease
from test_ray import HASTE, errand
from test_resume import head, read

from harness import codec
from harness.cluster import session
from harness.cluster.errand import Errand, Orders
from harness.cluster.interrupts import held_off
from harness.cluster.isolate import Ended, Interrupted
from harness.cluster.journal import Journal
from harness.cluster.lease import Lease, Order
from harness.cluster.local import run_here
from harness.cluster.session import Silent
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory, Look, Task
from harness.errors import FailureError
from harness.measure.rounds import Effort
from harness.model import Attempt, Device, DeviceKind, Failed, Job, Outcome, Skipped


class TimedLease:
    """Skips every job after a moment, and remembers when it had which device."""

    spans: ClassVar[list[tuple[str, float, float]]] = []
    made: ClassVar[list[TimedLease]] = []

    def __init__(self, kinds: Sequence[DeviceKind]) -> None:
        self.aborted, self.closed = threading.Event(), False
        self.made.append(self)

    def carry_out(self, order: Order) -> Reply:
        began = time.monotonic()
        self.aborted.wait(0.05)
        self.spans.append((order.device.uuid, began, time.monotonic()))
        outcomes = tuple(Outcome(skipped=Skipped(job=job, reason="a test")) for job in order.jobs)
        return Reply(attempt=order.attempt, started_at="", elapsed_s=0.0, outcomes=outcomes)

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.closed = True


class CrashingLease(TimedLease):
    """Crashes on every try."""

    def carry_out(self, order: Order) -> Reply:
        outcomes = tuple(
            Outcome(failed=Failed(job=job, started_at="", elapsed_s=0.0, outcome="crashed", reason="so it is"))
            for job in order.jobs
        )
        return Reply(attempt=order.attempt, started_at="", elapsed_s=0.0, outcomes=outcomes)


class BrokenLease(TimedLease):
    """Cannot start a process."""

    def carry_out(self, order: Order) -> Reply:
        msg = "cannot start a process to measure in"
        raise FailureError(msg)


@pytest.fixture(autouse=True)
def fresh() -> None:
    TimedLease.spans.clear()
    TimedLease.made.clear()


def orders(**more: object) -> Orders:
    settings: dict[str, object] = {
        "effort": Effort(warmup_s=0.0, budget_s=0.0),
        "started": lambda _: None,
        "out_of_time": lambda: None,
        "lease": TimedLease,
        "patience": HASTE,
    }
    return Orders(**(settings | more))  # type: ignore[arg-type]


def overlapping() -> int:
    spans = sorted(TimedLease.spans, key=lambda span: span[1])
    return sum(b[1] < a[2] for i, a in enumerate(spans) for b in spans[i + 1 :])


def test_devices_have_their_turns_in_the_order_of_the_plan_and_share_a_lease() -> None:
    outcomes = list(run_here([errand("CPU-1", "GPU-1", "GPU-2")], orders()))
    assert [uuid for uuid, *_ in TimedLease.spans] == ["CPU-1", "GPU-1", "GPU-2"]
    assert overlapping() == 0
    assert len(outcomes) == 3
    assert [lease.closed for lease in TimedLease.made] == [True]


def test_together_the_gpus_begin_at_the_same_moment_and_the_cpu_waits() -> None:
    list(run_here([errand("CPU-1", "GPU-1", "GPU-2")], orders(together=True)))
    (first, second, last) = TimedLease.spans
    assert {first[0], second[0]} == {"GPU-1", "GPU-2"}
    assert abs(first[1] - second[1]) < 0.03
    assert last[0] == "CPU-1"
    assert last[1] >= max(first[2], second[2])
    assert all(lease.closed for lease in TimedLease.made)


def test_every_try_is_on_record_from_its_beginning() -> None:
    told: list[tuple[str, str]] = []

    def tried(errand: Errand, name: str, job: Job, attempt: Attempt) -> None:
        told.append((name[-2:], attempt.ended))

    ((_, outcome),) = run_here([errand("CPU-1")], orders(lease=CrashingLease, tried=tried))
    assert told == [("-1", "aborted"), ("-1", "crashed"), ("-2", "aborted"), ("-2", "crashed")]
    assert outcome.failed
    assert [a.number for a in outcome.attempts] == [1]


def test_tries_of_a_driver_that_was_killed_are_sealed_with_the_outcome() -> None:
    killed = Attempt(number=1, started_at="then", elapsed_s=0.0, ended="aborted", reason="killed")
    crashed = Attempt(number=2, started_at="then", elapsed_s=0.0, ended="crashed", reason="so it is")
    work = errand("CPU-1")
    past = Errand(inventory=work.inventory, jobs=work.jobs, past=lambda _: {"x-1": killed, "x-2": crashed})
    ((_, outcome),) = run_here([past], orders(lease=CrashingLease))
    assert outcome.failed  # the policy counts what was before: one more try after a crash
    assert [(a.number, a.ended) for a in outcome.attempts] == [(1, "aborted"), (2, "crashed")]


class LookingLease(IdleLease):
    """Counts how often it looks at its device."""

    looks = 0

    def look(self, device: Device) -> Look:
        self.looks += 1
        return Look(present=True)


def test_the_look_after_one_try_is_the_one_before_the_next_unless_time_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = errand("GPU-1", "GPU-2")
    orders = [
        Order(attempt=str(n), jobs=(job,), device=work.device(job), effort=QUICK) for n, job in enumerate(work.jobs)
    ]
    with LookingLease() as lease:
        for order in (orders[0], orders[0], orders[0]):
            lease.carry_out(order)
        assert lease.looks == 4
        lease.carry_out(orders[1])
        assert lease.looks == 6
        now = time.monotonic()
        monkeypatch.setattr("harness.cluster.lease.time.monotonic", lambda: now + 2)
        lease.carry_out(orders[1])
        assert lease.looks == 8


def test_a_machine_on_which_nothing_can_be_started_fails_the_run_and_leaves_nothing() -> None:
    for together in (False, True):
        with pytest.raises(FailureError, match="cannot start a process"):
            list(run_here([errand("GPU-1", "GPU-2")], orders(lease=BrokenLease, together=together)))
    assert all(lease.closed for lease in TimedLease.made)


class Interrupting:
    """A nursery whose jobs are all skipped, and that gets SIGINT in the middle of something."""

    def __init__(self, jobs: Sequence[Job], when: str) -> None:
        self.said = b"".join(codec.encode(Outcome(skipped=Skipped(job=job, reason="a test"))) + b"\n" for job in jobs)
        self.when, self.looks = when, 0

    def run(self, task: bytes, **_: object) -> Ended:
        if codec.decode(task, Task).kind == "measure":
            if self.when == "the last second":
                raise Interrupted(self.said)
            return Ended(how="ok", result=self.said, why="", elapsed_s=1.0)
        self.looks += 1
        if self.looks == 2 and self.when == "the look after":
            raise Interrupted(b"")  # noqa: EM101 - what it had said
        return Ended(how="ok", result=codec.encode(Look(present=True)), why="", elapsed_s=0.0)

    def close(self) -> None:
        """End nothing: it began nothing."""


@pytest.mark.parametrize("when", ["the last second", "the look after", "the saving of the first"])
def test_ctrl_c_after_a_batch_was_measured_loses_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    jobs = tuple(Job(benchmark="b", version=1, params={"n": n}, device_uuid="GPU-1", seed="0") for n in range(8))
    gpu = Device(uuid="GPU-1", name="x", kind="cuda", selector="cuda:0", driver="1", sensors={})
    report = replace(head(1), devices=(gpu,), plan=jobs)
    inventory = Inventory(node=report.node, environment=report.environment, devices=(gpu,))
    monkeypatch.setattr(Lease, "__init__", lambda self, _: told(self, Interrupting(jobs, when)))

    class Follower(Silent):
        def ended(self, outcome: Outcome) -> None:
            if when == "the saving of the first":
                signal.raise_signal(signal.SIGINT)
                monkeypatch.setattr(signal, "raise_signal", lambda _: None)

    journal, ways = Journal(tmp_path, report, None), session._Ways(force=False, together=False, live=None)
    with pytest.raises(KeyboardInterrupt):
        session._carry_out([(Errand(inventory=inventory, jobs=jobs), journal)], "quick", None, None, Follower(), ways)
    assert len(read(journal.path).outcomes) == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def told(lease: Lease, nursery: Interrupting) -> None:
    lease._nursery, lease._looked, lease._spool, lease._claim = nursery, None, None, None  # type: ignore[assignment]


def test_of_two_ctrl_c_the_second_does_not_wait() -> None:
    reached = []

    def save() -> None:
        with held_off():
            signal.raise_signal(signal.SIGINT)
            reached.append("after the first")
            signal.raise_signal(signal.SIGINT)
            reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        save()
    assert reached == ["after the first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_elsewhere_than_in_the_main_thread_there_is_nothing_to_hold_off() -> None:
    done = []

    def work() -> None:
        with held_off():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]
