"""What the times of exchanges amount to: latencies with an id for each definition, percentiles that are certified, rates, money.

Names collide between tools (three of them call three different things TPOT), so every number goes by the id of its definition.

Percentiles are the nearest rank over all requests that were issued; one that failed took forever. A percentile is given only where the
sample certifies it, by the early stopping of MLPerf: n requests certify a percentile p if even the second largest of them lies, at 99 %
confidence, above p (one-sided binomial test). That takes 64 requests for p90, 130 for p95, 662 for p99 and 6,636 for p99.9.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from statistics import median
from types import MappingProxyType
from typing import Literal

from harness.errors import MisuseError
from harness.inference.exchange import Exchange

__all__ = [
    "CONFIDENCE",
    "DEFINITIONS",
    "PERCENTS",
    "Distribution",
    "Percentile",
    "Rates",
    "Window",
    "bootstrap",
    "distribution",
    "e2e",
    "floor_count",
    "gaps",
    "nearest_rank",
    "ntpot",
    "over_count",
    "queue_delay",
    "rates",
    "steady_window",
    "tokens_per_joule",
    "tpot",
    "ttft",
    "ttft_from_send",
    "usd_per_million",
    "usd_per_million_split",
    "values",
    "whole_window",
]

CONFIDENCE = 0.99
PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
_PLACES = Decimal("0.000001")

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "queue_delay/1": "s - a: from the intended start to the send; the client's own delay and any cap on requests in flight",
        "ttft/1": "c1 - a: from the intended start to the first chunk with content",
        "ttft_from_send/1": "c1 - s: the same from the send, as most tools have it; blind to what waited",
        "itl/1": "c_j - c_(j-1): each gap between two chunks with content, whatever they hold; one endless gap for a reply that failed",
        "tpot/1": "(c_m - c1) / (n - k1): time per token after the first chunk; undefined where n = k1",
        "ntpot/1": "(c_m - a) / n: end to end per token, the first included",
        "e2e/1": "c_m - a: from the intended start to the last chunk with content",
    }
)
"""a: intended start, s: send, c1 ... cm: arrivals of chunks with content, k1: tokens in the first, n: tokens of the reply."""


def _whole(latency: Callable[[Exchange], float | None]) -> Callable[[Exchange], float | None]:
    @functools.wraps(latency)
    def or_forever(exchange: Exchange) -> float | None:
        return math.inf if exchange.failure is not None else latency(exchange)

    return or_forever


def queue_delay(exchange: Exchange) -> float:
    """Return s - a in seconds; infinite for a request that was never sent."""
    return math.inf if exchange.sent_s is None else exchange.sent_s - exchange.intended_s


@_whole
def ttft(exchange: Exchange) -> float | None:
    """Return c1 - a in seconds; infinite where the reply failed, even after it began."""
    return exchange.chunks_s[0] - exchange.intended_s


@_whole
def ttft_from_send(exchange: Exchange) -> float | None:
    """Return c1 - s in seconds; infinite where the reply failed."""
    return None if exchange.sent_s is None else exchange.chunks_s[0] - exchange.sent_s


@_whole
def e2e(exchange: Exchange) -> float | None:
    """Return cm - a in seconds; infinite where the reply failed."""
    return exchange.chunks_s[-1] - exchange.intended_s


@_whole
def tpot(exchange: Exchange) -> float | None:
    """Return (cm - c1) / (n - k1) in seconds; None where all tokens came in one chunk, infinite where the reply failed."""
    later = exchange.output_tokens - exchange.tokens[0]
    return (exchange.chunks_s[-1] - exchange.chunks_s[0]) / later if later else None


@_whole
def ntpot(exchange: Exchange) -> float | None:
    """Return (cm - a) / n in seconds; infinite where the reply failed."""
    return (exchange.chunks_s[-1] - exchange.intended_s) / exchange.output_tokens


def gaps(exchange: Exchange) -> tuple[float, ...]:
    """Return the gaps between chunks in seconds; a reply that failed ends in an infinite one."""
    seen = tuple(later - earlier for earlier, later in pairwise(exchange.chunks_s))
    return seen if exchange.failure is None else (*seen, math.inf)


_LATENCIES: Mapping[str, Callable[[Exchange], float | None]] = {
    "queue_delay/1": queue_delay,
    "ttft/1": ttft,
    "ttft_from_send/1": ttft_from_send,
    "tpot/1": tpot,
    "ntpot/1": ntpot,
    "e2e/1": e2e,
}


def values(exchanges: Sequence[Exchange], metric: str) -> tuple[float, ...]:
    """Return all values of a metric in seconds, one a request (gaps: as many as there were); undefined ones are left out.

    Raises:
        MisuseError: no definition has that id.
    """
    if metric == "itl/1":
        return tuple(gap for x in exchanges for gap in gaps(x))
    if metric not in _LATENCIES:
        msg = f"no metric {metric!r}; there are {', '.join(DEFINITIONS)}"
        raise MisuseError(msg)
    found = (_LATENCIES[metric](x) for x in exchanges)
    return tuple(v for v in found if v is not None)


# --- percentiles ------------------------------------------------------------------------------------------------------


def _fraction(percent: float) -> Fraction:
    exact = Fraction(str(percent)) / 100  # 99.9 as it is written: its float times 1000 is not 99900
    if not 0 < exact < 1:
        msg = f"percentile {percent!r} is not between 0 and 100, such as 99.9"
        raise MisuseError(msg)
    return exact


def nearest_rank(sample: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the sample do not exceed. The sample holds one value or more."""
    return sorted(sample)[math.ceil(_fraction(percent) * len(sample)) - 1]


@functools.lru_cache(maxsize=1024)
def over_count(n: int, percent: float) -> int:
    """Return how many of n requests may lie above a bound that is still certified to be the percentile's; -1 for not even none.

    The largest t for which t or fewer of n above the true percentile have a chance of at most 1 %.
    """
    inside = float(_fraction(percent))
    above, chance = math.log1p(-inside), 0.0
    for t in range(n + 1):
        log_ways = math.lgamma(n + 1) - math.lgamma(t + 1) - math.lgamma(n - t + 1)
        chance += math.exp(log_ways + t * above + (n - t) * math.log(inside))
        if chance > 1 - CONFIDENCE:
            return t - 1
    return n


@functools.lru_cache(maxsize=64)
def floor_count(percent: float) -> int:
    """Return the least number of requests that certify a percentile: as many as allow one of them to lie above it."""
    low, high = 0, 1
    while over_count(high, percent) < 1:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if over_count(middle, percent) >= 1 else (middle, high)
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentile:
    """One percentile, or why there is none.

    `value_s` is the nearest rank; `bound_s` lies above the true percentile with 99 % confidence, and is None where failures make it
    infinite or where values depend on each other (gaps). `too_few`: the sample does not certify the percentile; `failures`: so many
    requests failed that it is infinite.
    """

    percent: float
    value_s: float | None
    bound_s: float | None
    state: Literal["certified", "too_few", "failures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A metric over all issued requests. `requests_count` is what certifies: gaps of one reply depend on each other."""

    metric: str
    requests_count: int
    values_count: int
    infinite_count: int
    percentiles: tuple[Percentile, ...]


def distribution(exchanges: Sequence[Exchange], metric: str, percents: Sequence[float] = PERCENTS) -> Distribution:
    """Summarise a metric over requests.

    Raises:
        MisuseError: no definition has that id, or a percentile is not between 0 and 100.
    """
    sample = sorted(values(exchanges, metric))
    requests = min(len(sample), len(exchanges))
    return Distribution(
        metric=metric,
        requests_count=len(exchanges),
        values_count=len(sample),
        infinite_count=sum(map(math.isinf, sample)),
        percentiles=tuple(_percentile(sample, requests, p) for p in percents),
    )


def _percentile(ordered: Sequence[float], requests: int, percent: float) -> Percentile:
    if requests < floor_count(percent):
        return Percentile(percent=percent, value_s=None, bound_s=None, state="too_few")
    value = nearest_rank(ordered, percent)
    if math.isinf(value):
        return Percentile(percent=percent, value_s=None, bound_s=None, state="failures")
    bound = math.inf
    if len(ordered) == requests:
        bound = ordered[requests - over_count(requests, percent)]  # the t-th largest, as LoadGen's estimate
    return Percentile(percent=percent, value_s=value, bound_s=None if math.isinf(bound) else bound, state="certified")


# --- rates ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of a run. `steady`: from the first completed reply to the last arrival. `whole`: first send to last chunk."""

    kind: Literal["steady", "whole"]
    start_s: float
    end_s: float


def steady_window(exchanges: Sequence[Exchange]) -> Window | None:
    """Return the stretch in which neither filling up nor running empty shows; None where there is none."""
    ends = [x.chunks_s[-1] for x in exchanges if x.failure is None]
    return _window("steady", min(ends, default=math.inf), max((x.intended_s for x in exchanges), default=0.0))


def whole_window(exchanges: Sequence[Exchange]) -> Window | None:
    """Return the stretch from the first send to the last chunk; None where nothing arrived."""
    sends = [x.sent_s for x in exchanges if x.sent_s is not None]
    ends = [x.chunks_s[-1] for x in exchanges if x.chunks_s]
    return _window("whole", min(sends, default=math.inf), max(ends, default=0.0))


def _window(kind: Literal["steady", "whole"], start_s: float, end_s: float) -> Window | None:
    return Window(kind=kind, start_s=start_s, end_s=end_s) if start_s < end_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What went through a window each second. Good: within the SLO. Tokens count where they arrive, requests where they end."""

    window: Window
    requests_per_s: float
    good_requests_per_s: float
    input_tokens_per_s: float | None  # None where the server does not count them
    output_tokens_per_s: float
    good_output_tokens_per_s: float


def rates(
    exchanges: Sequence[Exchange], window: Window | None, good: Callable[[Exchange], bool] = lambda _: True
) -> Rates | None:
    """Return rates of the successful exchanges in a window; None for no window."""
    if window is None:
        return None
    length = window.end_s - window.start_s
    whole = [x for x in exchanges if x.failure is None]
    fine = [x for x in whole if good(x)]
    done = [x for x in whole if _in(window, x.chunks_s[-1])]
    inputs = [x.usage.input_tokens if x.usage else None for x in done]
    counted = [k for k in inputs if k is not None]
    return Rates(
        window=window,
        requests_per_s=len(done) / length,
        good_requests_per_s=sum(_in(window, x.chunks_s[-1]) for x in fine) / length,
        input_tokens_per_s=sum(counted) / length if len(counted) == len(inputs) else None,
        output_tokens_per_s=_tokens_in(window, whole) / length,
        good_output_tokens_per_s=_tokens_in(window, fine) / length,
    )


def _in(window: Window, at_s: float) -> bool:
    return window.start_s < at_s <= window.end_s


def _tokens_in(window: Window, exchanges: Sequence[Exchange]) -> int:
    return sum(k for x in exchanges for at, k in zip(x.chunks_s, x.tokens, strict=True) if _in(window, at))


def tokens_per_joule(exchanges: Sequence[Exchange], joules: float | None) -> float | None:
    """Return tokens of whole replies per joule spent on all; None where no energy is known."""
    return sum(x.output_tokens for x in exchanges if x.failure is None) / joules if joules else None


# --- money ------------------------------------------------------------------------------------------------------------


def usd_per_million(usd_per_hour: Decimal, tokens_per_s: float | None) -> Decimal | None:
    """Return what a million tokens cost at a price per hour, to six places; None where no token came out."""
    if not tokens_per_s:
        return None
    return (usd_per_hour / 3600 / Decimal(repr(tokens_per_s)) * 10**6).quantize(_PLACES)


def usd_per_million_split(
    usd_per_hour: Decimal, seen: Rates, *, input_s_per_token: float, output_s_per_token: float
) -> tuple[Decimal, Decimal] | None:
    """Return what a million tokens of prompt and of reply cost, if both pay for the time they take.

    Args:
        usd_per_hour: what the server costs.
        seen: rates of both kinds of tokens.
        input_s_per_token: time that one token of prompt takes when the server is alone with it: TTFT over the prompt's tokens.
        output_s_per_token: the same of the reply: TPOT.

    Returns None where a rate or a time is missing.
    """
    if not seen.input_tokens_per_s or not seen.output_tokens_per_s or not (input_s_per_token and output_s_per_token):
        return None
    weight = input_s_per_token / output_s_per_token
    output = usd_per_million(usd_per_hour, seen.input_tokens_per_s * weight + seen.output_tokens_per_s)
    return None if output is None else ((output * Decimal(repr(weight))).quantize(_PLACES), output)


# --- repetitions ------------------------------------------------------------------------------------------------------


def bootstrap(
    sample: Sequence[float], *, seed: int, draws: int = 2000, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return an interval of the median over independent repetitions by resampling them; None for fewer than three.

    With three it is their range: no resampling makes more of three numbers.
    """
    if len(sample) < 3:  # noqa: PLR2004 - two medians resample to themselves and their mean
        return None
    rng = random.Random(seed)  # noqa: S311 - resampling, not secrets
    medians = sorted(median(rng.choices(sample, k=len(sample))) for _ in range(draws))
    tail = (1 - confidence) / 2
    return medians[int(tail * draws)], medians[math.ceil((1 - tail) * draws) - 1]
