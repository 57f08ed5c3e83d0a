"""Dollars in somebody's token: a rate that several sources agree on, or none; amounts in whole base units, rounded once.

Covers: a stale, lone, thin or deviating source is refused, and no older rate is ever used in its place; a token of 0 to 36 decimals; a
buffer for the time between quote and settlement.
Does not cover: fetching a rate, or telling whether the sources are independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import NoReturn

from harness.errors import FailureError, MisuseError
from harness.scoring.exact import precise

__all__ = ["Limits", "Observation", "Source", "TokenRate", "amount_of", "buffer_fraction", "token_rate", "usd_of"]

_FEWEST_SOURCES = 2
_MOST_DECIMALS = 36
_YEAR_S = 365 * 24 * 3600
_SIGNIFICANT = 18  # digits of a rate: far beyond any source's, and what two machines surely agree on


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one token cost at a time."""

    at_s: int  # Unix time
    usd_per_token: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Observations of one source, in order of time."""

    name: str
    observations: tuple[Observation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a rate has to satisfy, or is refused."""

    window_s: int = 1800
    stale_s: int = 60
    spread: Decimal = Decimal("0.02")  # of the sources' averages
    jump: Decimal = Decimal("0.05")  # of the newest price from the average
    holds_s: int = 600  # how long a rate may be used


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRate:
    """What a token costs, and until when that holds."""

    usd_per_token: Decimal
    at_s: int
    expires_s: int  # Unix time
    sources: tuple[str, ...]


def token_rate(sources: Sequence[Source], at_s: int, limits: Limits | None = None) -> TokenRate:
    """Return the time-weighted average of a token's price, in logarithms, over the window before a time; the middle one of the sources'.

    Raises:
        FailureError: the sources are too few, stale, thin, from the future, apart, or away from their average. There is no fallback.
        MisuseError: a price is not positive, or a source's observations are out of order.
    """
    limits = limits or Limits()
    if len({source.name for source in sources}) < _FEWEST_SOURCES or len(sources) != len({s.name for s in sources}):
        _refuse(f"{len(sources)} sources given; at least {_FEWEST_SOURCES} of different names are needed")
    with precise():
        averages = sorted(_average(source, at_s, limits) for source in sources)
        if (averages[-1] / averages[0]) > 1 + limits.spread:
            _refuse(f"the sources differ by {averages[-1] / averages[0] - 1:.4f}, more than {limits.spread}")
        middle = averages[(len(averages) - 1) // 2], averages[len(averages) // 2]
        rate = Decimal(f"{(middle[0] * middle[1]).sqrt():.{_SIGNIFICANT - 1}e}")
    names = tuple(sorted(source.name for source in sources))
    return TokenRate(usd_per_token=rate, at_s=at_s, expires_s=at_s + limits.holds_s, sources=names)


def _average(source: Source, at_s: int, limits: Limits) -> Decimal:
    _check(source, at_s)
    seen, begins = source.observations, at_s - limits.window_s
    if not seen or at_s - seen[-1].at_s > limits.stale_s:
        age = f"{at_s - seen[-1].at_s} s old" if seen else "empty"
        _refuse(f"source {source.name!r} is {age}; {limits.stale_s} s are allowed")
    if seen[0].at_s > begins:
        _refuse(f"source {source.name!r} goes back {at_s - seen[0].at_s} s, not the {limits.window_s} s of the window")
    ends = [*(o.at_s for o in seen[1:]), at_s]
    spans = [max(end, begins) - max(o.at_s, begins) for o, end in zip(seen, ends, strict=True)]
    logarithms = ((o.usd_per_token.ln(), span) for o, span in zip(seen, spans, strict=True) if span)
    total = sum((logarithm * span for logarithm, span in logarithms), Decimal(0))
    average = (total / limits.window_s).exp()
    newest = seen[-1].usd_per_token
    if max(newest / average, average / newest) > 1 + limits.jump:
        _refuse(
            f"source {source.name!r} stands at {newest}, away from its average {average:.6g} by more than {limits.jump}"
        )
    return average


def _check(source: Source, at_s: int) -> None:
    times = [o.at_s for o in source.observations]
    if times != sorted(set(times)):
        message = f"source {source.name!r}: its observations are not in order of time, each time once"
        raise MisuseError(message)
    for o in source.observations:
        if not o.usd_per_token.is_finite() or o.usd_per_token <= 0:
            message = f"source {source.name!r}: a price of {o.usd_per_token}; it should be more than 0"
            raise MisuseError(message)
    if times and times[-1] > at_s:
        _refuse(f"source {source.name!r} knows a price of {times[-1]}, after {at_s}")


def _refuse(why: str) -> NoReturn:
    message = f"no token rate: {why}"
    raise FailureError(message)


def buffer_fraction(volatility: Decimal, locked_s: int, deviations: Decimal = Decimal("1.645")) -> Decimal:
    """Return what a rate that is locked for a time is raised by: deviations x volatility x sqrt(time / year), to six decimals.

    Args:
        volatility: standard deviation of the logarithm of the price, of a year: 0.8 is 80 %.
        locked_s: from the quote to its expiry.
        deviations: 1.645 covers 95 of 100 one-sided moves of a normal one.
    """
    if volatility < 0 or locked_s < 0 or deviations < 0:
        message = f"volatility {volatility}, {locked_s} s, {deviations} deviations: each should be 0 or more"
        raise MisuseError(message)
    with precise():
        return (deviations * volatility * (Decimal(locked_s) / _YEAR_S).sqrt()).quantize(Decimal("0.000001"))


def amount_of(usd: Decimal, rate: TokenRate, decimals: int, *, now_s: int, buffer: Decimal = Decimal(0)) -> int:
    """Return an amount of dollars in base units of a token, rounded up once; the payer's remainder is less than one base unit.

    Args:
        usd: of a whole settlement, not of each window in it.
        rate: not yet expired.
        decimals: of the token: 10**decimals base units are one.
        now_s: the time of settlement, Unix time.
        buffer: from `buffer_fraction`.

    Raises:
        FailureError: the rate has expired, or is from the future.
        MisuseError: an amount is negative, or the token's decimals are not from 0 to 36.
    """
    if not rate.at_s <= now_s <= rate.expires_s:
        _refuse(f"that of {rate.at_s} holds until {rate.expires_s}; it is {now_s}")
    if not usd.is_finite() or usd < 0 or buffer < 0:
        message = f"an amount of {usd} USD with a buffer of {buffer}; both should be 0 or more"
        raise MisuseError(message)
    exact = Fraction(usd) * (1 + Fraction(buffer)) / Fraction(rate.usd_per_token) * _scale(decimals)
    return -(-exact.numerator // exact.denominator)


def usd_of(amount: int, rate: TokenRate, decimals: int) -> Fraction:
    """Return what base units of a token are worth in dollars, exactly."""
    return Fraction(amount) / _scale(decimals) * Fraction(rate.usd_per_token)


def _scale(decimals: int) -> int:
    if not 0 <= decimals <= _MOST_DECIMALS:
        message = f"{decimals} decimals; a token has 0 to {_MOST_DECIMALS}"
        raise MisuseError(message)
    return int(10**decimals)
