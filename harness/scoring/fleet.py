"""What a fleet's reports say of its cards: how each kind does, which cards fall behind their kind, which are ill, and why.

A card is judged against its own kind only: the same model with the same driver and power limit where there are three of them, else the
same model. It falls behind if it is further below the median than 3.5 robust standard deviations and than 3 %. Nothing is averaged over
different benchmarks.

Covers: slow, throttled, failing and lying cards among honest reports. Does not cover: a kind that is slow as a whole, or invented times.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from harness.model import Device, DeviceKind, Failed, Job, Measurement, Outcome, Report
from harness.scoring.capability import counted
from harness.scoring.health import ailments
from harness.units import quantity

__all__ = ["Card", "Fleet", "NodeLine", "Spread", "fleet", "outliers", "sentence"]

_DEVIATIONS = 3.5
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_LEAST_FRACTION = 0.03
_ENOUGH = 3  # of two that differ nobody can say which is off
_TOLD = 3  # examples of one kind of trouble


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How the cards of one kind did in one point, over the fleet or on one node."""

    name: str
    driver: str | None  # None, as the limit, also where cards with several are compared
    power_limit_w: float | None
    node: str | None  # None: over all nodes
    point: str
    unit: str
    card_count: int
    median_value: float
    mad_value: float  # median absolute deviation from it
    outliers: tuple[str, ...]  # UUIDs, either way


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One device of the fleet: what is wrong with it, what may be the cause, and what it was compared with."""

    node: str
    device_uuid: str
    name: str
    kind: DeviceKind
    emulated: bool
    driver: str | None
    power_limit_w: float | None
    measurement_count: int
    ill: tuple[str, ...]  # reasons; none: nothing was found
    causes: tuple[str, ...]  # what may explain them
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLine:
    """The cards of one model on one node."""

    node: str
    name: str
    card_count: int
    ill_count: int
    deviation_fraction: float | None  # the median over points of how far the node's median is above that of its kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What several reports say together."""

    report_digests: tuple[str, ...]
    cards: tuple[Card, ...]
    nodes: tuple[NodeLine, ...]
    spreads: tuple[Spread, ...]
    remarks: tuple[str, ...]


class _Id(NamedTuple):
    """A card on a node: two nodes that claim one card are not made one."""

    node: str
    uuid: str


class _Point(NamedTuple):
    """What has to agree for two values to be compared."""

    told: str
    version: int
    unit: str
    smaller_is_better: bool


_Model = tuple[str, int | None, bool | None, bool]  # name, memory, MIG, emulated
_Bucket = tuple[_Model, str | None, float | None]
_Values = dict[_Point, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """All that the reports hold of one card."""

    id: _Id
    device: Device
    outcomes: tuple[Outcome, ...]
    notes: tuple[tuple[str, str], ...]  # severity, what
    values: _Values

    @property
    def model(self) -> _Model:
        return self.device.name, self.device.memory_bytes, self.device.mig_enabled, self.device.emulated

    @property
    def bucket(self) -> _Bucket:
        return self.model, self.device.driver, self.device.power_limit_w


class _Centre(NamedTuple):
    """The middle of a few values, and how far they stray."""

    median: float
    mad: float
    card_count: int

    def is_far(self, value: float) -> bool:
        """Tell whether a value is an outlier."""
        least = max(_DEVIATIONS * _MAD_TO_SIGMA * self.mad, _LEAST_FRACTION * abs(self.median))
        return self.card_count >= _ENOUGH and abs(value - self.median) > least


def _centre(values: Sequence[float]) -> _Centre:
    centre = median(values)
    return _Centre(centre, median(abs(v - centre) for v in values), len(values))


class _Peers(NamedTuple):
    """Cards that are compared with each other."""

    told: str
    card_count: int
    centres: Mapping[_Point, _Centre]


def outliers(values: Sequence[float]) -> tuple[bool, ...]:
    """Tell of each value whether it is far from the median: by 3.5 robust standard deviations and by 3 %; of less than three, none."""
    return tuple(map(_centre(values).is_far, values)) if values else ()


def fleet(reports: Iterable[Report]) -> Fleet:
    """Judge the cards of several reports against each other; a card measured more than once stands with its medians.

    Raises:
        ForgeryError: a seal does not name each outcome.
    """
    digests: list[str] = []
    parts: dict[_Id, list[_Seen]] = defaultdict(list)
    for report in reports:
        if report.seal.digest in digests:
            continue  # the same file given twice is not two measurements
        digests.append(report.seal.digest)
        for device in report.devices:
            seen = _seen(report, device)
            parts[seen.id].append(seen)
    cards = [_joined(found) for found in parts.values()]
    peers = _peers(cards)
    drivers: dict[_Model, Counter[str | None]] = defaultdict(Counter)
    for card in cards:
        drivers[card.model][card.device.driver] += 1
    judged = tuple(_card(card, peers[card.id], drivers[card.model]) for card in cards)
    return Fleet(
        report_digests=tuple(digests),
        cards=judged,
        nodes=tuple(_nodes(cards, judged)),
        spreads=tuple(_spreads(cards)),
        remarks=tuple(_twice(cards)),
    )


def sentence(card: Card, others: Sequence[Card] = ()) -> str:
    """Return what is wrong with a card in one line; `others` decide how much of its UUID is needed."""
    short = _short(card.device_uuid)
    if any(_short(o.device_uuid) == short and o.device_uuid != card.device_uuid for o in others):
        short = card.device_uuid
    return f"{short} on node {card.node}: {'; '.join((*card.ill, *card.causes))}"


def _short(uuid: str) -> str:
    head, _, tail = uuid.partition("-")
    return f"{head}-…{tail[-6:]}" if len(tail) > 6 else uuid  # noqa: PLR2004 - as many as are kept


# --- what the reports hold ---------------------------------------------------------------------------------------------


def _seen(report: Report, device: Device) -> _Seen:
    outcomes = tuple(o for o in report.outcomes if _job(o).device_uuid == device.uuid)
    notes = [(n.severity, n.what) for p in report.preflight if p.device_uuid == device.uuid for n in p.notes]
    values: dict[_Point, list[float]] = defaultdict(list)
    for m in counted(report, device):
        value = quantity(m.work, m.metric, m.time_s)
        values[_Point(_told(m.job), m.job.version, value.unit, m.metric == "latency")].append(value.value)
    return _Seen(
        id=_Id(report.node.name, device.uuid),
        device=device,
        outcomes=outcomes,
        notes=tuple(notes),
        values={point: median(found) for point, found in values.items()},
    )


def _joined(found: Sequence[_Seen]) -> _Seen:
    """Return one card of several reports: with its newest state, and the median of its values."""
    values: dict[_Point, list[float]] = defaultdict(list)
    for seen in found:
        for point, value in seen.values.items():
            values[point].append(value)
    return _Seen(
        id=found[-1].id,
        device=found[-1].device,
        outcomes=tuple(o for seen in found for o in seen.outcomes),
        notes=tuple(dict.fromkeys(n for seen in found for n in seen.notes)),
        values={point: median(v) for point, v in values.items()},
    )


def _job(outcome: Outcome) -> Job:
    result = outcome.measurement or outcome.skipped or outcome.failed
    assert result is not None  # noqa: S101 - a verified report's outcome holds one
    return result.job


def _told(job: Job) -> str:
    """Name a point as people do."""
    params = dict(sorted(job.params.items()))
    name = f"memory {params.pop('op')}" if job.benchmark == "stream" and "op" in params else job.benchmark
    words = [name, *(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in params.items())]
    return " ".join([*words, *([] if job.regime == "burst" else [job.regime])])


# --- one card against its kind -----------------------------------------------------------------------------------------


def _peers(cards: Sequence[_Seen]) -> dict[_Id, _Peers]:
    """Return for each card those that it is compared with, itself among them."""
    buckets: dict[_Bucket, list[_Seen]] = defaultdict(list)
    models: dict[_Model, list[_Seen]] = defaultdict(list)
    for card in cards:
        buckets[card.bucket].append(card)
        models[card.model].append(card)
    kinds = {bucket: _group("its kind", members) for bucket, members in buckets.items()}
    wider = {model: _group("its model", members) for model, members in models.items()}
    return {
        c.id: k if (k := kinds[c.bucket]).card_count >= _ENOUGH else max(k, wider[c.model], key=_size) for c in cards
    }


def _size(peers: _Peers) -> int:
    return peers.card_count


def _group(told: str, members: Sequence[_Seen]) -> _Peers:
    values: dict[_Point, list[float]] = defaultdict(list)
    for card in members:
        for point, value in card.values.items():
            values[point].append(value)
    return _Peers(told, len(members), {point: _centre(found) for point, found in values.items()})


def _card(card: _Seen, peers: _Peers, drivers: Counter[str | None]) -> Card:
    slow, fast = _deviations(card, peers)
    ill = (*_health(card), *_results(card), *slow)
    return Card(
        node=card.id.node,
        device_uuid=card.id.uuid,
        name=card.device.name,
        kind=card.device.kind,
        emulated=card.device.emulated,
        driver=card.device.driver,
        power_limit_w=card.device.power_limit_w,
        measurement_count=sum(o.measurement is not None for o in card.outcomes),
        ill=ill,
        causes=tuple(_causes(card, drivers, ill)) if ill else (),
        remarks=(*_company(card, peers), *fast, *_tries(card)),
    )


def _deviations(card: _Seen, peers: _Peers) -> tuple[list[str], list[str]]:
    """Return the points in which a card is far below its peers, the farthest first, and far above."""
    slow: list[tuple[float, str]] = []
    fast: list[tuple[float, str]] = []
    for point, value in card.values.items():
        centre = peers.centres[point]
        if not centre.median or not centre.is_far(value):
            continue
        change = value / centre.median - 1
        word = "over" if change > 0 else "under"
        told = f"{point.told} {abs(change):.0%} {word} the median of {peers.told} ({centre.card_count} cards)"
        (slow if (change > 0) == point.smaller_is_better else fast).append((abs(change), told))
    return [t for _, t in sorted(slow, reverse=True)], [t for _, t in sorted(fast, reverse=True)]


def _company(card: _Seen, peers: _Peers) -> Iterator[str]:
    match peers.card_count:
        case 1:
            yield f"the only {card.device.name}: nothing to compare it with"
        case 2:
            yield f"one of two {card.device.name}: where they differ, nobody can say which is off"
        case _ if not card.values:
            yield "no result that counts: nothing to compare it by"


def _health(card: _Seen) -> Iterator[str]:
    samples = (s for o in card.outcomes if o.measurement for s in o.measurement.telemetry)
    return ailments(card.device, samples, card.notes)


def _results(card: _Seen) -> Iterator[str]:
    """Yield what went wrong in its jobs: wrong answers first, for those a customer would have paid for."""
    failed = [o.failed for o in card.outcomes if o.failed]
    wrong = [f for f in failed if f.outcome == "wrong_answer"]
    if wrong:
        yield f"{_count(len(wrong), 'wrong answer')} ({_examples(wrong)})"
    others = [f for f in failed if f.outcome != "wrong_answer"]
    if others:
        ends = ", ".join(f"{n} {how.replace('_', ' ')}" for how, n in Counter(f.outcome for f in others).most_common())
        yield f"{len(others)} of {len(card.outcomes)} jobs failed: {ends} ({_examples(others)})"
    measured = [o.measurement for o in card.outcomes if o.measurement]
    throttled = [m for m in measured if m.state == "throttled"]
    if throttled:
        yield f"throttled in {len(throttled)} of {_count(len(measured), 'measurement')} ({throttled[0].reason})"
    invalid = [m for m in measured if m.state == "invalid"]
    if invalid:
        yield f"{_count(len(invalid), 'result')} that cannot be true ({_examples(invalid)}: {invalid[0].reason})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _examples(results: Sequence[Failed | Measurement]) -> str:
    told = list(dict.fromkeys(_told(r.job) for r in results))
    return ", ".join([*told[:_TOLD], *(["..."] if len(told) > _TOLD else [])])


def _causes(card: _Seen, drivers: Counter[str | None], ill: Sequence[str]) -> Iterator[str]:
    """Yield what may explain that a card is ill."""
    limit_w, default_w = card.device.power_limit_w, card.device.power_default_limit_w
    lowered = limit_w is not None and default_w is not None and limit_w < default_w
    if lowered:
        yield f"power limit {limit_w:.0f} of {default_w:.0f} W"
    usual, number = drivers.most_common(1)[0]
    if card.device.driver != usual and number * 2 > drivers.total():
        yield f"driver {card.device.driver or 'unknown'}, where {number} of {drivers.total()} have {usual or 'unknown'}"
    for severity, what in card.notes:
        if severity == "tag" and what not in ill and not (lowered and what.startswith("power limit ")):
            yield what


def _tries(card: _Seen) -> Iterator[str]:
    ends = Counter(a.ended for o in card.outcomes for a in o.attempts)
    if ends:
        told = ", ".join(f"{n} {how.replace('_', ' ')}" for how, n in ends.most_common())
        yield f"{ends.total()} of its tries came to nothing: {told}"


# --- the fleet ---------------------------------------------------------------------------------------------------------


def _spreads(cards: Sequence[_Seen]) -> Iterator[Spread]:
    """Yield each point of each kind over the fleet, and then of each kind on each node."""
    groups: dict[tuple[_Bucket, str | None], list[_Seen]] = defaultdict(list)
    for card in cards:
        groups[card.bucket, None].append(card)
    for card in cards:
        groups[card.bucket, card.id.node].append(card)
    for (bucket, node), members in groups.items():
        for point in dict.fromkeys(p for card in members for p in card.values):
            yield _spread(bucket, node, point, [c for c in members if point in c.values])


def _spread(bucket: _Bucket, node: str | None, point: _Point, members: Sequence[_Seen]) -> Spread:
    model, driver, limit_w = bucket
    values = [card.values[point] for card in members]
    centre = _centre(values)
    return Spread(
        name=model[0],
        driver=driver,
        power_limit_w=limit_w,
        node=node,
        point=point.told,
        unit=point.unit,
        card_count=centre.card_count,
        median_value=centre.median,
        mad_value=centre.mad,
        outliers=tuple(card.id.uuid for card, value in zip(members, values, strict=True) if centre.is_far(value)),
    )


def _nodes(cards: Sequence[_Seen], judged: Sequence[Card]) -> Iterator[NodeLine]:
    groups: dict[tuple[str, _Model], list[tuple[_Seen, Card]]] = defaultdict(list)
    for card, verdict in zip(cards, judged, strict=True):
        groups[card.id.node, card.model].append((card, verdict))
    for (node, model), members in groups.items():
        own, fleetwide = [c for c, _ in members], [c for c in cards if c.model == model]
        yield NodeLine(
            node=node,
            name=model[0],
            card_count=len(members),
            ill_count=sum(bool(verdict.ill) for _, verdict in members),
            deviation_fraction=None if len(own) == len(fleetwide) else _deviation(_medians(own), _medians(fleetwide)),
        )


def _medians(cards: Sequence[_Seen]) -> _Values:
    points = dict.fromkeys(p for card in cards for p in card.values)
    return {p: median(card.values[p] for card in cards if p in card.values) for p in points}


def _deviation(own: Mapping[_Point, float], kind: Mapping[_Point, float]) -> float | None:
    """Return the median over points of how much better (+) or worse the one is; points whose median is 0 tell nothing."""
    changes = [(own[p] / kind[p] - 1) * (-1 if p.smaller_is_better else 1) for p in own if kind[p]]
    return median(changes) if changes else None


def _twice(cards: Sequence[_Seen]) -> Iterator[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for card in cards:
        if card.device.kind == "cuda":
            places[card.id.uuid].append(card.id.node)
    for uuid, nodes in places.items():
        if len(nodes) > 1:
            yield f"{uuid} is in the reports of several nodes ({', '.join(nodes)}): it was moved, or somebody reports it twice"
