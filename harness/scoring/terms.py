"""What a quote is asked for: the deal, and all terms in the form in which a quote keeps them, from which anybody can ask again.

Covers: terms of a stranger's quote are held to what can be asked for; whatever no deal, costs and profile of ours would be written as is refused.
Does not cover: whether anybody agreed to them, or whether the history that a record names is true and whole.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Literal, cast

from harness.errors import MisuseError
from harness.model import Record, Terms
from harness.scoring.costs import Costs, given_costs, told_costs
from harness.scoring.exact import plain
from harness.scoring.market_model import Segment
from harness.scoring.profiles import Profile, profiles
from harness.scoring.tables import parameter

__all__ = ["Basis", "Deal", "check_terms", "profile_in", "terms_of"]

Basis = Literal["market", "cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """Who sells, when, and how: what a market price depends on beside the device.

    Raises:
        MisuseError: a value is out of range.
    """

    segment: Segment = "marketplace"
    provider: str | None = None  # a seller's key in the market model, which knows its level of prices
    at: date | None = None  # the day to read the market for; that of the report where it is left out
    spot: bool = False  # may be taken away at any moment
    term_s: int = 0  # paid in advance
    interruptions_per_hour: Decimal | None = (
        None  # of a spot node, where they are known; else the market's ratio is taken
    )
    checkpoint_s: int = 600
    restart_s: int = 120
    congestion: Decimal = Decimal(1)  # the controller's multiplier

    def __post_init__(self) -> None:
        """Refuse what no deal can be."""
        known = ("hyperscaler", "neocloud", "marketplace")
        if self.segment not in known:
            message = f"segment is {self.segment!r}; it should be one of {', '.join(known)}"
            raise MisuseError(message)
        for name in ("term_s", "checkpoint_s", "restart_s"):
            if getattr(self, name) < 0:
                message = f"{name} is {getattr(self, name)}; it should be 0 or more"
                raise MisuseError(message)
        least, most = parameter("congestion_least"), parameter("congestion_most")
        held = isinstance(self.congestion, Decimal) and self.congestion.is_finite() and least <= self.congestion <= most
        if not held:
            message = f"congestion is {self.congestion!r}; it should be a Decimal from {least} to {most}"
            raise MisuseError(message)
        rate = self.interruptions_per_hour
        if rate is not None and (not isinstance(rate, Decimal) or not rate.is_finite() or rate < 0):
            message = f"interruptions_per_hour is {rate!r}; it should be a Decimal, 0 or more"
            raise MisuseError(message)
        if rate is not None and not self.spot:
            message = f"interruptions_per_hour is {rate}, and spot is not set: only a spot node is taken away"
            raise MisuseError(message)


def terms_of(profile: Profile, costs: Costs, basis: Basis, deal: Deal) -> Terms:
    """Return what a quote is asked for, in the form in which it keeps it, but for the device's record and a day that is the report's.

    Raises:
        MisuseError: the profile has the name of one of ours, and is another.
    """
    if profile.name in profiles() and profile != profiles()[profile.name]:
        message = f"profile {profile.name!r} has the name of one of ours and says something else; it should have a name of its own"
        raise MisuseError(message)
    rate = deal.interruptions_per_hour
    return Terms(
        basis=basis,
        profile=profile.name,
        shares={} if profile.ours else {name: plain(profile.shares[name]) for name in sorted(profile.shares)},
        profile_memory_bytes=profile.memory_bytes,
        costs=told_costs(costs),
        segment=deal.segment,
        provider=deal.provider,
        at=deal.at.isoformat() if deal.at else "",
        spot=deal.spot,
        term_s=deal.term_s,
        interruptions_per_hour=None if rate is None else plain(rate),
        checkpoint_s=deal.checkpoint_s,
        restart_s=deal.restart_s,
        congestion=plain(deal.congestion),
        record=None,
    )


def profile_in(terms: Terms) -> Profile:
    """Return the profile that a quote was asked for.

    Raises:
        MisuseError: it is none of ours, and its shares are none.
    """
    if not terms.shares:
        if terms.profile not in profiles():  # never a file: a stranger may name one
            message = f"profile is {terms.profile!r}; without shares it should be one of {', '.join(profiles())}"
            raise MisuseError(message)
        return profiles()[terms.profile]
    shares = {name: _decimal(f"the share of {name}", share) for name, share in terms.shares.items()}
    return Profile(name=terms.profile, shares=shares, memory_bytes=terms.profile_memory_bytes)


def check_terms(terms: Terms) -> None:
    """Refuse terms that nobody could have asked for.

    Raises:
        MisuseError: one of them is out of range, or is written as no quote writes it.
    """
    asked = terms_of(profile_in(terms), given_costs(terms.costs), terms.basis, _deal_in(terms))
    expected = replace(asked, record=terms.record)
    for field in fields(Terms):
        said, should = getattr(terms, field.name), getattr(expected, field.name)
        if said != should:
            message = f"{field.name} is {said!r}; asked for as it should be, it is {should!r}"
            raise MisuseError(message)
    if terms.record:
        _check_record(terms.record)


def _deal_in(terms: Terms) -> Deal:
    rate = terms.interruptions_per_hour
    for name in ("checkpoint_s", "restart_s"):
        if getattr(terms, name) is None:
            message = f"{name} is None; it should be a whole number, 0 or more"
            raise MisuseError(message)
    return Deal(
        segment=cast("Segment", terms.segment),
        provider=terms.provider,
        at=_day(terms.at),
        spot=terms.spot,
        term_s=terms.term_s,
        interruptions_per_hour=None if rate is None else _decimal("interruptions_per_hour", rate),
        checkpoint_s=terms.checkpoint_s or 0,
        restart_s=terms.restart_s or 0,
        congestion=_decimal("congestion", terms.congestion),
    )


def _check_record(record: Record) -> None:
    counts = record.good_count, record.bad_count, *record.cycles_per_s
    reports = len(set(record.report_digests))
    if min(counts) < 0 or not reports or reports != len(record.report_digests) or len(record.cycles_per_s) > reports:
        message = (
            f"record says {record.good_count} good and {record.bad_count} bad jobs and speeds {record.cycles_per_s} from "
            f"{len(record.report_digests)} reports; it should name each report once, and no count below 0 or more speeds than reports"
        )
        raise MisuseError(message)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as err:
        message = f"at is {text!r}; it should be a day such as 2026-10-31"
        raise MisuseError(message) from err


def _decimal(name: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as err:
        message = f"{name} is {text!r}; it should be a number as text"
        raise MisuseError(message) from err
