"""Whatever happens in whatever order: each job ends once, no device does two things at a time, and no try is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from harness.cli.run import _exit_code
from harness.cluster.cell import more_tries
from harness.cluster.scheduler import Scheduler
from harness.cluster.signals import (
    Acquire,
    Broke,
    Command,
    Ended,
    Event,
    Gone,
    Lane,
    Leased,
    Patience,
    Ping,
    Ponged,
    Refused,
    Release,
    Replied,
    Seen,
    Spent,
    Start,
)
from harness.cluster.spool import Reply
from harness.model import (
    Attempt,
    DeviceKind,
    Failed,
    FailureKind,
    Interval,
    Job,
    Measurement,
    Outcome,
    Round,
    Skipped,
    Work,
)
from harness.proof.verify import job_of

ABORTED = Attempt(number=1, started_at="then", elapsed_s=0.0, ended="aborted", reason="killed")
PATIENCE = Patience(lease_s=90, grace_s=15, ping_s=5, rejoin_s=120, backoff_s=1, backoff_most_s=30)
ALLOWED_S = 60.0


def job(n: int, lane: str = "GPU-1", benchmark: str | None = None) -> Job:
    return Job(benchmark=benchmark or f"b{n}", version=1, params={"n": n}, device_uuid=lane, seed="0")


def lane(*batches: Sequence[int], key: str = "GPU-1", kind: DeviceKind = "cuda", width: int | None = None) -> Lane:
    jobs = tuple(tuple(job(n, key) for n in batch) for batch in batches)
    return Lane(key=key, host="h", kind=kind, batches=jobs, place="p1", width=width, allowed_s=lambda _: ALLOWED_S)


def measured(job: Job) -> Outcome:
    return Outcome(
        measurement=Measurement(
            job=job,
            started_at="",
            elapsed_s=1.0,
            work=Work(flops=1),
            metric="compute",
            state="valid",
            reason="",
            time_s=1.0,
            interval=Interval(low_s=1.0, high_s=1.0, confidence_fraction=0.95),
            warmup_times_s=(),
            rounds=(Round(at_s=0.0, batch=1, times_s=(1.0,)),),
            telemetry=(),
            telemetry_lost=None,
            answer_digest="",
        )
    )


def failed(job: Job, how: FailureKind = "crashed") -> Outcome:
    return Outcome(failed=Failed(job=job, started_at="then", elapsed_s=2.0, outcome=how, reason="why"))


class Driver:
    """Does what a scheduler says, and lets a test decide what happens."""

    def __init__(self, *lanes: Lane, together: bool = False, patience: Patience = PATIENCE) -> None:
        self.scheduler = Scheduler(lanes, utc=lambda: "now", name="run", patience=patience, together=together)
        self.now = 0.0
        self.flights: dict[str, Start] = {}
        self.leasing: set[str] = set()
        self.leased: set[str] = set()
        self.pinged: set[str] = set()
        self.given_up: list[Start] = []
        self.ended: list[Outcome] = []
        self.started: list[Start] = []
        self.tell()

    def tell(self, *events: Event, after_s: float = 0.0) -> tuple[Command, ...]:
        self.now += after_s
        commands = self.scheduler.advance(self.now, events)
        for command in commands:
            self.obey(command)
        return commands

    def obey(self, command: Command) -> None:
        match command:
            case Acquire(lane):
                assert lane not in self.leased | self.leasing
                self.leasing.add(lane)
            case Start(lane):
                assert lane in self.leased
                assert lane not in self.flights
                self.flights[lane] = command
                self.started.append(command)
            case Ping(lane):
                assert lane in self.flights
                self.pinged.add(lane)
            case Release(lane):
                for held in (self.leased, self.leasing, self.pinged):
                    held.discard(lane)
                if lane in self.flights:
                    self.given_up.append(self.flights.pop(lane))
            case Ended(outcome=outcome):
                assert job_of(outcome) not in [job_of(o) for o in self.ended]
                self.ended.append(outcome)

    def lease(self, *lanes: str, recovered: tuple[Reply, ...] = ()) -> tuple[Command, ...]:
        self.leasing -= set(lanes)
        self.leased |= set(lanes)
        return self.tell(*(Leased(key, recovered) for key in lanes))

    def reply(self, *outcomes: Outcome, lane: str = "GPU-1", after_s: float = 1.0, **more: str) -> tuple[Command, ...]:
        self.pinged.discard(lane)
        return self.tell(Replied(lane, reply(self.flights.pop(lane), *outcomes, **more)), after_s=after_s)

    def finish(self) -> None:
        """Let everything go well from here on."""
        while not self.scheduler.finished:
            self.tell(*(Seen(key) for key in self.scheduler.missing()), after_s=1.0)
            self.lease(*self.leasing)
            for key, start in tuple(self.flights.items()):
                self.reply(*map(measured, start.jobs), lane=key, after_s=0.0)

    def only(self) -> Outcome:
        (outcome,) = self.ended
        return outcome


def reply(start: Start, *outcomes: Outcome, **more: str) -> Reply:
    return Reply(attempt=start.attempt, started_at="then", elapsed_s=1.0, outcomes=outcomes, **more)


def lost(outcome: Outcome) -> str:
    """Return why a job failed that was never tried."""
    assert outcome.failed
    assert (outcome.failed.outcome, outcome.failed.started_at, outcome.attempts) == ("lost", "now", ())
    return outcome.failed.reason


def ends(outcome: Outcome) -> list[tuple[int, str]]:
    return [(a.number, a.ended) for a in outcome.attempts]


def test_a_device_works_off_its_batches_one_at_a_time_and_is_given_back() -> None:
    driver = Driver(lane([1, 2], [3]))
    assert driver.scheduler.state("GPU-1") == "leasing"
    driver.lease("GPU-1")
    assert [s.jobs for s in driver.started] == [(job(1), job(2))]
    driver.reply(measured(job(2)), measured(job(1)))
    commands = driver.reply(measured(job(3)))
    assert [type(c) for c in commands] == [Ended, Release]
    assert driver.scheduler.finished
    assert not any(o.attempts for o in driver.ended)


@pytest.mark.parametrize(
    ("how", "tries"), [("wrong_answer", 1), ("failed", 1), ("out_of_memory", 1), ("crashed", 2), ("timeout", 2)]
)
def test_how_a_try_ended_decides_how_often_it_is_made(how: FailureKind, tries: int) -> None:
    driver = Driver(lane([1]))
    driver.lease("GPU-1")
    for _ in range(tries):
        driver.reply(failed(job(1), how))
    outcome = driver.only()
    assert outcome.failed
    assert outcome.failed.outcome == how
    assert ends(outcome) == [(n, how) for n in range(1, tries)]
    assert driver.scheduler.finished


def test_what_went_wrong_in_company_is_tried_again_alone() -> None:
    driver = Driver(lane([1, 2, 3], [4]))
    driver.lease("GPU-1")
    driver.reply(measured(job(1)), failed(job(2), "failed"), failed(job(3), "wrong_answer"))
    assert [o.failed.outcome for o in driver.ended if o.failed] == ["wrong_answer"]
    assert driver.started[-1].jobs == (job(2),)
    driver.reply(failed(job(2), "failed"))
    last = driver.ended[-1]
    assert ends(last) == [(1, "failed")]
    assert last.attempts[0].reason == "in company of other jobs: why"
    assert driver.started[-1].jobs == (job(4),)


def test_the_policy_counts_tries_of_each_kind() -> None:
    assert more_tries("lost", 3)
    assert not more_tries("lost", 4)
    assert more_tries("failed", 1, in_company=True)
    assert not more_tries("wrong_answer", 1, in_company=True)
    assert not more_tries("late", 1)


def test_a_lost_try_is_made_again_when_the_device_is_seen_and_not_before() -> None:
    driver = Driver(lane([1]))
    driver.lease("GPU-1")
    driver.tell(Broke("GPU-1", driver.started[0].attempt, "lost", "the network is gone"))
    assert driver.scheduler.missing() == ("GPU-1",)
    driver.tell(after_s=100)
    assert not driver.leasing
    driver.tell(Seen("GPU-1", "p2"))
    assert driver.scheduler.place("GPU-1") == "p2"
    driver.lease("GPU-1")
    driver.tell(after_s=2)
    driver.reply(measured(job(1)))
    (attempt,) = driver.only().attempts
    assert (attempt.number, attempt.ended, attempt.place, attempt.reason) == (1, "lost", "p1", "the network is gone")


def test_a_device_that_is_not_seen_again_is_given_up_with_its_jobs() -> None:
    driver = Driver(lane([1], [2]))
    driver.lease("GPU-1")
    driver.tell(Gone("GPU-1", "its node has left"))
    assert driver.scheduler.wait_s(driver.now, 500) == PATIENCE.rejoin_s
    driver.tell(after_s=PATIENCE.rejoin_s)
    tried, untried = driver.ended
    assert tried.failed
    assert (tried.failed.outcome, ends(tried)) == ("lost", [])
    assert tried.failed.reason.startswith(
        "its node has left; not tried again: its device is out of the run: it was lost"
    )
    assert lost(untried).endswith("not seen again within 120 s")
    assert driver.scheduler.state("GPU-1") == "quarantined"


def test_an_overdue_reply_makes_a_lease_suspect_and_a_ping_decides() -> None:
    due_s = ALLOWED_S + PATIENCE.grace_s
    driver = Driver(lane([1]))
    driver.lease("GPU-1")
    assert driver.tell(after_s=due_s - 0.1) == ()
    assert driver.tell(after_s=0.1) == (Ping("GPU-1"),)
    assert driver.scheduler.state("GPU-1") == "suspect"
    driver.tell(Ponged("GPU-1"))  # it lives, so it is the call that hangs
    driver.tell(Seen("GPU-1"))
    driver.lease("GPU-1")
    driver.tell(after_s=due_s)
    driver.tell(after_s=PATIENCE.ping_s)  # nothing: it is lost
    driver.finish()
    assert ends(driver.only()) == [(1, "timeout"), (2, "lost")]


def test_a_reply_within_the_ping_counts() -> None:
    driver = Driver(lane([1]))
    driver.lease("GPU-1")
    driver.tell(after_s=ALLOWED_S + PATIENCE.grace_s)
    driver.reply(measured(job(1)))
    assert driver.only().attempts == ()


def test_a_late_answer_is_recorded_and_does_not_count() -> None:
    driver = Driver(lane([1]))
    driver.lease("GPU-1")
    driver.tell(after_s=ALLOWED_S + PATIENCE.grace_s)
    driver.tell(Ponged("GPU-1"))
    driver.tell(Replied("GPU-1", reply(driver.given_up[0], measured(job(1)))))
    assert driver.ended == []
    driver.finish()
    (attempt,) = driver.only().attempts
    assert attempt.ended == "late"
    assert attempt.reason.startswith("timeout: its lease lives, but did not answer in time")


def test_what_a_spool_held_is_not_measured_again() -> None:
    driver = Driver(lane([1, 2], [3]))
    driver.lease("GPU-1")
    driver.tell(Broke("GPU-1", driver.started[0].attempt, "lost", "parted"))
    driver.tell(Seen("GPU-1"))
    driver.lease("GPU-1", recovered=(reply(driver.given_up[0], measured(job(1)), measured(job(2))),))
    assert [ends(o) for o in driver.ended] == [[(1, "lost")]] * 2
    assert driver.ended[0].attempts[0].reason == "parted; its answer lay in its node's spool, and counts"
    driver.finish()
    assert [s.jobs for s in driver.started] == [(job(1), job(2)), (job(3),)]


def test_what_an_earlier_driver_did_not_live_to_hear_counts() -> None:
    driver = Driver(lane([1, 2], [3]))
    theirs = Start("GPU-1", "earlier-7", ())
    driver.lease("GPU-1", recovered=(reply(theirs, measured(job(1)), failed(job(3))), reply(theirs, measured(job(9)))))
    driver.finish()
    assert {job_of(o).params["n"]: ends(o) for o in driver.ended if job_of(o)} == {  # type: ignore[union-attr]
        1: [(1, "aborted")],
        2: [],
        3: [(1, "crashed")],
    }


def test_what_an_earlier_driver_had_given_up_does_not_count_when_it_is_found() -> None:
    timeout = Attempt(number=1, started_at="then", elapsed_s=9.0, ended="timeout", reason="why")
    device = replace(lane([1]), past=lambda _: {"earlier-7": timeout})
    driver = Driver(device)
    driver.lease("GPU-1", recovered=(reply(Start("GPU-1", "earlier-7", ()), measured(job(1))),))
    assert driver.ended == []
    driver.finish()
    assert ends(driver.only()) == [(1, "late")]


def test_what_an_earlier_driver_had_heard_in_part_is_taken_in_part() -> None:
    """It noted the crash, and was killed before the other outcomes of the same reply were on its disk."""
    crashed = Attempt(number=1, started_at="then", elapsed_s=2.0, ended="crashed", reason="why")
    aborted = replace(crashed, ended="aborted")
    driver = Driver(replace(lane([1, 2]), past=lambda j: {"earlier-7": crashed if j == job(1) else aborted}))
    answer = reply(Start("GPU-1", "earlier-7", ()), failed(job(1)), measured(job(2)))
    driver.lease("GPU-1", recovered=(answer,))
    assert ends(driver.only()) == [(1, "aborted")]
    assert driver.only().measurement
    driver.finish()
    assert ends(driver.ended[1]) == [(1, "crashed")]


def test_a_spooled_answer_of_a_try_that_timed_out_is_late() -> None:
    driver = Driver(lane([1]))
    driver.lease("GPU-1")
    driver.tell(after_s=ALLOWED_S + PATIENCE.grace_s)
    driver.tell(Ponged("GPU-1"))
    driver.tell(Seen("GPU-1"))
    driver.lease("GPU-1", recovered=(reply(driver.given_up[0], measured(job(1))),))
    assert driver.ended == []
    driver.finish()
    assert ends(driver.only()) == [(1, "late")]


def test_a_disturbed_batch_is_measured_again_after_a_pause_and_in_the_end_fails() -> None:
    driver = Driver(lane([1, 2]))
    driver.lease("GPU-1")
    for _ in range(3):
        driver.reply(measured(job(1)), measured(job(2)), contended="process 7 computes too")
        assert driver.flights == {}
        driver.tell(after_s=PATIENCE.backoff_most_s)
    assert [s.jobs for s in driver.started] == [(job(1), job(2))] * 3
    for outcome in driver.ended:
        assert outcome.failed
        assert (outcome.failed.outcome, outcome.failed.reason) == ("contended", "process 7 computes too")
        assert ends(outcome) == [(1, "contended"), (2, "contended")]


def test_three_different_jobs_that_break_in_a_row_put_a_device_out_of_the_run() -> None:
    driver = Driver(lane([1], [2], [3], [4]))
    driver.lease("GPU-1")
    for n in (1, 1, 2):
        driver.reply(failed(job(n), "timeout"))
    assert driver.scheduler.state("GPU-1") == "quarantined"
    assert len(driver.ended) == 4
    assert [lost(o) for o in driver.ended[2:]] == ["its device is out of the run: 3 tries in a row broke on it"] * 2


def test_a_benchmark_that_always_crashes_is_its_own_fault() -> None:
    batches = tuple((job(n, benchmark="bad"),) for n in range(4))
    driver = Driver(Lane(key="GPU-1", host="h", kind="cuda", batches=batches))
    driver.lease("GPU-1")
    for batch in batches:
        driver.reply(failed(batch[0]))
        driver.reply(failed(batch[0]))
    assert driver.scheduler.state("GPU-1") == "done"


def test_a_lost_gpu_ends_its_lane_and_what_it_had_measured_stands() -> None:
    driver = Driver(lane([1, 2], [3]))
    driver.lease("GPU-1")
    driver.reply(measured(job(1)), failed(job(2), "failed"), device_lost="NVML lists it no more")
    good, broken, rest = driver.ended
    assert good.measurement
    assert broken.failed
    assert broken.failed.outcome == "lost"
    assert lost(rest) == "its device is out of the run: NVML lists it no more"
    assert driver.scheduler.state("GPU-1") == "quarantined"


def test_a_device_that_was_lost_to_an_earlier_driver_and_is_there_again_is_measured() -> None:
    driver = Driver(replace(lane([1], [2]), past=lambda j: {"earlier-7": ABORTED} if j == job(1) else {}))
    gone = reply(Start("GPU-1", "earlier-7", ()), failed(job(1), "lost"), device_lost="NVML lists it no more")
    driver.lease("GPU-1", recovered=(gone,))
    assert driver.scheduler.state("GPU-1") != "quarantined"
    driver.finish()
    assert [bool(outcome.measurement) for outcome in driver.ended] == [True, True]
    assert [ends(outcome) for outcome in driver.ended] == [[(1, "lost")], []]


def test_a_lease_that_is_not_to_be_had_is_reported_in_time() -> None:
    driver = Driver(lane([1]))
    driver.tell(after_s=PATIENCE.lease_s)
    assert "not to be had within 90 s" in lost(driver.only())
    assert _exit_code([SimpleNamespace(report=SimpleNamespace(outcomes=driver.ended))]) == 1  # type: ignore[list-item]
    refused = Driver(lane([1]))
    refused.tell(Refused("GPU-1", "no GPU is offered"))
    assert lost(refused.only()).endswith("no GPU is offered")


def test_leases_that_die_at_once_are_not_asked_for_for_ever() -> None:
    driver = Driver(lane([1]))
    for _ in range(12):
        assert driver.scheduler.state("GPU-1") == "leasing"
        driver.tell(Broke("GPU-1", None, "lost", "it died"), after_s=PATIENCE.rejoin_s / 11)
        driver.tell(Seen("GPU-1"))
    assert driver.scheduler.state("GPU-1") == "quarantined"


def test_when_the_budget_is_spent_nothing_new_begins_and_what_runs_is_awaited() -> None:
    driver = Driver(lane([1], [2]), lane([3], key="GPU-2"))
    driver.lease("GPU-1")
    driver.tell(Spent("the budget"))
    assert sorted(o.skipped.reason for o in driver.ended if o.skipped) == ["the budget", "the budget"]
    assert driver.scheduler.state("GPU-2") == "done"
    driver.reply(failed(job(1)))
    assert driver.ended[-1].failed
    assert driver.ended[-1].failed.reason == "why; not tried again: the budget"
    assert driver.scheduler.finished


def test_a_cpu_has_its_turn_after_the_gpus_of_its_host() -> None:
    driver = Driver(lane([1], key="CPU-1", kind="cpu"), lane([2], key="GPU-1"), lane([3], key="GPU-2"))
    assert driver.leasing == {"GPU-1", "GPU-2"}
    driver.lease("GPU-1", "GPU-2")
    driver.reply(measured(job(2)), lane="GPU-1")
    assert driver.leasing == set()
    driver.reply(measured(job(3, "GPU-2")), lane="GPU-2")
    assert driver.leasing == {"CPU-1"}


def test_on_one_machine_without_ray_devices_have_their_turns_in_the_order_of_the_plan() -> None:
    driver = Driver(lane([1], key="CPU-1", kind="cpu", width=1), lane([2], width=1))
    assert driver.leasing == {"CPU-1"}
    driver.finish()
    assert [s.lane for s in driver.started] == ["CPU-1", "GPU-1"]


def test_leases_are_asked_for_a_few_at_a_time() -> None:
    driver = Driver(*(lane([1], key=f"GPU-{n}") for n in range(20)))
    assert len(driver.leasing) == PATIENCE.leasing_most
    driver.lease("GPU-0")
    assert len(driver.leasing) == PATIENCE.leasing_most


def test_together_the_gpus_of_a_host_start_each_batch_at_the_same_moment() -> None:
    driver = Driver(lane([1], [2]), lane([3], [4], [5], key="GPU-2"), together=True)
    driver.lease("GPU-1")
    assert driver.started == []
    driver.lease("GPU-2")
    assert [s.lane for s in driver.started] == ["GPU-1", "GPU-2"]
    driver.reply(measured(job(1)))
    assert len(driver.started) == 2
    driver.reply(measured(job(3, "GPU-2")), lane="GPU-2")
    assert [s.lane for s in driver.started[2:]] == ["GPU-1", "GPU-2"]
    driver.finish()
    assert len(driver.started) == 5


def test_together_with_fewer_leases_than_gpus_still_ends() -> None:
    driver = Driver(*(lane([1], [2], key=f"GPU-{n}", width=2) for n in range(3)), together=True)
    driver.finish()
    assert len(driver.ended) == 6


def test_jobs_that_are_not_to_be_measured_are_skipped_without_a_lease() -> None:
    def hindrance(job: Job) -> str | None:
        return "not here" if job.params["n"] == 1 else None

    device = Lane(key="GPU-1", host="h", kind="cuda", batches=((job(1),), (job(2),)), hindrance=hindrance)
    driver = Driver(device)
    assert [o.skipped.reason for o in driver.ended if o.skipped] == ["not here"]
    driver.finish()
    assert [s.jobs for s in driver.started] == [(job(2),)]


KINDS: tuple[FailureKind, ...] = ("wrong_answer", "failed", "crashed", "timeout", "out_of_memory")


def _made(way: str, job: Job) -> Outcome:
    if way == "ok":
        return measured(job)
    kinds = {kind: kind for kind in KINDS}
    return failed(job, kinds[way]) if way in kinds else Outcome(skipped=Skipped(job=job, reason=""))


class AnyOrder(RuleBasedStateMachine):
    """A cluster at its worst."""

    driver: Driver

    @initialize(sizes=st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3), together=st.booleans())
    def begin(self, sizes: list[list[int]], *, together: bool) -> None:
        lanes = []
        for i, batches in enumerate(sizes):
            count = iter(range(99))
            key = "CPU-0" if i == 2 else f"GPU-{i}"
            numbers = [[next(count) for _ in range(size)] for size in batches]
            lanes.append(lane(*numbers, key=key, kind="cpu" if i == 2 else "cuda"))
        self.driver = Driver(*lanes, together=together)
        self.jobs = [job for lane in lanes for batch in lane.batches for job in batch]
        self.keys = [lane.key for lane in lanes]

    @rule(data=st.data())
    def leased(self, data: st.DataObject) -> None:
        if self.driver.leasing:
            key = data.draw(st.sampled_from(sorted(self.driver.leasing)))
            old = [s for s in self.driver.given_up if s.lane == key and data.draw(st.booleans())]
            self.driver.lease(key, recovered=tuple(reply(s, *self._outcomes(s, data)) for s in old))

    @rule(data=st.data(), kind=st.sampled_from(["whole", "contended", "device_lost"]))
    def replied(self, data: st.DataObject, kind: str) -> None:
        if self.driver.flights:
            start = self.driver.flights[data.draw(st.sampled_from(sorted(self.driver.flights)))]
            more = {} if kind == "whole" or data.draw(st.integers(0, 3)) else {kind: "so it is"}
            self.driver.reply(*self._outcomes(start, data), lane=start.lane, after_s=1.0, **more)

    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        if self.driver.given_up:
            start = data.draw(st.sampled_from(self.driver.given_up))
            self.driver.tell(Replied(start.lane, reply(start, *self._outcomes(start, data))))

    def _outcomes(self, start: Start, data: st.DataObject) -> list[Outcome]:
        ways = data.draw(
            st.lists(st.sampled_from(["ok", "skip", *KINDS]), min_size=len(start.jobs), max_size=len(start.jobs))
        )
        return [_made(way, job) for way, job in zip(ways, start.jobs, strict=True)]

    @rule(data=st.data(), what=st.sampled_from(["broke", "crashed", "gone", "pong", "seen", "refused", "no lease"]))
    def happened(self, data: st.DataObject, what: str) -> None:
        key = data.draw(st.sampled_from(self.keys))
        flight = self.driver.flights.get(key)
        attempt = flight.attempt if flight else "run-0"
        events: dict[str, Event] = {
            "broke": Broke(key, attempt, "lost", "it broke"),
            "crashed": Broke(key, attempt, "crashed", "it crashed"),
            "no lease": Broke(key, None, "lost", "it broke"),
            "gone": Gone(key, "its node has left"),
            "pong": Ponged(key),
            "seen": Seen(key),
            "refused": Refused(key, "never"),
        }
        if what != "refused" or data.draw(st.integers(0, 9)) == 0:
            self.driver.tell(events[what])

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 20.0, 80.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.driver.tell(after_s=seconds)

    @precondition(lambda self: self.driver.now > 300)
    @rule()
    def spent(self) -> None:
        self.driver.tell(Spent("the budget"))

    @invariant()
    def nothing_is_said_twice(self) -> None:
        assert self.driver.scheduler.wait_s(self.driver.now, 1.0) <= 1.0

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.finish()
            assert sorted(str(job_of(o)) for o in self.driver.ended) == sorted(map(str, self.jobs))
            assert not self.driver.leased | self.driver.leasing | set(self.driver.flights)
            for outcome in self.driver.ended:
                numbers = [a.number for a in outcome.attempts]
                assert numbers == sorted(set(numbers))


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
