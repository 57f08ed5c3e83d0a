"""One device in a run: its state, the batches that wait for it, and the one at work.

discovered > leasing > idle <> running > suspect (its reply is overdue) > lost (until it is seen again) > leasing ..., and in the end done,
or quarantined with the reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.cluster.cell import Cell
from harness.cluster.signals import Lane
from harness.cluster.spool import Reply

__all__ = ["AT_WORK", "OVER", "Batch", "Flight", "Station", "StationState", "has_room", "may_work"]

StationState = Literal["discovered", "leasing", "idle", "running", "suspect", "lost", "quarantined", "done"]
AT_WORK = frozenset({"leasing", "idle", "running", "suspect"})
OVER = frozenset({"quarantined", "done"})


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs that are measured together, and when at the earliest."""

    cells: list[Cell]
    not_before: float = 0.0


@dataclass(slots=True, eq=False)
class Flight:
    """A try at a batch."""

    attempt: str
    cells: list[Cell]
    started_at: str
    began: float
    due: float


class Station:
    """A device and its queue."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.place = lane.place
        self.state: StationState = "discovered"
        self.until = 0.0  # the deadline of the state it is in
        self.waiting = deque(Batch([Cell.of(job, lane.past(job)) for job in jobs]) for jobs in lane.batches)
        self.flight: Flight | None = None
        self.given_up: dict[str, Flight] = {}
        self.lost_until: float | None = None  # since it was lost and not yet leased again
        self.ailing: str | None = None  # why not to go on with it
        self._streak: list[str | None] = []  # what broke in a row: a benchmark's name, or none where the lease did

    @property
    def active(self) -> bool:
        """Whether any of its jobs has no outcome."""
        return bool(self.flight or self.waiting)

    @property
    def ready_at(self) -> float:
        """When its next batch may begin, which must exist."""
        return self.waiting[0].not_before

    def cells(self) -> Iterator[Cell]:
        """Yield the jobs that wait."""
        return (cell for batch in self.waiting for cell in batch.cells)

    def line_up(self, cells: list[Cell], not_before: float, *, together: bool) -> None:
        """Put jobs before those that wait, each alone unless nothing speaks against company."""
        batches = [cells] if together else [[cell] for cell in cells]
        self.waiting.extendleft(Batch(batch, not_before) for batch in reversed(batches) if batch)

    def unqueue(self, cells: Sequence[Cell]) -> None:
        """Take jobs out of the queue."""
        for batch in self.waiting:
            batch.cells = [cell for cell in batch.cells if cell not in cells]
        self.waiting = deque(batch for batch in self.waiting if batch.cells)

    def count(self, flight: Flight, reply: Reply, most: int) -> None:
        """Keep count of what broke in a row. A batch tells only that one of its jobs broke; their own tries tell which."""
        broke = [
            o.failed.job.benchmark for o in reply.outcomes if o.failed and o.failed.outcome in {"crashed", "timeout"}
        ]
        if len(broke) < max(len(flight.cells), len(reply.outcomes)):
            self._streak.clear()
        elif len(flight.cells) == 1:
            self._streak += broke
        self._judge(most)

    def count_loss(self, most: int) -> None:
        """Count a lease that was lost with what it did."""
        self._streak.append(None)
        self._judge(most)

    def _judge(self, most: int) -> None:
        streak = self._streak
        # One benchmark that always crashes is ill itself; several, or leases that die, tell of the device.
        if len(streak) >= most and (None in streak or len(set(streak)) > 1):
            self.ailing = f"{len(streak)} tries in a row broke on it"


def may_work(station: Station, host: Sequence[Station]) -> bool:
    """Tell whether it is a device's turn: a CPU's comes after its host's GPUs, since kernels on every core starve them."""
    if station.state not in {"discovered", "idle"} or not station.waiting:
        return False
    one_by_one = station.lane.width == 1
    return one_by_one or station.lane.kind != "cpu" or not any(d.active and d.lane.kind != "cpu" for d in host)


def has_room(station: Station, host: Sequence[Station]) -> bool:
    """Tell whether one more device of its host may be at work."""
    width = station.lane.width
    return width is None or sum(d.state in AT_WORK for d in host) < width
