"""Who measures what next, and what becomes of a try that came to nothing: decided here, carried out elsewhere.

A state machine for each device (`station`) and one for each job (`cell`). Events and the time go in, commands come out; nothing here
waits, reads a clock or knows of Ray. What holds whatever happens: a device has at most one batch of jobs at work, every job ends in
exactly one outcome, and every other try at it stands in that outcome.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from harness.cluster.cell import Cell, more_tries
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
from harness.cluster.station import OVER, Flight, Station, StationState, has_room, may_work
from harness.model import Attempt, AttemptEnd, Failed, Outcome
from harness.proof.verify import job_of

__all__ = ["Scheduler"]


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
        self._stations = {lane.key: Station(lane) for lane in lanes}
        self._hosts: dict[str, list[Station]] = {}
        for station in self._stations.values():
            self._hosts.setdefault(station.lane.host, []).append(station)
        self._utc, self._name, self._patience, self._together = utc, name, patience or Patience(), together
        self._dice = random.Random(name)  # noqa: S311 - to spread retries, not to hide
        self._tries = 0
        self._now = 0.0
        self._spent: str | None = None
        self._out: list[Command] = []

    @property
    def finished(self) -> bool:
        """Whether every job has its outcome and every device is given back."""
        return all(station.state in OVER for station in self._stations.values())

    def state(self, lane: str) -> StationState:
        """Return the state of a device."""
        return self._stations[lane].state

    def place(self, lane: str) -> str | None:
        """Return where a device was last seen."""
        return self._stations[lane].place

    def missing(self) -> tuple[str, ...]:
        """Return the devices that are lost and still wanted."""
        return tuple(key for key, station in self._stations.items() if station.state == "lost")

    def wait_s(self, now: float, most_s: float) -> float:
        """Return for how long nothing is due but what may happen."""
        times = [s.until for s in self._stations.values() if s.state in {"leasing", "running", "suspect", "lost"}]
        times += [s.ready_at for s in self._stations.values() if s.state == "idle" and s.waiting]
        return max(0.0, min([most_s, *(t - now for t in times if t > now)]))

    def advance(self, now: float, events: Sequence[Event] = ()) -> tuple[Command, ...]:
        """Take in what has happened until now; return what is to be done about it."""
        self._now = max(self._now, now)
        for event in events:
            self._take_in(event)
        for station in self._stations.values():
            self._look_at_the_clock(station)
        for host in self._hosts.values():
            self._move(host)
        out, self._out = self._out, []
        return tuple(out)

    # --- events

    def _take_in(self, event: Event) -> None:
        if isinstance(event, Spent):
            self._spent = event.reason
            return
        station = self._stations[event.lane]
        match event:
            case Leased() if station.state == "leasing":
                station.state, station.lost_until = "idle", None
                for reply in event.recovered:
                    self._recover(station, reply)
            case Refused():
                self._quarantine(station, event.reason)
            case Replied():
                self._replied(station, event.reply)
            case Broke():
                self._broke(station, event)
            case Ponged() if station.state == "suspect":
                self._lose(station, "its lease lives, but did not answer in time and was killed", "timeout")
            case Gone() if station.state not in OVER | {"lost"}:
                self._lose(station, event.reason)
            case Seen() if station.state == "lost":
                station.place = event.place or station.place
                station.state = "discovered"
            case _:
                pass

    def _replied(self, station: Station, reply: Reply) -> None:
        flight = station.flight
        if flight is None or flight.attempt != reply.attempt:
            known = station.given_up.get(reply.attempt)
            self._late(station, reply, known.cells if known else ())
            return
        station.flight = None
        station.state = "idle"
        self._settle(station, flight, reply)
        if reply.device_lost is not None:  # now, and not only when a reply was made that lay in a spool
            station.ailing = reply.device_lost

    def _broke(self, station: Station, event: Broke) -> None:
        if event.attempt is None:
            # No sign of a bad device: a node that has just died is listed as alive for a while.
            if station.state == "leasing":
                self._lose(station, event.reason)
        elif station.flight and station.flight.attempt == event.attempt:
            self._lose(station, event.reason, event.how)

    def _late(self, station: Station, reply: Reply, cells: Sequence[Cell]) -> None:
        """Record that a try answered after it had been given up. It does not count: the better of two must not be picked."""
        for cell in cells:
            ended, _ = _end_of(reply, cell)
            late = cell.late(reply.attempt, ended)
            if late:
                self._out.append(Tried(station.lane.key, reply.attempt, cell.job, late))

    def _recover(self, station: Station, reply: Reply) -> None:
        """Take what a spool held: it was measured in time and only not heard, by us or by a driver that is no more."""
        told = [job_of(outcome) for outcome in reply.outcomes]
        waiting = [cell for cell in station.cells() if cell.job in told]
        cells = [cell for cell in waiting if cell.may_take(reply)]
        self._late(station, reply, [cell for cell in waiting if cell not in cells])
        for cell in cells:
            cell.take(reply)
        station.unqueue(cells)
        if cells:
            began = self._now - reply.elapsed_s
            self._settle(station, Flight(reply.attempt, cells, reply.started_at, began, self._now), reply)

    # --- the clock

    def _look_at_the_clock(self, station: Station) -> None:
        if station.state not in {"leasing", "running", "suspect", "lost"} or self._now < station.until:
            return
        patience = self._patience
        if station.state == "running":
            station.state, station.until = "suspect", self._now + patience.ping_s
            self._out.append(Ping(station.lane.key))
        elif station.state == "suspect":
            self._lose(station, f"its lease did not answer in time, nor a ping for {patience.ping_s:g} s")
        elif station.state == "leasing":
            self._quarantine(station, f"it was not to be had within {patience.lease_s:g} s: somebody else holds it")
        else:
            self._quarantine(station, f"it was lost and not seen again within {patience.rejoin_s:g} s")

    # --- the ends of tries

    def _settle(self, station: Station, flight: Flight, reply: Reply) -> None:
        """Give each job of a try what came of it."""
        company = max(len(flight.cells), len(reply.outcomes)) > 1
        again: list[Cell] = []
        for cell in flight.cells:
            outcome = _outcome(reply, cell)
            ended, reason = _end_of(reply, cell)
            if ended is None:
                self._out.append(Ended(station.lane.key, cell.end(outcome)))
                continue
            if outcome.failed and company:
                reason = f"in company of other jobs: {reason}"
            self._note(station, cell, flight, (ended, reason), outcome.failed)
            if self._again(station, cell, ended, in_company=company):
                again.append(cell)
        station.count(flight, reply, self._patience.bad_most)
        disturbed = [cell for cell in again if cell.last.ended == "contended"]
        self._line_up(station, disturbed, together=True)
        self._line_up(station, [cell for cell in again if cell not in disturbed], together=False)

    def _lose(self, station: Station, reason: str, how: AttemptEnd = "lost") -> None:
        """End what a device does, and wait until it is seen again."""
        self._out.append(Release(station.lane.key, lost=True))
        flight, station.flight = station.flight, None
        if station.lost_until is None:
            station.lost_until = self._now + self._patience.rejoin_s
        station.state, station.until = "lost", station.lost_until
        if flight is None:
            return
        station.given_up[flight.attempt] = flight
        again = []
        for cell in flight.cells:
            self._note(station, cell, flight, (how, reason))
            if self._again(station, cell, how, in_company=len(flight.cells) > 1):
                again.append(cell)
        # Once may be chance; if it comes again, each job is tried alone, to see whose fault it is.
        self._line_up(station, again, together=all(cell.tries[how] == 1 for cell in again))
        station.count_loss(self._patience.bad_most)

    def _note(
        self, station: Station, cell: Cell, flight: Flight, end: tuple[AttemptEnd, str], failed: Failed | None = None
    ) -> None:
        """Put on record how and why a try at a job came to nothing."""
        ended, reason = end
        attempt = Attempt(
            number=cell.started,
            started_at=failed.started_at if failed else flight.started_at,
            elapsed_s=failed.elapsed_s if failed else max(0.0, self._now - flight.began),
            ended=ended,
            reason=reason,
            place=station.place,
        )
        cell.note(flight.attempt, attempt)
        self._out.append(Tried(station.lane.key, flight.attempt, cell.job, attempt))

    def _again(self, station: Station, cell: Cell, ended: AttemptEnd, *, in_company: bool) -> bool:
        """Tell whether a job is tried again; if not, its last try is its outcome."""
        if more_tries(ended, cell.tries[ended], in_company=in_company):
            return True
        self._out.append(Ended(station.lane.key, cell.fail()))
        return False

    # --- what comes next

    def _line_up(self, station: Station, cells: list[Cell], *, together: bool) -> None:
        """Put jobs before those that wait; after a pause, where what disturbed them may pass."""
        if not cells:
            return
        patience, pause_s = self._patience, 0.0
        if any(cell.last.ended in {"lost", "contended"} for cell in cells):
            rank = max(len(cell.attempts) for cell in cells) - 1
            pause_s = min(patience.backoff_most_s, patience.backoff_s * 2**rank) * self._dice.uniform(0.5, 1.0)
        station.line_up(cells, self._now + pause_s, together=together)

    def _drop(self, station: Station, end: Callable[[Cell], Outcome]) -> None:
        """End whatever waits."""
        for cell in station.cells():
            self._out.append(Ended(station.lane.key, end(cell)))
        station.waiting.clear()

    def _quarantine(self, station: Station, reason: str) -> None:
        if station.state in OVER:
            return
        if station.flight:
            self._lose(station, reason)
        why, at = f"its device is out of the run: {reason}", self._utc()
        self._drop(station, lambda cell: cell.lose(why, at))
        self._out.append(Release(station.lane.key))
        station.state = "quarantined"

    def _move(self, host: Sequence[Station]) -> None:
        """Bring the devices of a host on as far as they can go."""
        for station in host:
            if station.state in OVER:
                continue
            if station.ailing is not None and not station.flight:
                self._quarantine(station, station.ailing)
            else:
                self._tidy(station)
        ready = [station for station in host if may_work(station, host)]
        if self._together and not self._all_at_the_line(host):
            ready = [station for station in ready if station.state == "discovered"]
        for station in ready:
            if station.state == "discovered":
                self._lease(station, host)
            elif station.state == "idle" and station.ready_at <= self._now:
                self._start(station)

    def _tidy(self, station: Station) -> None:
        """End what is not to be measured any more, and the device's part in the run where nothing is left."""
        if self._spent is not None:
            spent = self._spent
            self._drop(station, lambda cell: cell.give_up(spent))
        while station.waiting and not station.flight:
            reason = station.lane.hindrance(station.waiting[0].cells[0].job)
            if reason is None:
                return
            for cell in station.waiting.popleft().cells:
                self._out.append(Ended(station.lane.key, cell.give_up(reason)))
        if not station.active:
            if station.state not in {"discovered", "lost"}:
                self._out.append(Release(station.lane.key))
            station.state = "done"

    def _all_at_the_line(self, host: Sequence[Station]) -> bool:
        """Tell whether the GPUs of a host wait for nothing but each other."""
        gpus = [s for s in host if s.active and s.lane.kind != "cpu" and s.state not in OVER | {"lost"}]
        held = [s for s in gpus if s.state != "discovered"]
        if len(held) < len(gpus) and has_room(gpus[0], host):
            return False
        return all(s.state == "idle" and s.ready_at <= self._now for s in held)

    def _lease(self, station: Station, host: Sequence[Station]) -> None:
        leasing = sum(s.state == "leasing" for s in self._stations.values())
        if leasing >= self._patience.leasing_most or not has_room(station, host):
            return
        station.state, station.until = "leasing", self._now + self._patience.lease_s
        self._out.append(Acquire(station.lane.key))

    def _start(self, station: Station) -> None:
        cells = station.waiting.popleft().cells
        self._tries += 1
        name, started_at = f"{self._name}-{self._tries}", self._utc()
        for cell in cells:
            begun = cell.begin(started_at, station.place)
            self._out.append(Tried(station.lane.key, name, cell.job, begun))
        jobs = tuple(cell.job for cell in cells)
        due = self._now + station.lane.allowed_s(jobs) + self._patience.grace_s
        station.flight = Flight(name, cells, started_at, self._now, due)
        station.state, station.until = "running", due
        self._out.append(Start(station.lane.key, name, jobs))


def _outcome(reply: Reply, cell: Cell) -> Outcome:
    """Return what a reply says of a job; an outcome that is none, if nothing."""
    return next((outcome for outcome in reply.outcomes if job_of(outcome) == cell.job), Outcome())


def _end_of(reply: Reply, cell: Cell) -> tuple[AttemptEnd | None, str]:
    """Tell how a job's try came to nothing and why; None if it has its outcome.

    On a device that was lost meanwhile, whatever else went wrong is a consequence.
    """
    outcome = _outcome(reply, cell)
    if outcome.failed is not None:
        failed = outcome.failed
        lost = reply.device_lost if failed.outcome != "wrong_answer" else None
        return ("lost", f"{lost}: {failed.reason}") if lost else (failed.outcome, failed.reason)
    if outcome.measurement is not None:
        return ("contended", reply.contended) if reply.contended else (None, "")
    return (None, "") if outcome.skipped else ("crashed", "its lease did not answer with an outcome for each job")
