"""What well-known cards are worth today for each workload, and how that differs from what the market asks for them.

The market's price of a card is the model's estimate from its sheet. Its worth for a workload is the going rate of that workload's
CU-hour times its speed, by published measurements; the going rate is the middle one, over the cards, of price by speed. So a card whose
worth is above its price is cheap for that workload, and the median card is worth what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction

from harness.errors import MisuseError
from harness.scoring.cycles import harmonic_speed
from harness.scoring.exact import MICRO, decimal_of, fraction_of, precise, rounded
from harness.scoring.market_model import Features, Segment
from harness.scoring.profiles import Profile, profiles
from harness.scoring.tables import parameter
from harness.scoring.tables import table as data
from harness.scoring.typical import typical_rates
from harness.scoring.worth import Market, shipped_market

__all__ = ["CARDS", "Line", "MarketTable", "ProfileWorth", "market_table"]

CARDS = (
    "NVIDIA B200",
    "NVIDIA H200",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA L40S",
    "NVIDIA RTX A6000",
    "NVIDIA GeForce RTX 5090",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA GeForce RTX 3090",
    "NVIDIA L4",
)
PROFILES = ("training", "prefill", "decode", "render", "bandwidth")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileWorth:
    """What a card is worth for one workload."""

    usd_per_hour: Decimal
    difference_percent: int  # of the market's price
    from_sheet: bool  # a rate of the profile was not published, and is taken from the maker's sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One card."""

    name: str
    usd_per_hour: Decimal
    low_usd_per_hour: Decimal
    high_usd_per_hour: Decimal
    worths: Mapping[str, ProfileWorth]
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketTable:
    """All cards, and what to know of them."""

    profiles: tuple[str, ...]
    lines: tuple[Line, ...]
    going_usd_per_cu_hour: Mapping[str, Decimal]
    at: str
    notes: tuple[str, ...]
    model_digest: str


def market_table(
    *,
    cards: Sequence[str] = CARDS,
    names: Sequence[str] = PROFILES,
    segment: Segment = "marketplace",
    at: date,
    market: Market | None = None,
) -> MarketTable:
    """Return what cards are worth on a day for each workload.

    Raises:
        MisuseError: the model knows none of the cards, or there is no such profile.
    """
    market = market or shipped_market()
    with precise():
        priced = {card: found for card in cards if (found := _market_price(card, segment, at, market))}
        if not priced:
            message = f"the market model knows none of {', '.join(cards)}"
            raise MisuseError(message)
        sheets = {card: market.features_of(card, None) for card in priced}
        speeds = {name: _speeds(sheets, profiles()[name]) for name in names}
        going = {
            name: _middle([Fraction(priced[c][0]) / speed for c, (speed, _) in found.items()])
            for name, found in speeds.items()
            if found
        }
        lines = tuple(_line(card, found, going, speeds) for card, found in priced.items())
    return MarketTable(
        profiles=tuple(names),
        lines=lines,
        going_usd_per_cu_hour={name: rounded(rate) for name, rate in going.items()},
        at=at.isoformat(),
        notes=tuple(_notes(segment, at, going)),
        model_digest=market.digest,
    )


def _market_price(
    card: str, segment: Segment, at: date, market: Market
) -> tuple[Decimal, Decimal, Decimal, str] | None:
    sheet = market.features_of(card, None)
    if sheet is None:
        return None
    found = market.estimate(sheet, segment=segment, provider=None, gpu_name=card, at=at)
    if found.withheld or found.log_price is None or found.low is None or found.high is None:
        return None
    price, low, high = (decimal_of(x).exp().quantize(MICRO) for x in (found.log_price, found.low, found.high))
    return price, low, high, found.basis


def _speeds(sheets: Mapping[str, Features | None], profile: Profile) -> dict[str, tuple[Fraction, bool]]:
    """Return the speed of each card of which every class of the profile is known, and whether one is only on its sheet."""
    reference = {w: Fraction(row["value"]) for w, row in data("reference")["rates"].items()}
    found = {}
    for card, sheet in sheets.items():
        published, shares = typical_rates(card), profile.fractions
        rates = {**_of_the_sheet(sheet), **published}
        if all(w in rates for w in shares):
            speed = harmonic_speed(shares, {w: rates[w] / reference[w] for w in shares})
            found[card] = speed, any(w not in published for w in shares)
    return found


def _of_the_sheet(sheet: Features | None) -> dict[str, Fraction]:
    """Return what a card of such a sheet reaches as a rule."""
    if sheet is None:
        return {}
    dense, stream = Fraction(parameter("efficiency")), Fraction(parameter("memory_efficiency"))
    tensor = fraction_of(sheet.fp16_flops_per_s) * dense
    return {
        "gemm_bf16": tensor,
        "gemm_fp16": tensor,
        "gemm_fp32": fraction_of(sheet.fp32_flops_per_s) * dense,
        "mem": fraction_of(sheet.memory_bytes_per_s) * stream,
    }


def _middle(values: Sequence[Fraction]) -> Fraction:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _line(
    card: str,
    found: tuple[Decimal, Decimal, Decimal, str],
    going: Mapping[str, Fraction],
    speeds: Mapping[str, Mapping[str, tuple[Fraction, bool]]],
) -> Line:
    price, low, high, basis = found
    known = {name: by_card[card] for name, by_card in speeds.items() if card in by_card}
    return Line(
        name=card.removeprefix("NVIDIA ").removeprefix("GeForce "),
        usd_per_hour=price,
        low_usd_per_hour=low,
        high_usd_per_hour=high,
        worths={name: _worth(going[name] * speed, price, from_sheet) for name, (speed, from_sheet) in known.items()},
        basis=basis,
    )


def _worth(usd: Fraction, price: Decimal, from_sheet: bool) -> ProfileWorth:
    return ProfileWorth(
        usd_per_hour=rounded(usd),
        difference_percent=round((usd / Fraction(price) - 1) * 100),
        from_sheet=from_sheet,
    )


def _notes(segment: Segment, at: date, going: Mapping[str, Fraction]) -> list[str]:
    told = ", ".join(f"{name} {rounded(rate, Decimal('0.01'))}" for name, rate in going.items())
    unit = data("reference")["unit"]
    return [
        f"Market: what a {segment} asks for an hour on {at.isoformat()}, by the shipped model, with its interval.",
        f"Worth: speed, by published measurements, at the going rate of a {unit}-hour ({told} USD); in brackets, against the market.",
        f"~: a rate of the workload was not published of the card: {parameter('efficiency')} of its sheet's, {parameter('memory_efficiency')} of the bandwidth.",
        "Memory is a gate and not in the worth: where a workload does not fit, a card is worth nothing to it.",
    ]
