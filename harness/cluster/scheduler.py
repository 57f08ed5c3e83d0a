"""Who measures what next, and what becomes of a try that came to nothing: decided here, carried out elsewhere.

A state machine for each device and one for each try. Events and the time go in, commands come out; nothing here waits, reads a clock or
knows of Ray. What holds whatever happens: a device has at most one batch of jobs at work, every job ends in exactly one outcome, and every
other try at it stands in that outcome.

A device:  discovered > leasing > idle <> running > suspect (its reply is overdue) > lost (until it is seen again) > leasing ...
           and in the end done, or quarantined with the reason.
A try:     started > its outcome, or one of the ways to end in `RETRIES`, each with its own patience.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

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
    Tried,
)
from harness.cluster.spool import Reply
from harness.model import Attempt, AttemptEnd, Failed, FailureKind, Job, Outcome, Skipped
from harness.proof.verify import job_of

__all__ = [
    "RETRIES",
    "DeviceState",
    "Scheduler",
    "more_tries",
]

DeviceState = Literal["discovered", "leasing", "idle", "running", "suspect", "lost", "quarantined", "done"]

# How many more tries a job gets, by how one ended. An exception would come again; a crash or a hang may have been chance.
RETRIES: Mapping[AttemptEnd, int] = {
    "wrong_answer": 0,
    "failed": 0,
    "out_of_memory": 0,
    "crashed": 1,
    "timeout": 1,
    "contended": 2,
    "lost": 3,
}
_AT_WORK = frozenset({"leasing", "idle", "running", "suspect"})
_OVER = frozenset({"quarantined", "done"})


def more_tries(ended: AttemptEnd, tries: int, *, in_company: bool = False) -> bool:
    """Tell whether a job is tried again after so many tries that ended so, this one among them.

    What goes wrong in company may be another job's fault, so it is tried once more, alone; a wrong answer is nobody else's.
    """
    allowed = RETRIES.get(ended, 0)
    if in_company and ended != "wrong_answer":
        allowed = max(allowed, 1)
    return tries <= allowed


@dataclass(slots=True, eq=False)
class _Cell:
    """A job on its way to its outcome."""

    job: Job
    started: int = 0
    attempts: dict[str, Attempt] = field(default_factory=dict)
    tries: Counter[AttemptEnd] = field(default_factory=Counter)  # by how they ended, before any answer that came late
    over: bool = False


def _cell(job: Job, past: Mapping[str, Attempt]) -> _Cell:
    started = max((attempt.number for attempt in past.values()), default=0)
    tries = Counter(attempt.ended for attempt in past.values())
    return _Cell(job, started=started, attempts=dict(past), tries=tries)


@dataclass(slots=True, eq=False)
class _Batch:
    cells: list[_Cell]
    not_before: float = 0.0


@dataclass(slots=True, eq=False)
class _Flight:
    attempt: str
    cells: list[_Cell]
    started_at: str
    began: float
    due: float


class _Device:
    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.place = lane.place
        self.state: DeviceState = "discovered"
        self.until = 0.0  # the deadline of the state it is in
        self.waiting = deque(_Batch([_cell(job, lane.past(job)) for job in jobs]) for jobs in lane.batches)
        self.flight: _Flight | None = None
        self.streak: list[str | None] = []  # what broke in a row: a benchmark's name, or none where the lease did
        self.given_up: dict[str, _Flight] = {}
        self.lost_until: float | None = None  # since it was lost and not yet leased again
        self.ailing: str | None = None  # why not to go on with it

    @property
    def active(self) -> bool:
        return bool(self.flight or self.waiting)


class Scheduler:
    """Decides for all devices of a run. Feed it what happened by `advance`, and do what it says."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        utc: Callable[[], str],
        name: str = "0",
        patience: Patience | None = None,
        together: bool = False,
    ) -> None:
        """Take up the jobs of some devices.

        Args:
            lanes: the devices, each with its jobs; of one host those come first that are listed first.
            utc: gives the time of day for the record.
            name: what the names of all tries begin with; no two runs of the same plan may share it.
            patience: how long to wait for what.
            together: all GPUs of a host start each batch at the same moment, to show what they take from each other.
        """
        self._devices = {lane.key: _Device(lane) for lane in lanes}
        self._hosts: dict[str, list[_Device]] = {}
        for device in self._devices.values():
            self._hosts.setdefault(device.lane.host, []).append(device)
        self._utc, self._name, self._patience, self._together = utc, name, patience or Patience(), together
        self._dice = random.Random(name)  # noqa: S311 - to spread retries, not to hide
        self._tries = 0
        self._now = 0.0
        self._spent: str | None = None
        self._out: list[Command] = []

    @property
    def finished(self) -> bool:
        """Whether every job has its outcome and every device is given back."""
        return all(device.state in _OVER for device in self._devices.values())

    def state(self, lane: str) -> DeviceState:
        """Return the state of a device."""
        return self._devices[lane].state

    def place(self, lane: str) -> str | None:
        """Return where a device was last seen."""
        return self._devices[lane].place

    def missing(self) -> tuple[str, ...]:
        """Return the devices that are lost and still wanted."""
        return tuple(key for key, device in self._devices.items() if device.state == "lost")

    def wait_s(self, now: float, most_s: float) -> float:
        """Return for how long nothing is due but what may happen."""
        times = [d.until for d in self._devices.values() if d.state in {"leasing", "running", "suspect", "lost"}]
        times += [d.waiting[0].not_before for d in self._devices.values() if d.state == "idle" and d.waiting]
        return max(0.0, min([most_s, *(t - now for t in times if t > now)]))

    def advance(self, now: float, events: Sequence[Event] = ()) -> tuple[Command, ...]:
        """Take in what has happened until now; return what is to be done about it."""
        self._now = max(self._now, now)
        for event in events:
            self._take_in(event)
        for device in self._devices.values():
            self._look_at_the_clock(device)
        for devices in self._hosts.values():
            self._move(devices)
        out, self._out = self._out, []
        return tuple(out)

    # --- events

    def _take_in(self, event: Event) -> None:
        if isinstance(event, Spent):
            self._spent = event.reason
            return
        device = self._devices[event.lane]
        match event:
            case Leased():
                self._leased(device, event.recovered)
            case Refused():
                self._quarantine(device, event.reason)
            case Replied():
                self._replied(device, event.reply)
            case Broke():
                self._broke(device, event)
            case Ponged():
                self._ponged(device)
            case Gone() if device.state not in _OVER | {"lost"}:
                self._lose(device, event.reason)
            case Seen() if device.state == "lost":
                device.place = event.place or device.place
                device.state = "discovered"
            case _:
                pass

    def _leased(self, device: _Device, recovered: tuple[Reply, ...]) -> None:
        if device.state != "leasing":
            return
        device.state, device.lost_until = "idle", None
        for reply in recovered:
            self._recover(device, reply)

    def _replied(self, device: _Device, reply: Reply) -> None:
        flight = device.flight
        if flight is None or flight.attempt != reply.attempt:
            self._late(device, reply)
            return
        device.flight = None
        device.state = "idle"
        self._settle(device, flight, reply)

    def _broke(self, device: _Device, event: Broke) -> None:
        if event.attempt is None:
            # No sign of a bad device: a node that has just died is listed as alive for a while.
            if device.state == "leasing":
                self._lose(device, event.reason)
        elif device.flight and device.flight.attempt == event.attempt:
            self._lose(device, event.reason, event.how)

    def _ponged(self, device: _Device) -> None:
        if device.state == "suspect":
            self._lose(device, "its lease lives, but did not answer in time and was killed", "timeout")

    # --- the clock

    def _look_at_the_clock(self, device: _Device) -> None:
        if device.state not in {"leasing", "running", "suspect", "lost"} or self._now < device.until:
            return
        patience = self._patience
        if device.state == "running":
            device.state, device.until = "suspect", self._now + patience.ping_s
            self._out.append(Ping(device.lane.key))
        elif device.state == "suspect":
            self._lose(device, f"its lease did not answer in time, nor a ping for {patience.ping_s:g} s")
        elif device.state == "leasing":
            self._quarantine(device, f"it was not to be had within {patience.lease_s:g} s: somebody else holds it")
        else:
            self._quarantine(device, f"it was lost and not seen again within {patience.rejoin_s:g} s")

    # --- the ends of tries

    def _settle(self, device: _Device, flight: _Flight, reply: Reply) -> None:
        """Give each job of a try what came of it."""
        company = len(flight.cells) > 1
        again: list[_Cell] = []
        for cell in flight.cells:
            outcome = next((o for o in reply.outcomes if job_of(o) == cell.job), None)
            if cell.over:
                continue
            if outcome is None:
                self._note(device, cell, flight, ("crashed", "its lease did not answer with an outcome for each job"))
            elif outcome.failed is not None:
                how, why = _end_of(outcome.failed, reply)
                why = f"in company of other jobs: {why}" if company else why
                self._note(device, cell, flight, (how, why), outcome.failed)
            elif reply.contended and outcome.measurement is not None:
                self._note(device, cell, flight, ("contended", reply.contended))
            else:
                self._end(device, cell, outcome)
                continue
            if self._again(device, cell, flight.attempt, in_company=company):
                again.append(cell)
        self._count(device, flight, reply)
        if reply.device_lost is not None:
            device.ailing = reply.device_lost
        disturbed = [cell for cell in again if _last(cell).ended == "contended"]
        self._line_up(device, disturbed, together=True)
        self._line_up(device, [cell for cell in again if cell not in disturbed], together=False)

    def _count(self, device: _Device, flight: _Flight, reply: Reply) -> None:
        """Keep count of what broke in a row. A batch tells only that one of its jobs broke; their own tries tell which."""
        broke = [
            o.failed.job.benchmark for o in reply.outcomes if o.failed and o.failed.outcome in {"crashed", "timeout"}
        ]
        if len(broke) < max(len(flight.cells), len(reply.outcomes)):
            device.streak.clear()
        elif len(flight.cells) == 1:
            device.streak += broke
        self._judge_streak(device)

    def _judge_streak(self, device: _Device) -> None:
        streak, most = device.streak, self._patience.bad_most
        # One benchmark that always crashes is ill itself; several, or leases that die, tell of the device.
        if len(streak) >= most and (None in streak or len(set(streak)) > 1):
            device.ailing = f"{len(streak)} tries in a row broke on it"

    def _lose(self, device: _Device, reason: str, how: AttemptEnd = "lost") -> None:
        """End what a device does, and wait until it is seen again."""
        self._out.append(Release(device.lane.key))
        flight, device.flight = device.flight, None
        if device.lost_until is None:
            device.lost_until = self._now + self._patience.rejoin_s
        device.state, device.until = "lost", device.lost_until
        if flight is not None:
            device.given_up[flight.attempt] = flight
            device.streak.append(None)
            again = []
            for cell in flight.cells:
                self._note(device, cell, flight, (how, reason))
                if self._again(device, cell, flight.attempt, in_company=len(flight.cells) > 1):
                    again.append(cell)
            # Once may be chance; if it comes again, each job is tried alone, to see whose fault it is.
            self._line_up(device, again, together=all(cell.tries[how] == 1 for cell in again))
        self._judge_streak(device)

    def _note(
        self,
        device: _Device,
        cell: _Cell,
        flight: _Flight,
        end: tuple[AttemptEnd, str],
        failed: Failed | None = None,
    ) -> None:
        ended, reason = end
        cell.tries[ended] += 1
        attempt = Attempt(
            number=cell.started,
            started_at=failed.started_at if failed else flight.started_at,
            elapsed_s=failed.elapsed_s if failed else max(0.0, self._now - flight.began),
            ended=ended,
            reason=reason,
            place=device.place,
        )
        cell.attempts[flight.attempt] = attempt
        self._out.append(Tried(device.lane.key, flight.attempt, cell.job, attempt))

    def _again(self, device: _Device, cell: _Cell, attempt: str, *, in_company: bool) -> bool:
        """Tell whether a job is tried again; if not, its last try is its outcome."""
        ended = cell.attempts[attempt].ended
        if more_tries(ended, cell.tries[ended], in_company=in_company):
            return True
        self._fail(device, cell)
        return False

    def _fail(self, device: _Device, cell: _Cell, why: str = "") -> None:
        last = cell.attempts.popitem()[1]
        failed = Failed(
            job=cell.job,
            started_at=last.started_at,
            elapsed_s=last.elapsed_s,
            outcome=_kind(last.ended),
            reason="; ".join(filter(None, (last.reason, why))),
        )
        self._end(device, cell, Outcome(failed=failed))

    def _end(self, device: _Device, cell: _Cell, outcome: Outcome) -> None:
        cell.over = True
        attempts = (*outcome.attempts, *cell.attempts.values())
        self._out.append(Ended(device.lane.key, replace(outcome, attempts=attempts)))

    def _give_up(self, device: _Device, cell: _Cell, reason: str) -> None:
        """End a job that waits: as failed if it was tried, else as skipped."""
        if cell.attempts:
            self._fail(device, cell, f"not tried again: {reason}")
        else:
            self._end(device, cell, Outcome(skipped=Skipped(job=cell.job, reason=reason)))

    # --- results of tries that were given up

    def _late(self, device: _Device, reply: Reply) -> None:
        """Record that a try answered after it had been given up. It does not count: the better of two must not be picked."""
        flight = device.given_up.get(reply.attempt)
        for cell in flight.cells if flight else ():
            old = cell.attempts.get(reply.attempt)
            if old and not cell.over:
                reason = f"{old.ended}: {old.reason}; its answer came after that and does not count"
                late = cell.attempts[reply.attempt] = replace(old, ended="late", reason=reason)
                self._out.append(Tried(device.lane.key, reply.attempt, cell.job, late))

    def _recover(self, device: _Device, reply: Reply) -> None:
        """Take what a spool held. It was measured in time and only not heard, so it counts where no later try has begun."""
        flight = device.given_up.get(reply.attempt)
        waiting = [cell for batch in device.waiting for cell in batch.cells]
        cells = [c for c in waiting if any(job_of(o) == c.job for o in reply.outcomes)]
        if flight is not None:
            ends = {c: c.attempts[flight.attempt] for c in cells if flight.attempt in c.attempts}
            if any(a.ended != "lost" or a.number != c.started for c, a in ends.items()):
                self._late(device, reply)
                return
            cells = list(ends)
        for cell in cells:
            old = cell.attempts.pop(reply.attempt, None)
            if old is not None:
                cell.tries[old.ended] -= 1  # so it did not end, after all
            else:  # of a driver that is no more
                cell.started += 1
        self._unqueue(device, cells)
        start = flight or _Flight(reply.attempt, cells, reply.started_at, self._now - reply.elapsed_s, self._now)
        if cells:
            self._settle(device, replace(start, cells=cells), reply)

    def _unqueue(self, device: _Device, cells: Sequence[_Cell]) -> None:
        for batch in device.waiting:
            batch.cells = [cell for cell in batch.cells if cell not in cells]
        device.waiting = deque(batch for batch in device.waiting if batch.cells)

    # --- what comes next

    def _line_up(self, device: _Device, cells: list[_Cell], *, together: bool) -> None:
        """Put jobs before those that wait, each alone unless nothing speaks against company."""
        if not cells:
            return
        rank = max(len(cell.attempts) for cell in cells) - 1
        patience = self._patience
        pause_s = 0.0
        if any(_last(cell).ended in {"lost", "contended"} for cell in cells):
            pause_s = min(patience.backoff_most_s, patience.backoff_s * 2**rank) * self._dice.uniform(0.5, 1.0)
        batches = [cells] if together else [[cell] for cell in cells]
        device.waiting.extendleft(_Batch(b, self._now + pause_s) for b in reversed(batches))

    def _drop(self, device: _Device, reason: str) -> None:
        for batch in device.waiting:
            for cell in batch.cells:
                self._give_up(device, cell, reason)
        device.waiting.clear()

    def _quarantine(self, device: _Device, reason: str) -> None:
        if device.state in _OVER:
            return
        if device.flight:
            self._lose(device, reason)
        self._drop(device, f"its device is out of the run: {reason}")
        self._out.append(Release(device.lane.key))
        device.state = "quarantined"

    def _move(self, devices: Sequence[_Device]) -> None:
        """Bring the devices of a host on as far as they can go."""
        for device in devices:
            if device.state in _OVER:
                continue
            if device.ailing is not None and not device.flight:
                self._quarantine(device, device.ailing)
            else:
                if self._spent is not None:
                    self._drop(device, self._spent)
                self._skip_hindered(device)
                if not device.active:
                    self._finish(device)
        ready = [device for device in devices if _may_work(device, devices)]
        if self._together and not self._all_at_the_line(devices):
            ready = [device for device in ready if device.state == "discovered"]
        for device in ready:
            if device.state == "discovered":
                self._lease(device, devices)
            elif device.state == "idle" and device.waiting[0].not_before <= self._now:
                self._start(device)

    def _skip_hindered(self, device: _Device) -> None:
        while device.waiting and not device.flight:
            reason = device.lane.hindrance(device.waiting[0].cells[0].job)
            if reason is None:
                return
            for cell in device.waiting.popleft().cells:
                self._give_up(device, cell, reason)

    def _finish(self, device: _Device) -> None:
        if device.state not in {"discovered", "lost"}:
            self._out.append(Release(device.lane.key))
        device.state = "done"

    def _all_at_the_line(self, devices: Sequence[_Device]) -> bool:
        """Tell whether the GPUs of a host wait for nothing but each other."""
        gpus = [d for d in devices if d.active and d.lane.kind != "cpu" and d.state not in _OVER | {"lost"}]
        held = [d for d in gpus if d.state != "discovered"]
        if len(held) < len(gpus) and _has_room(gpus[0], devices):
            return False
        return all(d.state == "idle" and d.waiting[0].not_before <= self._now for d in held)

    def _lease(self, device: _Device, devices: Sequence[_Device]) -> None:
        leasing = sum(d.state == "leasing" for d in self._devices.values())
        if leasing >= self._patience.leasing_most or not _has_room(device, devices):
            return
        device.state, device.until = "leasing", self._now + self._patience.lease_s
        self._out.append(Acquire(device.lane.key))

    def _start(self, device: _Device) -> None:
        cells = device.waiting.popleft().cells
        self._tries += 1
        name, started_at = f"{self._name}-{self._tries}", self._utc()
        for cell in cells:
            cell.started += 1
            begun = Attempt(
                number=cell.started,
                started_at=started_at,
                elapsed_s=0.0,
                ended="aborted",
                reason="the run was killed while it went on, or before its result was on record",
                place=device.place,
            )
            self._out.append(Tried(device.lane.key, name, cell.job, begun))
        jobs = tuple(cell.job for cell in cells)
        due = self._now + device.lane.allowed_s(jobs) + self._patience.grace_s
        device.flight = _Flight(name, cells, started_at, self._now, due)
        device.state, device.until = "running", due
        self._out.append(Start(device.lane.key, device.flight.attempt, jobs))


def _may_work(device: _Device, devices: Sequence[_Device]) -> bool:
    """Tell whether it is a device's turn: a CPU's comes after its host's GPUs, since kernels on every core starve them."""
    if device.state not in {"discovered", "idle"} or not device.waiting:
        return False
    one_by_one = device.lane.width == 1
    return one_by_one or device.lane.kind != "cpu" or not any(d.active and d.lane.kind != "cpu" for d in devices)


def _has_room(device: _Device, devices: Sequence[_Device]) -> bool:
    width = device.lane.width
    return width is None or sum(d.state in _AT_WORK for d in devices) < width


def _last(cell: _Cell) -> Attempt:
    return next(reversed(cell.attempts.values()))


def _end_of(failed: Failed, reply: Reply) -> tuple[AttemptEnd, str]:
    """Tell how a job's try ended: on a device that was lost meanwhile, whatever else went wrong is a consequence."""
    if reply.device_lost is not None and failed.outcome != "wrong_answer":
        return "lost", f"{reply.device_lost}: {failed.reason}"
    return failed.outcome, failed.reason


def _kind(ended: AttemptEnd) -> FailureKind:
    if ended in {"late", "aborted"}:
        return "timeout"
    return ended  # type: ignore[return-value]
