"""What a run asks of each node, how, and whom it tells; cut into lanes, one a device, for the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness import registry
from harness.cluster import board
from harness.cluster.lease import Lease, Order
from harness.cluster.plan import batches, deadline_s
from harness.cluster.signals import Lane, Patience, Start
from harness.cluster.task import Inventory
from harness.measure.moment import Moment
from harness.measure.rounds import Effort
from harness.model import Attempt, Device, DeviceKind, Job

__all__ = ["Desk", "Errand", "Orders", "desks"]

_ONE_GPU = (
    "it takes the other GPUs of its node too, and a lease through Ray holds one: run it on that node without --ray"
)
_IN_EACH_OTHERS_WAY = (
    "it takes the other GPUs of its node too, and they would all begin it at the same moment: run it without --together"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """The jobs of one node."""

    inventory: Inventory
    jobs: tuple[Job, ...]
    run: str = ""  # names the run, the same when it is resumed: by it a node finds what it measured and nobody heard
    past: Callable[[Job], Mapping[str, Attempt]] = lambda _: {}  # the tries that earlier drivers of the run made

    def device(self, job: Job) -> Device:
        """Return the device that a job names."""
        return next(d for d in self.inventory.devices if d.uuid == job.device_uuid)

    def idle_w(self, job: Job) -> float | None:
        """Return what the device of a job takes at rest, where that was seen."""
        seen = self.inventory.seen(job.device_uuid)
        return seen.idle_power_w if seen else None

    def refusal(self, job: Job, orders: Orders) -> str | None:
        """Return why the device of a job should not be measured as it is, or None."""
        seen = self.inventory.seen(job.device_uuid)
        grave = [note for note in seen.notes if note.severity == "refuse"] if seen and not orders.force else []
        return f"{grave[0].what}: {grave[0].advice}, or measure all the same with --force" if grave else None

    def peers(self, job: Job) -> tuple[str, ...]:
        """Return the UUIDs of the other GPUs that a job uses.

        They begin with the one after its own and go round, so that over all its GPUs a node's neighbours are measured in a ring.
        """
        if not _takes_peers(job, self.device(job)):
            return ()
        usable = [d.uuid for d in self.inventory.devices if d.kind == "cuda" and d.unusable_reason is None]
        at = usable.index(job.device_uuid)
        return (*usable[at + 1 :], *usable[:at])


def _takes_peers(job: Job, device: Device) -> bool:
    bench = registry.benchmarks().get(job.benchmark)
    return bench is not None and bench.peers and device.kind == "cuda"


def _unrecorded(errand: Errand, name: str, job: Job, attempt: Attempt) -> None:
    """Leave a try to memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """How to carry errands out, and whom to tell."""

    effort: Effort
    started: Callable[[Job], None]
    out_of_time: Callable[[], str | None]  # the reason not to start anything any more
    tried: Callable[[Errand, str, Job, Attempt], None] = _unrecorded  # hears of every try, before it begins
    force: bool = False  # measure also what the preflight advises against
    together: bool = False  # the GPUs of a node start each batch at the same moment
    patience: Patience = field(default_factory=Patience)
    lease: Callable[[Sequence[DeviceKind]], Lease] = Lease
    live: Path | None = None  # the folder to pin each moment in, where it is of the same machine as the devices
    saving: Callable[[], AbstractContextManager[None]] = (
        nullcontext  # held while whoever carries them out hands outcomes on
    )
    glanced: Callable[[str, Moment], None] | None = None  # hears now and then what a device elsewhere does, by its UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """One device of an errand, and its lane through the scheduler."""

    errand: Errand
    device: Device
    lane: Lane
    orders: Orders

    def order(self, start: Start) -> Order:
        """Write down what a lease is to do."""
        first = start.jobs[0]
        return Order(
            attempt=start.attempt,
            jobs=start.jobs,
            device=self.device,
            effort=self.orders.effort,
            peers=self.errand.peers(first),
            idle_w=self.errand.idle_w(first),
            alone=not self.orders.force,
            live=self._live(),
        )

    def _live(self) -> str | None:
        if self.orders.live:
            return str(board.place(self.orders.live, self.device))
        return "" if self.orders.glanced else None

    def hindrance_on_ray(self, job: Job) -> str | None:
        """Return why not to measure a job through Ray."""
        return self.errand.refusal(job, self.orders) or (_ONE_GPU if _takes_peers(job, self.device) else None)


def desks(errands: Sequence[Errand], orders: Orders, *, width: int | None) -> dict[str, Desk]:
    """Cut errands into one desk a device, by the keys of their lanes; `width` devices of a node work at the same time."""
    found = {}
    for n, errand in enumerate(errands):
        for uuid in dict.fromkeys(job.device_uuid for job in errand.jobs):
            own = [job for job in errand.jobs if job.device_uuid == uuid]
            device = errand.device(own[0])
            lane = Lane(
                key=f"{n}:{uuid}",
                host=str(n),
                kind=device.kind,
                batches=tuple(batches(own)),
                place=errand.inventory.place,
                width=width,
                hindrance=partial(_refusal, errand, orders),
                allowed_s=partial(deadline_s, orders.effort, device),
                past=errand.past,
            )
            found[lane.key] = Desk(errand=errand, device=device, lane=lane, orders=orders)
    return found


def _refusal(errand: Errand, orders: Orders, job: Job) -> str | None:
    """Return why not to measure a job on its own machine."""
    contested = orders.together and any(other.device_uuid in errand.peers(job) for other in errand.jobs)
    return errand.refusal(job, orders) or (_IN_EACH_OTHERS_WAY if contested else None)
