"""Carries errands out: the loop around the scheduler, and its hand on this machine."""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Protocol

from harness.cluster.errand import Desk, Errand, Orders, desks
from harness.cluster.lease import CutShort, Lease
from harness.cluster.scheduler import Scheduler
from harness.cluster.signals import Acquire, Command, Ended, Event, Leased, Replied, Spent, Start, Tried
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory
from harness.measure.runner import now
from harness.model import Outcome
from harness.proof.verify import job_of

__all__ = ["Hand", "drive", "inspect_here", "run_here"]

_POLL_S = 0.5


def inspect_here(idle_s: float = 0.0) -> tuple[Inventory, ...]:
    """Return what this machine has, after watching it at rest for a while."""
    with Lease() as lease:
        return (lease.inspect(idle_s),)


def run_here(errands: Sequence[Errand], orders: Orders) -> Generator[tuple[Errand, Outcome], None, None]:
    """Carry out errands on this machine, one device after the other, so that no measurement disturbs another.

    Only where the orders say `together` do its GPUs work side by side.
    """
    work = desks(errands, orders, width=None if orders.together else 1)
    with closing(_Here(work, orders)) as hand:
        yield from drive(work, hand, orders)


class Hand(Protocol):
    """Carries out what the scheduler says, and tells what came of it."""

    def do(self, command: Command) -> None:
        """Begin to carry out a command."""

    def poll(self, wait_s: float, missing: Sequence[str], /) -> list[Event]:
        """Return what has happened, waiting a while for something to; look out for devices that are missing."""

    def heard(self) -> None:
        """Take note that all outcomes of what has happened are on disk."""


def drive(work: Mapping[str, Desk], hand: Hand, orders: Orders) -> Generator[tuple[Errand, Outcome], None, None]:
    """Have a hand do what the scheduler says until every job has its outcome; yield each as it comes."""
    scheduler = Scheduler(
        [desk.lane for desk in work.values()],
        utc=now,
        name=secrets.token_hex(4),  # so that no two drivers of a run call their tries the same
        patience=orders.patience,
        together=orders.together,
    )
    events: list[Event] = []
    while True:
        reason = orders.out_of_time()
        if reason:
            events.append(Spent(reason))
        with orders.saving():
            yield from _step(scheduler, work, hand, orders, events)
            hand.heard()
        if scheduler.finished:
            return
        try:
            events = hand.poll(scheduler.wait_s(time.monotonic(), _POLL_S), scheduler.missing())
        except _Stopped as stopped:
            with orders.saving():
                yield from _saved(scheduler, work, stopped.last)
            raise


def _step(
    scheduler: Scheduler, work: Mapping[str, Desk], hand: Hand, orders: Orders, events: Sequence[Event]
) -> Iterator[tuple[Errand, Outcome]]:
    """Do what the scheduler says to what has happened, and yield the outcomes."""
    ended = []
    for command in scheduler.advance(time.monotonic(), events):
        desk = work[command.lane]
        match command:
            case Ended():
                ended.append((desk.errand, command.outcome))
                continue
            case Tried():
                orders.tried(desk.errand, command.name, command.job, command.attempt)
                continue
            case Start():
                for job in command.jobs:
                    orders.started(job)
            case _:
                pass
        hand.do(command)
    yield from ended  # whoever takes them has them on disk before asking for more


class _Stopped(KeyboardInterrupt):
    """Ctrl-C; `last` is what was measured of a batch before it came."""

    def __init__(self, last: Replied) -> None:
        super().__init__()
        self.last = last


def _saved(scheduler: Scheduler, work: Mapping[str, Desk], last: Replied) -> Iterator[tuple[Errand, Outcome]]:
    """Yield the outcomes that an interrupted batch had; whatever else the scheduler would have done next is not begun."""
    told = [job_of(outcome) for outcome in last.reply.outcomes]  # of the others it would say that they crashed
    for command in scheduler.advance(time.monotonic(), [last]):
        if isinstance(command, Ended) and job_of(command.outcome) in told:
            yield work[command.lane].errand, command.outcome


class _Here:
    """Leases of this process: one for all devices in turn, or one each where they work together."""

    def __init__(self, work: Mapping[str, Desk], orders: Orders) -> None:
        self._desks, self._orders = work, orders
        kinds = sorted({desk.device.kind for desk in work.values()})
        self._leases = {} if orders.together else dict.fromkeys(work, orders.lease(kinds))
        self._events: list[Event] = []
        self._waiting: list[Start] = []
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(work))) if orders.together else None
        self._futures: dict[Future[Reply], str] = {}

    def do(self, command: Command) -> None:
        match command:
            case Acquire(lane):
                if lane not in self._leases:
                    self._leases[lane] = self._orders.lease((self._desks[lane].device.kind,))
                self._events.append(Leased(lane))
            case Start(lane) if self._pool:
                order = self._desks[lane].order(command)
                self._futures[self._pool.submit(self._leases[lane].carry_out, order)] = lane
            case Start():
                self._waiting.append(command)
            case _:
                pass  # a call that has no lease between it and its deadline is never overdue

    def poll(self, wait_s: float, _missing: Sequence[str], /) -> list[Event]:
        events, self._events = self._events, []
        if events:
            return events
        if self._waiting:
            start = self._waiting.pop(0)
            # In this very thread, so that Ctrl-C interrupts it.
            try:
                return [Replied(start.lane, self._leases[start.lane].carry_out(self._desks[start.lane].order(start)))]
            except CutShort as err:
                raise _Stopped(Replied(start.lane, err.reply)) from err
        if not self._futures:
            time.sleep(wait_s)
        done, _ = wait(self._futures, timeout=wait_s, return_when=FIRST_COMPLETED)
        return [Replied(self._futures.pop(future), future.result()) for future in done]

    def heard(self) -> None:
        """There is nobody to tell: what this process measured it has."""

    def close(self) -> None:
        """End whatever still runs."""
        for lease in dict.fromkeys(self._leases.values()):
            if self._futures:
                lease.abort()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        for lease in dict.fromkeys(self._leases.values()):
            lease.close()
