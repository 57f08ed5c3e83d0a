"""Runs jobs next to their devices through Ray, as `local` does on this machine. The only door to Ray.

Whatever comes back from Ray is bytes, decoded as strictly as a stranger's file: a worker is a prover. All retries are the scheduler's
and none are Ray's, and nothing waits for Ray without a timeout.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness import codec
from harness.cluster.errand import Desk, Errand, Orders, desks
from harness.cluster.lease import Lease
from harness.cluster.local import drive
from harness.cluster.pulse import Pulse
from harness.cluster.rayenv import prepare
from harness.cluster.remote import Remote
from harness.cluster.signals import (
    Acquire,
    Broke,
    Command,
    Event,
    Leased,
    Ping,
    Ponged,
    Refused,
    Release,
    Replied,
    Seen,
    Start,
)
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory, answers
from harness.errors import FailureError, ForgeryError, MisuseError
from harness.measure.moment import Moment
from harness.model import DeviceKind, Outcome

__all__ = ["connect", "inspect_on_ray", "run_on_ray", "survey"]

_INSPECT_S = 120.0  # to start an actor and have it look around, besides watching: the GPUs at rest, and then the CPU
_GET_S = 15.0  # for a reply that Ray says is there
_CENSUS_S = 1.0
_FAREWELL_S = 2.0
_GLANCE_S = 2.0  # from one look at what the leases do to the next, for who watches
_GLANCE_SHARE_S = 0.02  # and more for a large fleet: so much for each lease
_SLOTS = 4  # calls that a lease answers side by side: a measurement, and whatever asks after it
_NO_GPU = "Ray was told of no GPU on its node: start the node so that it sees them"


def inspect_on_ray(
    ray: Any, idle_s: float = 0.0, lease: Callable[[Sequence[DeviceKind]], Lease] = Lease
) -> tuple[Inventory, ...]:
    """Return what each live node of a Ray cluster has; `ray` is what `connect` gives.

    Raises:
        FailureError: a node did not answer.
    """
    found = survey(ray, idle_s, lease)
    for answer in found.values():
        if isinstance(answer, FailureError):
            raise answer
    return tuple(answer for answer in found.values() if not isinstance(answer, FailureError))


def survey(
    ray: Any, idle_s: float = 0.0, lease: Callable[[Sequence[DeviceKind]], Lease] = Lease
) -> dict[str, Inventory | FailureError]:
    """Return for the place of each live node of a Ray cluster what it has, or why it did not say."""
    scouts = {node["NodeID"]: _actor(ray, node["NodeID"], (), lease) for node in _live(ray)}
    deadline = time.monotonic() + _INSPECT_S + 2 * idle_s  # for all together
    try:
        asked = {place: scout.inspect.remote(idle_s) for place, scout in scouts.items()}
        return {place: _inventory(ray, place, ref, deadline - time.monotonic()) for place, ref in asked.items()}
    finally:
        for scout in scouts.values():
            ray.kill(scout)


def run_on_ray(errands: Sequence[Errand], orders: Orders, ray: Any) -> Generator[tuple[Errand, Outcome], None, None]:
    """Carry out errands through Ray: one exclusive lease a device, each working off its own queue.

    The GPUs of a node work side by side; its CPU has its turn after them, since kernels on every core starve what feeds a GPU.
    """
    nodes = {node["NodeID"]: node for node in _live(ray)}
    work = {}
    for key, desk in desks(errands, orders, width=None).items():
        gpus = int(nodes.get(desk.lane.place or "", {}).get("Resources", {}).get("GPU", 0))
        width = gpus if desk.device.kind == "cuda" and gpus else None
        work[key] = replace(desk, lane=replace(desk.lane, width=width, hindrance=desk.hindrance_on_ray))
    with closing(_OnRay(ray, work, orders, nodes)) as hand:
        yield from drive(work, hand, orders)


def _pulse(ray: Any, nodes: Mapping[str, Any]) -> Pulse:
    context = ray.get_runtime_context()
    own = nodes.get(context.get_node_id(), {})
    return Pulse(context.gcs_address, own.get("RayletSocketName", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A call to an actor that has not been answered."""

    lane: str
    what: Literal["collect", "measure", "late", "ping", "bye", "scout", "glance"]
    start: Start | None = None
    told: tuple[str, ...] = ()  # the replies that it acknowledges
    leaving: Any = None  # the actor that is told goodbye, and ends with the answer


class _OnRay:
    """Leases as actors, and at most a few calls to each in flight."""

    def __init__(self, ray: Any, work: Mapping[str, Desk], orders: Orders, nodes: Mapping[str, Any]) -> None:
        self._ray, self._desks, self._orders = ray, work, orders
        self._nodes = dict(nodes)
        self._pulse = _pulse(ray, nodes)
        self._places = {key: desk.lane.place for key, desk in work.items()}
        # What is on the nodes that were there from the start; a node that comes later must say.
        self._known = dict.fromkeys(nodes, frozenset[str]())
        self._known |= {
            d.lane.place or "": frozenset(x.uuid for x in d.errand.inventory.devices) for d in work.values()
        }
        self._actors: dict[str, Any] = {}
        self._scouts: dict[str, Any] = {}
        self._calls: dict[Any, _Call] = {}
        self._have: dict[str, set[str]] = {key: set() for key in work}  # on disk here, and still in a spool there
        self._fresh: list[tuple[str, str]] = []
        self._leaving: list[str] = []
        self._events: list[Event] = []
        self._census_at = self._glance_at = 0.0

    def do(self, command: Command) -> None:
        match command:
            case Acquire(lane):
                self._acquire(lane)
            case Start(lane):
                order = codec.encode(self._desks[lane].order(command))
                told = tuple(self._have[lane])
                ref = self._actors[lane].measure.remote(order, told)
                self._calls[ref] = _Call(lane=lane, what="measure", start=command, told=told)
            case Ping(lane) if lane in self._actors:  # without one it is not answered, and the lease is lost
                self._calls[self._actors[lane].ping.remote()] = _Call(lane=lane, what="ping")
            case Release(lane, lost):
                # Whoever comes next must find the device free, and no goodbye of this lease may end the next one.
                if lost or any(c.lane == lane and c.what not in {"late", "glance"} for c in self._calls.values()):
                    self._kill(lane)
                else:
                    self._leaving.append(lane)
            case _:
                pass

    def _acquire(self, lane: str) -> None:
        desk, place = self._desks[lane], self._places[lane]
        node = self._nodes.get(place or "")
        if node is None:
            self._events.append(Broke(lane, None, "lost", "its node has left the cluster"))
            return
        gpu = desk.device.kind == "cuda" and not desk.device.emulated
        if gpu and not node["Resources"].get("GPU"):
            self._events.append(Refused(lane, _NO_GPU))
            return
        actor = _actor(self._ray, node["NodeID"], (desk.device.kind,), self._orders.lease, gpus=int(gpu))
        self._actors[lane] = actor
        told = tuple(self._have[lane])
        ref = actor.collect.remote(desk.errand.run, desk.device.uuid, told)
        self._calls[ref] = _Call(lane=lane, what="collect", told=told)

    def poll(self, wait_s: float, missing: Sequence[str], /) -> list[Event]:
        beats = self._pulse.beats()
        self._glance()
        events, self._events = self._events, []
        refs = list(self._calls)
        if refs:
            ready, _ = self._ray.wait(refs, num_returns=1, timeout=0 if events else wait_s)
            if ready:
                ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
            for ref in ready:
                call = self._calls.pop(ref)
                if call.what == "glance":
                    self._tell(call.lane, ref)
                elif call.what == "bye":  # whether it has heard that or is not to be reached any more
                    self._ray.kill(call.leaving)
                else:
                    events += self._answer(call, ref)
        elif not events:
            time.sleep(wait_s)
        if missing and beats and time.monotonic() >= self._census_at:
            events += self._census(missing)
        return events

    def _answer(self, call: _Call, ref: Any) -> Iterable[Event]:
        """Tell what an answer means. Only what does not decode is the lease's own fault."""
        lane, attempt = call.lane, call.start.attempt if call.start else None
        try:
            data = self._ray.get(ref, timeout=_GET_S)
            if call.told:
                self._have[lane] -= set(call.told)
            match call.what:
                case "measure" | "late" if call.start:
                    return [Replied(lane, self._heard_of(lane, _reply(data, call.start)))]
                case "collect":
                    replies = codec.decode(data, tuple[Reply, ...])
                    return [Leased(lane, tuple(self._heard_of(lane, reply) for reply in replies))]
                case "ping":
                    return [Ponged(lane)]
                case _:
                    found = codec.decode(data, Inventory)
                    self._known[lane] = frozenset(device.uuid for device in found.devices)
                    self._dismiss(lane)
        except (ForgeryError, TypeError) as err:  # a killed call may "return" None
            how: Literal["crashed", "lost"] = "lost" if isinstance(err, TypeError) else "crashed"
            return (
                [Broke(lane, attempt, how, f"its lease was lost: {type(err).__name__}")] if call.what != "scout" else []
            )
        except self._ray.exceptions.RayError as err:
            if call.what in {"measure", "collect"}:
                return [Broke(lane, attempt, "lost", f"its lease was lost: {type(err).__name__}")]
            if call.what == "scout":
                self._known[lane] = frozenset()
                self._dismiss(lane)
        return []

    def _glance(self) -> None:
        """Ask each lease at work what it does, if anybody watches: now and then, and never before it has answered."""
        now_s = time.monotonic()
        if self._orders.glanced is None or now_s < self._glance_at:
            return
        lanes = {what: {c.lane for c in self._calls.values() if c.what == what} for what in ("measure", "glance")}
        for lane in lanes["measure"] - lanes["glance"]:
            self._glance_at = now_s + max(_GLANCE_S, _GLANCE_SHARE_S * len(self._actors))
            self._calls[self._actors[lane].glance.remote()] = _Call(lane=lane, what="glance")

    def _tell(self, lane: str, ref: Any) -> None:
        """Hand on what a lease does; whatever else it answers is nobody's concern, and its measurement will say."""
        with suppress(ForgeryError, TypeError, self._ray.exceptions.RayError):
            moment = codec.decode(self._ray.get(ref, timeout=_GET_S), Moment)
            if self._orders.glanced:  # the clock in it is another machine's
                self._orders.glanced(self._desks[lane].device.uuid, replace(moment, at_s=time.monotonic()))

    def _heard_of(self, lane: str, reply: Reply) -> Reply:
        self._fresh.append((lane, reply.attempt))
        return reply

    def heard(self) -> None:
        for lane, attempt in self._fresh:
            self._have[lane].add(attempt)
        self._fresh.clear()
        leaving, self._leaving = self._leaving, []
        for lane in leaving:
            if self._have[lane] and lane in self._actors:
                told, actor = tuple(self._have[lane]), self._actors.pop(lane)
                self._calls[actor.acknowledge.remote(told)] = _Call(lane=lane, what="bye", told=told, leaving=actor)
            else:
                self._kill(lane)

    def _census(self, missing: Sequence[str]) -> Iterator[Event]:
        """Look for lost devices: at their old place, and on nodes that came since, which must say what they have."""
        self._census_at = time.monotonic() + _CENSUS_S
        self._nodes = {node["NodeID"]: node for node in _live(self._ray)}
        for lane in missing:
            uuid = self._desks[lane].device.uuid
            at = [place for place in self._nodes if uuid in self._known.get(place, ())]
            if at:
                self._places[lane] = self._places[lane] if self._places[lane] in at else at[-1]
                yield Seen(lane, self._places[lane])
        for place in self._nodes.keys() - self._known.keys() - self._scouts.keys():
            scout = self._scouts[place] = _actor(self._ray, place, (), self._orders.lease)
            self._calls[scout.inspect.remote(0.0)] = _Call(lane=place, what="scout")

    def _kill(self, lane: str) -> None:
        """Give a device back, and forget what was asked of its lease but a measurement: that may still be answered."""
        asked = {ref: call for ref, call in self._calls.items() if call.lane == lane}
        for ref, call in asked.items():
            if call.what == "measure":
                self._calls[ref] = replace(call, what="late")
            elif call.what not in {"late", "bye"}:
                del self._calls[ref]
        actor = self._actors.pop(lane, None)
        if actor is not None:
            self._ray.kill(actor)

    def _dismiss(self, place: str) -> None:
        self._ray.kill(self._scouts.pop(place))

    def close(self) -> None:
        """Give everything back, and a moment to those who are told goodbye."""
        byes = {ref: call.leaving for ref, call in self._calls.items() if call.what == "bye"}
        if byes:
            self._ray.wait(list(byes), num_returns=len(byes), timeout=_FAREWELL_S)
        for actor in byes.values():
            self._ray.kill(actor)
        for lane in tuple(self._actors):
            self._kill(lane)
        for place in tuple(self._scouts):
            self._dismiss(place)


def _reply(data: Any, start: Start) -> Reply:
    reply = codec.decode(data, Reply)
    if reply.attempt != start.attempt:
        what = "the reply to another try"
        raise ForgeryError(what)
    answers(reply.outcomes, start.jobs)
    return reply


def _actor(
    ray: Any,
    place: str,
    kinds: tuple[DeviceKind, ...],
    lease: Callable[[Sequence[DeviceKind]], Lease],
    *,
    gpus: int = 0,
) -> Any:
    """Start a lease on one node. Never restarted and never retried by Ray: a benchmark must not run twice unseen."""
    # In the decorator and not in `options`, where Ray would treat the GPU as one that may be shared by calls.
    remote = ray.remote(num_gpus=gpus, num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=_SLOTS)(Remote)
    return remote.options(label_selector={"ray.io/node-id": place}).remote(kinds, lease)


def _inventory(ray: Any, place: str, ref: Any, wait_s: float) -> Inventory | FailureError:
    try:
        return replace(codec.decode(ray.get(ref, timeout=max(0.0, wait_s)), Inventory), place=place)
    except (ray.exceptions.RayError, ForgeryError, TypeError) as err:
        return FailureError(f"node {place[:8]} of the Ray cluster did not say what it has: {type(err).__name__}")


def _live(ray: Any) -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def connect(address: str, local_cpus: int | None = 1) -> Iterator[Any]:
    """Connect to a Ray cluster for the length of a context, which is given the module; `local` starts a cluster and ends it.

    Ray's threads print when they like: whoever has a terminal to keep clean uses `rayenv.quiet` around this.

    Args:
        address: HOST:PORT of its head, or `local`.
        local_cpus: cores that a cluster started here may give to calls that take one; None for all of them.

    Raises:
        MisuseError: there is no cluster at that address, or none that we may enter.
        FailureError: it was lost meanwhile.
    """
    local = address == "local"
    with prepare(address):
        import ray

        try:
            ray.init(
                address=address,
                include_dashboard=False if local else None,
                num_cpus=local_cpus if local else None,  # a lease takes none; Ray would start a worker for each
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
        except (ConnectionError, ValueError, RuntimeError) as err:
            msg = f"cannot enter the Ray cluster at {address!r} from here: {str(err).splitlines()[0]}"
            raise MisuseError(msg) from err
        try:
            yield ray
        except (
            ray.exceptions.RayError
        ) as err:  # a call that has no lease to lose, such as the one for the list of nodes
            msg = f"the Ray cluster at {address!r} was lost ({type(err).__name__}): what was measured is on disk"
            raise FailureError(msg) from err
        finally:
            ray.shutdown()
