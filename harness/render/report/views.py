"""What a report shows, as plain records: made from reports by pure functions, drawn by others. A missing value is `None`."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

from harness.measure.compare import Comparison

__all__ = [
    "Band",
    "Bill",
    "BillLine",
    "DeviceView",
    "EnergyRow",
    "Fact",
    "Finding",
    "FleetCard",
    "FleetKind",
    "FleetNode",
    "FleetView",
    "Lane",
    "NodeView",
    "Page",
    "Peak",
    "Peer",
    "ProofView",
    "ResultRow",
    "Roof",
    "RoofPoint",
    "RoundDot",
    "RoundsRow",
    "Sample",
    "SealView",
    "Spot",
    "Stair",
    "Stairs",
    "Standing",
    "Tone",
    "Trace",
    "VerdictView",
]

Tone = Literal["good", "fair", "bad", "plain"]


class Fact(NamedTuple):
    """A name and what is known under it."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a reader should know, in a few words for the headline and in a sentence."""

    tone: Tone
    short: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictView:
    """What came of a device, in plain words."""

    tone: Tone
    word: str  # Healthy, Ill, ...
    headline: str  # the word, and the findings that matter most
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One job's end as a line of a table; texts are ready to be read, empty where there is nothing."""

    benchmark: str
    params: str
    value: str
    interval: str
    noise: str
    clock: str
    reached: str
    energy: str
    state: str
    tone: Tone
    reason: str


class RoundDot(NamedTuple):
    """One round against the mean of its measurement: +0.02 took 2 % longer."""

    deviation_fraction: float
    discarded: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsRow:
    """How steady a measurement was: its rounds, and the interval that follows from them, relative to its time."""

    label: str
    state: str
    tone: Tone
    low_fraction: float
    high_fraction: float
    rounds: tuple[RoundDot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most that a device did in one kind of arithmetic in this session."""

    dtype: str
    flops_per_s: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoofPoint:
    """A kernel under the roof."""

    number: int
    label: str
    dtype: str
    flops_per_byte: float
    flops_per_s: float
    limit: str  # memory, arithmetic, or that a cache serves it
    reached_fraction: float | None  # of what the roof allows; None where the roof is not its own
    counting: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """The roofline of one device by its own measurements."""

    bytes_per_s: float | None
    bandwidth_source: str
    peaks: tuple[Peak, ...]
    points: tuple[RoofPoint, ...]
    left_out: tuple[str, ...]  # kernels without a place on it, each with the reason


class Stair(NamedTuple):
    """Latency at one working set."""

    size_bytes: int
    latency_s: float
    low_s: float
    high_s: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stairs:
    """The latency staircase, and the caches that its steps should fall on."""

    steps: tuple[Stair, ...]
    caches: tuple[tuple[str, int], ...]  # name, bytes


class Sample(NamedTuple):
    """What the sensors said at a moment of the session."""

    at_s: float
    power_w: float | None
    clock_mhz: float | None
    temperature_c: float | None


class Band(NamedTuple):
    """A time in which the hardware held itself back, and why."""

    start_s: float
    end_s: float
    reasons: str
    tone: Tone


class Lane(NamedTuple):
    """When a measurement was going on, and its rounds."""

    label: str
    start_s: float
    end_s: float
    rounds_s: tuple[float, ...]
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Telemetry over the session of one device, beside what ran."""

    end_s: float
    samples: tuple[Sample, ...]
    sample_count: int  # before they were thinned out
    bands: tuple[Band, ...]
    lanes: tuple[Lane, ...]
    power_limit_w: float | None
    missing: tuple[str, ...]  # what no sensor told, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRow:
    """What a unit of work cost in energy."""

    label: str
    gross: str
    net: str
    mean_power_w: float
    source: str
    disputed: str


class Peer(NamedTuple):
    """A card's score from published results."""

    name: str
    cu_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A device's score on one workload, among those of other cards by what was published of them."""

    profile: str
    unit: str
    cu_per_hour: float | None
    high_cu_per_hour: float | None
    missing: str  # why there is no score
    peers: tuple[Peer, ...]
    own_kind: float | None  # the score that published results of this model come to
    said: str


class BillLine(NamedTuple):
    """A line of a price, and where its bar begins and ends."""

    name: str
    usd_per_hour: Decimal
    start_usd_per_hour: Decimal
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A quote taken apart."""

    method: str
    price_usd_per_hour: Decimal | None
    low_usd_per_hour: Decimal | None
    high_usd_per_hour: Decimal | None
    floor_usd_per_hour: Decimal | None
    sustainable_usd_per_hour: Decimal | None
    lines: tuple[BillLine, ...]
    reasons: tuple[str, ...]
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """All that is shown of one device."""

    anchor: str  # an id for links, of our own making
    title: str
    name: str
    selector: str
    emulated: bool
    facts: tuple[Fact, ...]
    sensors: tuple[str, ...]  # what cannot be read, and why
    verdict: VerdictView
    standings: tuple[Standing, ...]
    results: tuple[ResultRow, ...]
    rounds: tuple[RoundsRow, ...]
    roof: Roof
    stairs: Stairs
    trace: Trace
    energy: tuple[EnergyRow, ...]
    no_energy: str
    bill: Bill | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SealView:
    """Whether a report is whole, and who vouches for it."""

    tone: Tone
    headline: str
    proven: tuple[str, ...]
    not_proven: tuple[str, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofView:
    """What a transcript of a challenge establishes for a device."""

    device: str
    tone: Tone
    headline: str
    proven: tuple[str, ...]
    not_proven: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One report."""

    node: str
    created_at: str
    emulated: bool
    facts: tuple[Fact, ...]
    seal: SealView
    proofs: tuple[ProofView, ...]
    devices: tuple[DeviceView, ...]


class Spot(NamedTuple):
    """A card that is far from its kind."""

    node: str
    card: str
    deviation_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetKind:
    """How the cards of one model spread in one kind of work."""

    name: str
    work: str
    unit: str
    card_count: int
    median_value: float
    low_fraction: float  # of the spread, against the median
    first_fraction: float  # quartile
    third_fraction: float
    high_fraction: float
    outliers: tuple[Spot, ...]
    outlier_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetNode:
    """A node to look at, or not."""

    node: str
    name: str
    card_count: int
    ill_count: int
    deviation_fraction: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetCard:
    """A card to look at."""

    node: str
    name: str
    card: str
    ill: tuple[str, ...]
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """Many reports together."""

    report_count: int
    card_count: int
    ill_count: int
    emulated_count: int
    headline: str
    tone: Tone
    models: tuple[Fact, ...]  # each with how many there are
    kinds: tuple[FleetKind, ...]
    ill: tuple[FleetCard, ...]
    nodes: tuple[FleetNode, ...]
    node_count: int
    remarks: tuple[str, ...]
    side_by_side: tuple[
        tuple[str, ...], ...
    ]  # a table: its first row is the head; empty where there are too many cards
    comparisons: tuple[Comparison, ...]
    comparison_remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All of it."""

    title: str
    made_by: str
    nodes: tuple[NodeView, ...]  # none where there are too many for details
    fleet: FleetView | None
