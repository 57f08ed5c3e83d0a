"""Service-level objectives: which replies count as good, and the highest rate at which enough of them are.

The classes are those of MLPerf Inference for Llama-3.1-8B, and "local chat": fifty tokens a second for the one who reads them.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from harness.errors import MisuseError
from harness.inference import metrics
from harness.inference.exchange import Exchange
from harness.inference.loadgen import BusyClientError

__all__ = ["SLOS", "Search", "Slo", "Try", "find_slo", "good_fraction", "impatient", "is_good", "search", "try_s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits a reply must keep; None for no limit. `least_fraction` of all requests must keep them all."""

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    least_fraction: float = 0.95


SLOS: Mapping[str, Slo] = MappingProxyType(
    {
        slo.name: slo
        for slo in (
            Slo(name="standard", ttft_s=2.0, tpot_s=0.1),
            Slo(name="interactive", ttft_s=0.5, tpot_s=0.03),
            Slo(name="local", tpot_s=0.02),
            Slo(name="batch"),
        )
    }
)

_LIMITS = ("ttft", "tpot", "e2e")


def find_slo(text: str) -> Slo:
    """Return a class by its name, or one of your own from seconds: `ttft=0.5,tpot=0.03,e2e=10`, any of the three.

    Raises:
        MisuseError: there is no such class, or a limit is none.
    """
    if text in SLOS:
        return SLOS[text]
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in _LIMITS or not value:
            msg = f"no SLO {text!r}; there are {', '.join(SLOS)}, or seconds, such as ttft=0.5,tpot=0.03"
            raise MisuseError(msg)
        limits[name] = _seconds(part, value)
    return Slo(
        name=text,
        ttft_s=limits.get("ttft"),
        tpot_s=limits.get("tpot"),
        e2e_s=limits.get("e2e"),
    )


def _seconds(part: str, value: str) -> float:
    try:
        limit = float(value)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        msg = f"the limit {part!r} is not a positive number of seconds, such as ttft=0.5"
        raise MisuseError(msg)
    return limit


def is_good(exchange: Exchange, slo: Slo) -> bool:
    """Tell whether a reply came whole and within the limits. A reply of one token has no TPOT to miss.

    One that came for the most part in its first chunk was not streamed: who reads it waited for all of it, so its time per token is NTPOT.
    """
    if exchange.failure is not None:
        return False
    count = exchange.output_tokens
    lump = count > 1 and exchange.tokens[0] > count / 2
    kept = (
        (slo.ttft_s, metrics.ttft(exchange)),
        (slo.tpot_s, metrics.ntpot(exchange) if lump else metrics.tpot(exchange)),
        (slo.e2e_s, metrics.e2e(exchange)),
    )
    return all(limit is None or value is None or value <= limit for limit, value in kept)


def good_fraction(exchanges: Sequence[Exchange], slo: Slo) -> float | None:
    """Return the share of all issued requests that are good; None for none issued."""
    return sum(is_good(x, slo) for x in exchanges) / len(exchanges) if exchanges else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One rate that was tried. One given up early counts its requests that had no end as bad."""

    rate_per_s: float
    requests_count: int
    good_count: int
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The highest rate that passed and the lowest that did not; None where there was none.

    `ended`: why the search ended before it met a rate that fails: the client could not keep up, or a try would have taken more requests
    than one run holds. Then what passed is a lower bound.
    """

    slo: str
    passed_rate_per_s: float | None
    failed_rate_per_s: float | None
    tries: tuple[Try, ...]
    ended: str | None = None


_WAITS = 10.0  # a try must be long beside what a request may take, and a queue that nobody limits long beside a request alone


def impatient(slo: Slo, *, alone_s: float) -> Slo:
    """Return the SLO that a search holds replies to: one that limits no waiting is told to.

    Without a limit on TTFT or the end, a queue may grow until requests time out, and any rate passes that is tried for less than that.

    Args:
        slo: as the user gave it.
        alone_s: what a request takes from end to end when it is alone.
    """
    if slo.ttft_s is not None or slo.e2e_s is not None:
        return slo
    limit_s = _WAITS * alone_s
    return replace(slo, name=f"{slo.name},ttft={limit_s:.4g}", ttft_s=limit_s)


def try_s(slo: Slo, *, alone_s: float) -> float:
    """Return how long a rate must be tried: a server that is too slow fills its queue only by and by, and at first keeps any SLO.

    In ten times the longest wait that is good, a server asked for a tenth more than it can do is late by all of it.
    """
    return _WAITS * max(slo.ttft_s or 0.0, slo.e2e_s or 0.0, alone_s)


async def search(
    attempt: Callable[[float], Awaitable[Try]],
    slo: Slo,
    *,
    start_per_s: float,
    tolerance_fraction: float = 0.05,
    doublings: int = 10,
) -> Search:
    """Find the highest rate that passes: double it until it fails (or halve it until it passes), then bisect.

    Whoever makes the attempts keeps their arrivals' seed: then a higher rate is the same arrivals, only denser, and the answer does not
    hang on the luck of one draw.

    Args:
        attempt: tries one rate.
        slo: what it is tried against.
        start_per_s: the first rate.
        tolerance_fraction: stop when the two ends are this near each other.
        doublings: how often to double or halve at most.

    Raises:
        MisuseError: the first rate is not positive.
    """
    if not 0 < start_per_s < math.inf:
        msg = f"the first rate {start_per_s!r} is not a positive number of requests per second, such as 1"
        raise MisuseError(msg)
    tries: list[Try] = []

    async def passes(rate_per_s: float) -> bool:
        tries.append(await attempt(rate_per_s))
        return tries[-1].passed

    ended = None
    try:
        low, high = await _bracket(passes, start_per_s, doublings)
        while low is not None and high is not None and high - low > tolerance_fraction * high:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if await passes(middle) else (low, middle)
    except BusyClientError as err:
        ended = str(err)
    return Search(
        slo=slo.name,
        passed_rate_per_s=max((t.rate_per_s for t in tries if t.passed), default=None),
        failed_rate_per_s=min((t.rate_per_s for t in tries if not t.passed), default=None),
        tries=tuple(tries),
        ended=ended,
    )


async def _bracket(
    passes: Callable[[float], Awaitable[bool]], rate_per_s: float, doublings: int
) -> tuple[float | None, float | None]:
    """Return a rate that passes and the next that fails, a factor of two apart; None for an end that was not met."""
    up = await passes(rate_per_s)
    for _ in range(doublings):
        following = rate_per_s * (2 if up else 0.5)
        if await passes(following) != up:
            return (rate_per_s, following) if up else (following, rate_per_s)
        rate_per_s = following
    return (rate_per_s, None) if up else (None, rate_per_s)
