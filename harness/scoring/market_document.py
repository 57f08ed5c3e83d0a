"""The market model as it is written: records of plain numbers, and what a sound one must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["SCHEMA", "Axis", "Card", "Curve", "Document", "Drift", "Segment", "Seller", "Widths", "flaws"]

Segment = Literal["hyperscaler", "neocloud", "marketplace"]

SCHEMA = "harness.market-model/2"
_FARTHEST_WIDTHS = 300  # of a knot from the middle: beyond it the exponential of a step cannot be written down


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One rate: where it is centred, how it is scaled, and between what its cards lay, all in logarithms."""

    centre: float
    scale: float
    low: float
    high: float
    reach_fraction: float  # of a sheet's rate, what a sound card is measured to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A rising curve over a weighted sum of rates: a straight line, or a logistic step at `knot`."""

    on: Mapping[str, float]
    weight: float
    knot: float | None = None
    segment: Segment | None = None  # None: for all kinds of seller


@dataclass(frozen=True, slots=True, kw_only=True)
class Seller:
    """A seller's level against others of its kind, and how it differed in earlier eras."""

    segment: Segment
    effect: float
    cell_count: int
    eras: Mapping[str, float]
    classes: Mapping[str, float]  # by class of card, beside its level


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a name is paid beyond its rates."""

    effect: float
    cell_count: int
    eras: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The change of log prices for each month before the model's date."""

    all: float
    segments: Mapping[str, float]
    classes: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Half-widths of the interval in logarithms, by what was never seen; from prices that were left out of the fit."""

    confidence_fraction: float
    known: float
    unseen_card: float
    unseen_seller: float
    unseen_both: float
    unseen_architecture: float
    drift_per_sqrt_month: float  # standard deviation of the market's own movement


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The model as it is written."""

    schema: str
    as_of: str
    cells_digest: str
    cards_digest: str
    cell_count: int
    base: float
    axes: Mapping[str, Axis]
    curve_width: float
    curves: tuple[Curve, ...]
    launch_per_year: float
    launch_centre_year: float
    launch_newest_year: float
    classes: Mapping[str, float]
    segments: Mapping[str, float]
    segment_classes: Mapping[str, Mapping[str, float]]
    segment_class_counts: Mapping[str, Mapping[str, int]]  # cells; a pair that is not there was never priced
    drift: Drift
    eras_months: Mapping[str, float]  # where an era begins, in months before the model's date
    sellers: Mapping[str, Seller]
    cards: Mapping[str, Card]
    widths: Widths


def flaws(d: Document) -> Iterator[str]:
    """Yield what would break the promise that a better rate is never cheaper, or make an estimate no number."""
    if d.schema != SCHEMA:
        yield f"its schema is {d.schema!r}, not {SCHEMA!r}"
    if not d.curve_width > 0:
        yield f"curve_width is {d.curve_width!r}, and must be above 0"
    for name, axis in d.axes.items():
        if not (axis.scale > 0 and axis.reach_fraction > 0 and axis.low <= axis.high):
            yield f"the axis of {name} has a scale or a reach that is not above 0, or no range"
    for number, curve in enumerate(d.curves):
        if not (curve.weight >= 0 and all(share >= 0 for share in curve.on.values())):
            yield f"curve {number} falls: a better rate would be cheaper"
        if curve.knot is not None and not abs(curve.knot) <= _FARTHEST_WIDTHS * d.curve_width:
            yield f"the knot of curve {number} is {curve.knot!r}, more than {_FARTHEST_WIDTHS} times the width of a curve from the middle"
        if not set(curve.on) <= set(d.axes):
            yield f"curve {number} is over {sorted(curve.on)}, and there are axes for {sorted(d.axes)} only"
