"""Sends requests by a schedule and keeps what was seen, measured from when each should have been sent.

A client that waits for a slow server before it sends the next request does not see what its users would have: it omits, in step with the
server, the very requests that would have waited ("coordinated omission"). Here a request's clock starts at its intended time: that of its
arrival in an open loop, even while a cap on requests in flight, or the client itself, holds it back; the end of the user's last reply in a
closed loop, which says what so many patient users get, not what a rate of arrivals would.

Promised: arrivals follow from the seed alone; every request that was issued is in the result, whatever became of it.
Not promised: that this client is fast enough. It measures its own lag and load, and `objection` says when they spoil the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import math
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, Self

from harness.errors import FailureError, MisuseError
from harness.inference.exchange import Event, Exchange, Request, Server, Usage, apportion
from harness.inference.metrics import nearest_rank

__all__ = [
    "BusyClientError",
    "ClientLoad",
    "Load",
    "Run",
    "arrivals",
    "closed",
    "drive",
    "exchange",
    "objection",
    "offline",
    "poisson",
]

REQUESTS_MOST = 1 << 16  # of a run: what an array of a record may hold
CHUNKS_MOST = 1 << 16  # of a reply: the same
LAG_MOST_S = 0.005
CPU_MOST_FRACTION = 0.8
_TICK_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests are issued. Made by `closed`, `poisson` or `offline`."""

    mode: Literal["closed", "poisson", "offline"]
    requests_count: int
    seed: int
    users_count: int | None = None  # closed: each sends its next request when its last has ended
    rate_per_s: float | None = None  # poisson
    cap_count: int | None = None  # requests in flight at most; those above wait, and their clocks run
    timeout_s: float = 120.0  # from the intended start to the last chunk


def closed(users: int, requests: int, *, timeout_s: float = 120.0) -> Load:
    """Return a load of users who each wait for a reply before they ask again.

    Raises:
        MisuseError: a number is not positive, or the requests are more than a record holds.
    """
    _positive(users=users, requests=requests, timeout_s=timeout_s)
    return Load(mode="closed", requests_count=requests, seed=0, users_count=users, timeout_s=timeout_s)


def poisson(rate_per_s: float, requests: int, seed: int, *, cap: int | None = None, timeout_s: float = 120.0) -> Load:
    """Return a load of independent arrivals at a mean rate.

    Raises:
        MisuseError: a number is not positive, or the requests are more than a record holds.
    """
    _positive(rate_per_s=rate_per_s, requests=requests, cap=cap or 1, timeout_s=timeout_s)
    return Load(
        mode="poisson", requests_count=requests, seed=seed, rate_per_s=rate_per_s, cap_count=cap, timeout_s=timeout_s
    )


def offline(requests: int, *, cap: int | None = None, timeout_s: float = 120.0) -> Load:
    """Return a load that is all there from the start.

    Raises:
        MisuseError: a number is not positive, or the requests are more than a record holds.
    """
    _positive(requests=requests, cap=cap or 1, timeout_s=timeout_s)
    return Load(mode="offline", requests_count=requests, seed=0, cap_count=cap, timeout_s=timeout_s)


def _positive(*, requests: int, **numbers: float) -> None:
    for name, value in (("requests", requests), *numbers.items()):
        if not 0 < value < math.inf:
            msg = f"{name} is {value!r}; it should be a positive number"
            raise MisuseError(msg)
    if requests > REQUESTS_MOST:
        msg = f"a run of {requests} requests is more than the {REQUESTS_MOST} that its record can hold"
        raise MisuseError(msg)


def arrivals(load: Load) -> tuple[float, ...]:
    """Return the intended starts of an open loop, in seconds from its beginning.

    Of one seed, a higher rate gives the same arrivals, only denser.
    """
    if load.rate_per_s is None:
        return (0.0,) * load.requests_count
    rng = random.Random(load.seed)  # noqa: S311 - its `random()` gives the same numbers in every version of Python
    at, found = 0.0, []
    for _ in range(load.requests_count):
        at -= math.log1p(-rng.random())
        found.append(at / load.rate_per_s)
    return tuple(found)


# --- one exchange -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reply:
    """What has arrived of a reply so far."""

    at_s: list[float] = field(default_factory=list)
    told: list[int | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish: str | None = None
    usage: Usage | None = None

    def take(self, event: Event) -> None:
        self.finish = event.finish or self.finish
        self.usage = event.usage or self.usage
        if event.text or event.token_count:
            if len(self.at_s) == CHUNKS_MOST:
                msg = f"the reply went on past {CHUNKS_MOST} chunks"
                raise FailureError(msg)
            self.at_s.append(event.at_s)
            self.told.append(event.token_count)
            self.sizes.append(len(event.text.encode()))
            self.text.append(event.text)


async def exchange(  # noqa: PLR0913 - one request has as many circumstances
    server: Server,
    request: Request,
    *,
    started_s: float,
    intended_s: float,
    timeout_s: float,
    turn: asyncio.Semaphore | None = None,
) -> tuple[Exchange, str]:
    """Send one request, wait for its end, and return what was seen and the reply's text.

    Whatever happens to the reply is in the result; nothing is raised for it.

    Args:
        server: who is asked.
        request: what is asked.
        started_s: when the run began, by the loop's clock; times in the result count from there.
        intended_s: when the request should be sent, by the loop's clock.
        timeout_s: from the intended start to the end.
        turn: a cap on requests in flight; waiting for it is part of the latency.
    """
    now = asyncio.get_running_loop().time
    reply, sent_s, failure = _Reply(), None, None
    try:
        async with asyncio.timeout_at(intended_s + timeout_s), turn or contextlib.nullcontext():
            sent_s = now()
            async with aclosing(server.stream(request)) as events:
                async for event in events:
                    reply.take(event)
            failure = None if reply.at_s else "the reply was empty"
    except TimeoutError:
        failure = f"no end within {timeout_s:g} s of its intended start"
    except FailureError as err:
        failure = str(err).encode(errors="replace").decode()  # a header may hold bytes that are no text
    text = "".join(reply.text)
    claimed = reply.usage.output_tokens if reply.usage else None
    seen = Exchange(
        index=request.index,
        intended_s=_since(started_s, intended_s),
        sent_s=None if sent_s is None else _since(started_s, sent_s),
        chunks_s=tuple(_since(started_s, at) for at in reply.at_s),
        chunk_tokens=apportion(claimed, reply.told, reply.sizes),
        ended_s=_since(started_s, now()),
        asked_tokens=request.output_tokens,
        usage=reply.usage,
        finish=reply.finish,
        text_bytes=sum(reply.sizes),
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        failure=failure,
    )
    return seen, text


def _since(started_s: float, at_s: float) -> float:
    return round(at_s - started_s, 6)  # more digits than any clock here is good for would fill the records


# --- the client itself ------------------------------------------------------------------------------------------------


class BusyClientError(FailureError):
    """This client was the bottleneck: what it measured is itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLoad:
    """How this process fared while it measured."""

    lag_p50_s: float  # by how much the loop was late for what it should have done
    lag_p99_s: float
    lag_max_s: float
    cpu_fraction: float  # of one core


def objection(client: ClientLoad) -> str | None:
    """Return why a run must not be reported: the client was the bottleneck. None where it was not."""
    if client.lag_p99_s > LAG_MOST_S:
        return (
            f"this client's event loop was late by {client.lag_p99_s * 1e3:.1f} ms (p99, {LAG_MOST_S * 1e3:g} ms at most): "
            "its times are its own, not the server's; lower the load or free this machine"
        )
    if client.cpu_fraction > CPU_MOST_FRACTION:
        return (
            f"this client used {client.cpu_fraction:.0%} of a core ({CPU_MOST_FRACTION:.0%} at most): "
            "it would be what is measured; lower the load or use a faster machine"
        )
    return None


class _Pulse:
    """Looks at the loop every 5 ms. A loop held up for long is late for each of the ticks that fall due meanwhile."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []

    async def __aenter__(self) -> Self:
        self._now = asyncio.get_running_loop().time  # the clock that the load is timed by
        self._wall_s, self._cpu_s = self._now(), time.process_time()
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        self._wall_s, self._cpu_s = self._now() - self._wall_s, time.process_time() - self._cpu_s
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _beat(self) -> None:
        now = asyncio.get_running_loop().time
        due = now()
        while True:
            due += _TICK_S
            await asyncio.sleep(due - now())
            self._lags_s.append(max(now() - due, 0.0))

    def load(self) -> ClientLoad:
        lags = self._lags_s or [0.0]
        return ClientLoad(
            lag_p50_s=nearest_rank(lags, 50),
            lag_p99_s=nearest_rank(lags, 99),
            lag_max_s=max(lags),
            cpu_fraction=self._cpu_s / self._wall_s if self._wall_s else 0.0,
        )


# --- a run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All requests that a load issued, in order, and how the client fared. `stopped`: it was ended before all were issued."""

    load: Load
    exchanges: tuple[Exchange, ...]
    started_s: float  # by the machine's monotonic clock: where times in the exchanges count from
    elapsed_s: float
    client: ClientLoad
    stopped: bool = False
    joules: float | None = None  # spent meanwhile, where somebody counts


class _Stop(Exception):  # noqa: N818 - no error: enough is known
    """Raised inside a run to end it."""


async def drive(
    server: Server,
    load: Load,
    ask: Callable[[int], Request],
    *,
    watch: Callable[[Exchange], bool] = lambda _: False,
    joules: Callable[[], float | None] = lambda: None,
) -> Run:
    """Put a load on a server.

    Args:
        server: who is asked.
        load: when.
        ask: makes the request of an index, beforehand, so that its making delays nobody.
        watch: called with each exchange as it ends; True ends the run, and requests that are in flight count as failed.
        joules: reads an energy counter.
    """
    requests = [ask(i) for i in range(load.requests_count)]
    seen: dict[int, Exchange] = {}
    gc.freeze()  # what is there already need not be looked at while times are taken
    try:
        before = joules()
        async with _Pulse() as pulse:
            started_s = asyncio.get_running_loop().time()
            driver = _Driver(server, load, started_s, watch, seen)
            stopped = await driver.run(requests)
            elapsed_s = asyncio.get_running_loop().time() - started_s
        after = joules()
    finally:
        gc.unfreeze()
    return Run(
        load=load,
        exchanges=tuple(seen[i] for i in sorted(seen)),
        started_s=started_s,
        elapsed_s=elapsed_s,
        client=pulse.load(),
        stopped=stopped,
        joules=None if before is None or after is None else after - before,
    )


class _Driver:
    """Issues the requests of one run."""

    def __init__(
        self,
        server: Server,
        load: Load,
        started_s: float,
        watch: Callable[[Exchange], bool],
        seen: dict[int, Exchange],
    ) -> None:
        self._server, self._load, self._started_s, self._watch, self._seen = server, load, started_s, watch, seen
        self._now = asyncio.get_running_loop().time
        self._turn = asyncio.Semaphore(load.cap_count) if load.cap_count else None

    async def run(self, requests: list[Request]) -> bool:
        """Issue them all; tell whether the watch stopped it."""
        stopped = False
        try:
            await (self._closed(requests) if self._load.mode == "closed" else self._open(requests))
        except* _Stop:
            stopped = True
        return stopped

    async def _open(self, requests: list[Request]) -> None:
        async with asyncio.TaskGroup() as group:
            for request, offset_s in zip(requests, arrivals(self._load), strict=True):
                intended_s = self._started_s + offset_s
                await asyncio.sleep(max(intended_s - self._now(), 0))
                group.create_task(self._one(request, intended_s))

    async def _closed(self, requests: list[Request]) -> None:
        queue = iter(requests)

        async def user() -> None:
            for request in queue:
                await self._one(request, self._now())

        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.users_count or 1):
                group.create_task(user())

    async def _one(self, request: Request, intended_s: float) -> None:
        try:
            found, _ = await exchange(
                self._server,
                request,
                started_s=self._started_s,
                intended_s=intended_s,
                timeout_s=self._load.timeout_s,
                turn=self._turn,
            )
        except asyncio.CancelledError:
            self._seen[request.index] = _cut_short(request, _since(self._started_s, intended_s))
            raise
        self._seen[request.index] = found
        if self._watch(found):
            raise _Stop


def _cut_short(request: Request, intended_s: float) -> Exchange:
    return Exchange(
        index=request.index,
        intended_s=intended_s,
        sent_s=None,
        chunks_s=(),
        chunk_tokens=None,
        ended_s=intended_s,
        asked_tokens=request.output_tokens,
        usage=None,
        finish=None,
        text_bytes=0,
        text_sha256=hashlib.sha256(b"").hexdigest(),
        failure="in flight when the run was stopped",
    )
