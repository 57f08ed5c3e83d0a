"""Many reports together: how each model spreads, which cards stand out, and which nodes to look at first.

Everything is summed up here, so that what is drawn grows with the number of models and of sick cards, not with that of reports.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import NamedTuple

from harness.measure.compare import compare, remarks
from harness.model import Capability, Quote, Report
from harness.render.report.views import Fact, FleetCard, FleetKind, FleetNode, FleetView, Spot, Tone
from harness.render.report.words import money, percent, shown, tame, work_name
from harness.scoring.fleet import Card, Fleet, outliers

__all__ = ["Member", "deviations", "fleet_view"]

_BESIDE_MOST = 8  # cards that fit beside each other in a table
_SPOTS_MOST = 40  # outliers of one kind that are drawn
_KINDS_MOST = 60
_ILL_MOST = 60
_NODES_MOST = 20
_REMARKS_MOST = 12
_PAIR = 2
_ENOUGH = 3


class Member(NamedTuple):
    """A device of the fleet, by what it was seen to do."""

    node: str
    selector: str
    seen: Capability
    quote: Quote | None = None  # where there are few enough to show it


def fleet_view(reports: Sequence[Report], judged: Fleet, members: Sequence[Member]) -> FleetView:
    """Sum up several reports."""
    ill = [card for card in judged.cards if card.ill]
    pair = reports if len(reports) == _PAIR else ()
    kinds = _kinds(members)
    return FleetView(
        report_count=len(judged.report_digests),
        card_count=len(judged.cards),
        ill_count=len(ill),
        emulated_count=sum(card.emulated for card in judged.cards),
        headline=_headline(judged.cards, ill),
        tone=_tone(judged.cards, ill),
        models=tuple(Fact(tame(n, 80), str(c)) for n, c in Counter(card.name for card in judged.cards).most_common()),
        kinds=tuple(kinds[:_KINDS_MOST]),
        ill=tuple(map(_ill, ill[:_ILL_MOST])),
        nodes=tuple(_nodes(judged)[:_NODES_MOST]),
        node_count=len({card.node for card in judged.cards}),
        remarks=tuple(map(tame, judged.remarks[:_REMARKS_MOST])),
        side_by_side=tuple(_beside(members)) if len(members) <= _BESIDE_MOST else (),
        comparisons=compare(*pair) if pair else (),
        comparison_remarks=tuple(map(tame, remarks(*pair))) if pair else (),
    )


def _headline(cards: Sequence[Card], ill: Sequence[Card]) -> str:
    nodes = len({card.node for card in cards})
    where = f"{_count(len(cards), 'device')} on {_count(nodes, 'node')}"
    if not ill:
        return f"{where}: nothing stands out"
    sick = len({card.node for card in ill})
    return f"{where}: {_count(len(ill), 'device')} on {_count(sick, 'node')} to look at"


def _tone(cards: Sequence[Card], ill: Sequence[Card]) -> Tone:
    if ill:
        return "bad"
    return "plain" if all(card.emulated for card in cards) else "good"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _ill(card: Card) -> FleetCard:
    return FleetCard(
        node=tame(card.node, 60),
        name=tame(card.name, 80),
        card=tame(card.device_uuid, 60),
        ill=tuple(map(tame, card.ill)),
        causes=tuple(map(tame, card.causes)),
    )


def _nodes(judged: Fleet) -> list[FleetNode]:
    """Return the nodes to look at first: those with most sick cards, then those furthest below their kind."""
    lines = sorted(judged.nodes, key=lambda n: (-n.ill_count, n.deviation_fraction or 0.0, n.node))
    return [
        FleetNode(
            node=tame(n.node, 60),
            name=tame(n.name, 80),
            card_count=n.card_count,
            ill_count=n.ill_count,
            deviation_fraction=n.deviation_fraction,
        )
        for n in lines
    ]


# --- how a model spreads -----------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """What may be compared: one model, one class of work at one point, emulated or not."""

    name: str
    work: str
    point: str
    unit: str
    emulated: bool


_Values = list[tuple[Member, float]]


def _by_kind(members: Sequence[Member]) -> Mapping[_Kind, _Values]:
    found: dict[_Kind, _Values] = defaultdict(list)
    for member in members:
        seen = member.seen
        for rate in seen.rates:
            kind = _Kind(seen.device_name, rate.work_class, rate.point, rate.unit, seen.emulated)
            found[kind].append((member, rate.low_per_s))
    return found


def deviations(members: Sequence[Member]) -> dict[tuple[str, str], tuple[int, float | None]]:
    """Return for each report and device how many of its model there are, and how far it is above their medians, over its classes of work."""
    changes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for values in _by_kind(members).values():
        centre = median(v for _, v in values)
        for member, value in values:
            if len(values) >= _ENOUGH and centre:
                changes[_key(member)].append(value / centre - 1)
    counts = Counter((m.seen.device_name, m.seen.emulated) for m in members)
    return {
        _key(m): (counts[m.seen.device_name, m.seen.emulated], median(c) if (c := changes[_key(m)]) else None)
        for m in members
    }


def _key(member: Member) -> tuple[str, str]:
    return member.seen.report_digest, member.seen.device_uuid


def _kinds(members: Sequence[Member]) -> list[FleetKind]:
    """Return each kind with enough cards to have a spread, those with most cards first."""
    found = [_kind(kind, values) for kind, values in _by_kind(members).items() if len(values) >= _ENOUGH]
    return sorted(found, key=lambda k: (-k.outlier_count, -k.card_count, k.name, k.work))


def _kind(kind: _Kind, values: _Values) -> FleetKind:
    rates = [v for _, v in values]
    centre = median(rates)
    first, _, third = (q / centre - 1 for q in quantiles(rates, n=4, method="inclusive"))
    marks = outliers(rates)
    far = [(m, v / centre - 1) for (m, v), mark in zip(values, marks, strict=True) if mark]
    kept = [v / centre - 1 for v, mark in zip(rates, marks, strict=True) if not mark]
    far.sort(key=lambda one: one[1])
    return FleetKind(
        name=tame(kind.name, 60),
        work=f"{work_name(kind.work)}{' (emulated)' if kind.emulated else ''}",
        unit=tame(kind.unit, 40),
        card_count=len(rates),
        median_value=centre,
        low_fraction=min(kept),
        first_fraction=first,
        third_fraction=third,
        high_fraction=max(kept),
        outliers=tuple(Spot(tame(m.node, 60), tame(m.seen.device_uuid, 60), d) for m, d in far[:_SPOTS_MOST]),
        outlier_count=len(far),
    )


def _beside(members: Sequence[Member]) -> Iterator[tuple[str, ...]]:
    """Yield a table of a few devices beside each other: a line for each class of work, each value with its share of the best."""
    if len(members) < _PAIR:
        return
    yield ("class of work", *(f"{tame(m.node, 40)} {tame(m.selector, 20)}" for m in members))
    if any(m.quote for m in members):
        yield ("an hour of it", *(_price(m.quote) for m in members))
    rates = [{r.work_class: r for r in m.seen.rates} for m in members]
    for work in sorted({w for found in rates for w in found}):
        best = max(found[work].low_per_s for found in rates if work in found)
        cells = [
            _share(found[work].low_per_s, best, found[work].unit) if work in found else "no result that counts"
            for found in rates
        ]
        yield (work_name(work), *cells)


def _price(quote: Quote | None) -> str:
    return "no price" if quote is None or quote.price_usd_per_hour is None else money(quote.price_usd_per_hour)


def _share(value: float, best: float, unit: str) -> str:
    return f"{shown(value, unit)} ({percent(value / best)})" if best else shown(value, unit)
