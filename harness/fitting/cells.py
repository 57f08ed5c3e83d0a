"""Cells: the median of what one seller asks for one card in one era, which is what is fitted and what is shipped.

A seller with forty configurations of a card has one say, not forty; and a median is a fact about a market, not a copy of a list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from harness import strangers
from harness.codec import digest, plain
from harness.errors import FailureError, MisuseError
from harness.fitting.offers import Offer
from harness.scoring.market_document import Segment
from harness.scoring.sheets import sheets
from harness.scoring.tables import table

__all__ = [
    "ERAS_MONTHS",
    "GROUPS",
    "Cell",
    "Snapshot",
    "cells_of",
    "company_of",
    "era_of",
    "months_before",
    "read_snapshot",
    "shipped_snapshot",
]

ERAS_MONTHS = {"": 0.0, "3 to 9 months before": 3.0, "9 to 15 months before": 9.0}
_OLDEST_MONTHS = 15.0
_COMPANIES = {"runpod-community": "runpod"}  # sellers of one company: who has seen the one has seen the other
_ALONE = math.log(5)  # an offer this far from all others of its card and kind of seller is a mistake or bait


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The median price of one card at one seller in one era."""

    provider: str
    segment: Segment
    card: str
    usd_per_gpu_hour: Decimal
    date: str  # of its newest offer
    exact_date: bool
    offer_count: int
    kinds: tuple[str, ...]
    sources: tuple[str, ...]


def company_of(provider: str) -> str:
    """Return the company behind a seller: where it is left out, all of its sellers are."""
    return _COMPANIES.get(provider, provider)


# What a price is left out with, to see what is said of it unseen.
GROUPS: Mapping[str, Callable[[Cell], str]] = {
    "card": lambda cell: cell.card,
    "seller": lambda cell: company_of(cell.provider),
    "architecture": lambda cell: sheets()[cell.card].architecture,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All cells, and what was screened out of them, or stands against one other price alone."""

    schema: str
    as_of: str
    cells: tuple[Cell, ...]
    screened: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The digest that names the prices."""
        return _digest(self)


@cache
def _digest(snapshot: Snapshot) -> str:
    return digest(snapshot)  # half of the time of a fit


def months_before(as_of: str, day: str) -> float:
    """Return how many months a day lies before another; a month without a day is taken at its middle. Never negative."""
    days = (_parsed(as_of) - _parsed(day)).days
    return max(days / (365.25 / 12), 0.0)


def era_of(months: float) -> str:
    """Return the era that prices of some age belong to."""
    return max((name for name, begins in ERAS_MONTHS.items() if months >= begins), key=ERAS_MONTHS.__getitem__)


def cells_of(offers: Iterable[Offer], older: Snapshot | None = None) -> Snapshot:
    """Make a snapshot of offers, with the cells of an older one; the order of the offers and duplicates of them do not count.

    A seller has one say for a card in one era, its newest: also where the older snapshot's cells have come to lie in the era of others.

    Raises:
        FailureError: no offer is left.
    """
    unique = sorted(set(offers), key=_order)
    kept, screened = _screen(unique, current(older) if older else ())
    if not kept:
        msg = "no offer is left after screening"
        raise FailureError(msg)
    as_of = max(
        _parsed(day) for day in [*(o.date for o in kept if o.exact_date), *([older.as_of] if older else [])]
    ).isoformat()
    found: dict[tuple[str, str, str], Cell] = {}
    for cell in sorted(
        [*(older.cells if older else ()), *_medians(kept, as_of)], key=lambda c: _parsed(c.date)
    ):  # of one day, the fresh last
        if (months := months_before(as_of, cell.date)) <= _OLDEST_MONTHS:
            found[cell.provider, cell.card, era_of(months)] = cell
    return Snapshot(
        schema="harness.market-cells/1",
        as_of=as_of,
        cells=tuple(sorted(found.values(), key=lambda c: (c.provider, c.card, c.date))),
        screened=tuple(sorted({*(older.screened if older else ()), *screened})),
    )


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot that `harness market refresh` wrote.

    Raises:
        MisuseError: there is no such file, or it is no snapshot.
    """
    try:
        return _convert(strangers.loads(path.read_bytes()))
    except (OSError, ValueError) as err:
        msg = f"cannot read a snapshot of prices from {str(path)!r}: {err}"
        raise MisuseError(msg) from err


def shipped_snapshot() -> Snapshot:
    """Return the snapshot that is shipped."""
    return _convert(table("market_cells"))


def as_json(snapshot: Snapshot) -> str:
    """Return a snapshot as a file that people can compare line by line: one cell a line."""
    document = plain(snapshot)
    cells = ",\n".join("    " + json.dumps(cell, sort_keys=True) for cell in document.pop("cells"))
    head = json.dumps(document, indent=2, sort_keys=True)[1:-2].rstrip()
    return f'{{\n  "cells": [\n{cells}\n  ],{head}\n}}\n'


def _convert(document: Mapping[str, Any]) -> Snapshot:
    try:
        found = msgspec.convert(document, Snapshot)
    except msgspec.ValidationError as err:
        msg = f"not a snapshot of prices: {err}"
        raise MisuseError(msg) from err
    unknown = sorted({c.card for c in found.cells} - set(sheets()))
    if unknown:
        msg = f"no sheet of {', '.join(unknown)}"
        raise MisuseError(msg)
    for cell in found.cells:
        if not (cell.usd_per_gpu_hour.is_finite() and cell.usd_per_gpu_hour > 0):
            msg = f"the price of {cell.card} at {cell.provider} is {cell.usd_per_gpu_hour}: no price"
            raise MisuseError(msg)
    return found


def _screen(offers: Sequence[Offer], known: Sequence[Cell]) -> tuple[list[Offer], list[str]]:
    """Drop an offer that is five times off the middle of all others of its card and kind of seller, known prices among them, whoever made it.

    Of two that contradict only each other nobody can say which is the mistake: both are kept, and told.
    """
    kept, told = [], []
    by_kind: dict[tuple[str, str], list[Offer | Cell]] = {}
    every: list[Offer | Cell] = [*offers, *known]
    for one in every:
        by_kind.setdefault((one.card, one.segment), []).append(one)
    for offer in offers:
        others = [float(o.usd_per_gpu_hour) for o in by_kind[offer.card, offer.segment] if o is not offer]
        alone = bool(others) and abs(math.log(float(offer.usd_per_gpu_hour) / median(others))) > _ALONE
        if alone:
            told.append(
                f"{offer.card} at {offer.provider} for {offer.usd_per_gpu_hour} USD on {offer.date} ({offer.source}): five times off "
                + (
                    f"the {median(others):.3f} of {len(others)} others"
                    if others[1:]
                    else f"the only other, {others[0]:.3f}: kept"
                )
            )
        if not alone or len(others) == 1:
            kept.append(offer)
    return kept, told


def _medians(offers: Sequence[Offer], as_of: str) -> Iterator[Cell]:
    groups: dict[tuple[str, str, str], list[Offer]] = {}
    for offer in offers:
        age = months_before(as_of, offer.date)
        if age <= _OLDEST_MONTHS:
            groups.setdefault((offer.provider, offer.card, era_of(age)), []).append(offer)
    for (provider, card, _), group in groups.items():
        yield Cell(
            provider=provider,
            segment=group[0].segment,
            card=card,
            usd_per_gpu_hour=median(o.usd_per_gpu_hour for o in group).quantize(Decimal("0.000001")).normalize(),
            date=max(o.date for o in group),
            exact_date=all(o.exact_date for o in group),
            offer_count=len(group),
            kinds=tuple(sorted({o.kind for o in group})),
            sources=tuple(sorted({o.source for o in group})),
        )


def current(snapshot: Snapshot) -> list[Cell]:
    """Return the cells of the newest era, one a seller and card: what a backtest is judged by."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in snapshot.cells:
        if era_of(months_before(snapshot.as_of, cell.date)) == "":
            found.setdefault((cell.provider, cell.card), []).append(cell)
    return [_merged(group) for group in found.values()]


def _merged(group: Sequence[Cell]) -> Cell:
    if len(group) == 1:
        return group[0]
    newest = max(group, key=lambda c: c.date)
    return replace(newest, usd_per_gpu_hour=median(c.usd_per_gpu_hour for c in group))


def _order(offer: Offer) -> tuple[str, ...]:
    return (offer.provider, offer.card, offer.date, str(offer.usd_per_gpu_hour), offer.source, offer.kind)


def _parsed(day: str) -> date:
    return date.fromisoformat(day if len(day) > len("2026-10") else f"{day}-15")
