"""What the market asks for an hour of a card, from its rates: monotone curves on log rates, shrunk effects, an interval.

    log price = base + curves(rates; all sellers) + curves(rates; this kind of seller) + launch + class + kind of seller
              + this seller's effect, for all and by class + this name's effect + months before the model's date x drift

Covers: a better rate is never cheaper, all else equal: each curve rises or is flat, its weight is not negative, and reading the model
refuses any other. A name's premium is lost by a card that does less than its sheet, so that a name cannot carry a slow card. An
estimate says what it rests on, or is withheld with a reason. Same model and features, same estimate, in plain Python.
Does not cover: truth. Asks are what sellers hope for, and they move by 20 to 50 % in a year: hence the interval, and its growth with age.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from harness import strangers
from harness.codec import digest
from harness.errors import MisuseError
from harness.scoring.anchor import IndexPrint, objection
from harness.scoring.market_curves import Curves
from harness.scoring.market_document import Card, Document, Segment, Seller, flaws
from harness.scoring.sheets import Sheet, find_sheet, sheet_of
from harness.scoring.tables import table

__all__ = ["Basis", "CardClass", "Contribution", "Estimate", "Features", "MarketModel", "Segment"]

CardClass = Literal["datacenter", "workstation", "consumer"]
# This node's own rates; the sheet of a name that has prices; the sheet of a name that nobody has priced.
Basis = Literal["measured", "spec", "unmeasured"]

_SEGMENTS = ("hyperscaler", "neocloud", "marketplace")
_DAYS_A_MONTH = 365.25 / 12
_Z80 = 1.2815515655446004  # half of an 80 % interval, in standard deviations
_BEYOND, _TOO_FAR = (
    math.log(1.25),
    math.log(3),
)  # outside what was priced: told and widened from the one, withheld from the other
_OUTSIDE = 0.5  # an elasticity that nobody knows out there lies within this of the one assumed
_NEVER_SOLD = 0.25  # kinds of seller differ by class of card by about as much
_SLACK, _FADE = (
    math.log(0.8),
    math.log(0.5),
)  # a premium begins to fade at 80 % of the sheet's rate, and is gone at 40 %
_OLDEST_MONTHS, _NEWEST_MONTHS = 15.0, 18.0
_WIDEST = math.log(3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a card is: the rates of a sheet (dense, float32 sums), or a node's own measured ones where `measured` names them."""

    fp16_flops_per_s: float
    fp32_flops_per_s: float
    memory_bytes_per_s: float
    memory_bytes: float
    fp64_flops_per_s: float | None = None
    tdp_w: float | None = None
    launched_year: float | None = None  # 2022.8
    card_class: CardClass | None = None
    measured: frozenset[str] = frozenset()  # names of the fields above that were measured on the node itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One factor of an estimate: it multiplies the price by e to this power."""

    name: str
    log_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The market's price of one GPU-hour, as a natural logarithm of USD, with the ends of its interval, in logarithms too."""

    log_price: float | None  # None where it is withheld
    low: float | None
    high: float | None
    contributions: tuple[Contribution, ...]  # sum to log_price; those of rates are exact Shapley values
    basis: Basis
    reasons: tuple[str, ...]
    withheld: bool
    confidence_fraction: float
    as_of: str  # the date of the model's newest prices
    model_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketModel:
    """A fitted model: plain numbers, named by their digest."""

    digest: str
    document: Document
    _sellers: Mapping[str, Seller] = field(repr=False)
    _curves: Mapping[str, Curves] = field(repr=False, compare=False)  # by kind of seller

    @classmethod
    def load(cls) -> MarketModel:
        """Return the model that is shipped."""
        return _shipped()

    @classmethod
    def read(cls, path: str | Path) -> MarketModel:
        """Read a model from a file that `harness market fit` wrote.

        Raises:
            MisuseError: there is no such file, or it holds no sound model.
        """
        try:
            document = strangers.loads(Path(path).read_bytes())
        except (OSError, ValueError) as err:
            msg = f"cannot read a market model from {str(path)!r}: {err}"
            raise MisuseError(msg) from err
        return cls.from_json(document)

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> MarketModel:
        """Read a model from parsed JSON.

        Raises:
            MisuseError: it is not a market model, or a better rate could be cheaper by it.
        """
        try:
            read = msgspec.convert(document, Document)
        except msgspec.ValidationError as err:
            msg = f"not a market model: {err}"
            raise MisuseError(msg) from err
        for flaw in flaws(read):
            msg = f"not a sound market model: {flaw}"
            raise MisuseError(msg)
        sellers = {_plain(name): seller for name, seller in read.sellers.items()}
        curves = {segment: Curves(read, segment) for segment in _SEGMENTS}
        return cls(digest=digest(document), document=read, _sellers=sellers, _curves=curves)

    def features_of(self, gpu_name: str, memory_bytes: int | None = None) -> Features | None:
        """Return the sheet of a card by its key (`RTX-4090`) or its name in NVML; None where there is none."""
        sheet = find_sheet(gpu_name, memory_bytes)
        return _features(sheet) if sheet else None

    def estimate(  # noqa: PLR0913 - each is a fact of its own, and but one may be left out
        self,
        features: Features,
        *,
        segment: Segment = "neocloud",
        provider: str | None = None,
        gpu_name: str | None = None,
        at: date | None = None,
        index: Sequence[IndexPrint] = (),
    ) -> Estimate:
        """Estimate the market's price of one hour of one such card.

        Args:
            features: its rates.
            segment: what kind of seller asks; a known provider's own kind goes before it.
            provider: a seller's key; one that is known brings its own level.
            gpu_name: the card's key or its name in NVML; a known one brings what its name is paid beyond its rates.
            at: the day to estimate for; the model's own date where it is left out.
            index: fresh prints of an index by class of card; one that passes the gates moves the price and resets its age.

        Raises:
            MisuseError: a rate is no positive number, or there is no such kind of seller.
        """
        return _Case(
            self, features, segment, provider, gpu_name, at or date.fromisoformat(self.document.as_of)
        ).estimate(index)


class _Case:
    """One question put to a model, with all that is looked up for it."""

    def __init__(  # noqa: PLR0913 - as `estimate`
        self,
        model: MarketModel,
        features: Features,
        segment: Segment,
        provider: str | None,
        gpu_name: str | None,
        at: date,
    ) -> None:
        _check(features, segment)
        self.model, self.document, self.features, self.at = model, model.document, features, at
        self.seller = model._sellers.get(_plain(provider)) if provider else None  # noqa: SLF001 - its own class's file
        self.segment = self.seller.segment if self.seller else segment
        self.sheet = sheet_of(gpu_name, features.memory_bytes) if gpu_name else None
        self.card = self.document.cards.get(self.sheet.key) if self.sheet else None
        self.priced = self.card is not None and self.card.cell_count > 0
        self.logs = {name: self._log_rate(name) for name in self.document.axes}
        self.outside = {name: self._outside(name) for name in self.document.axes}
        self.age_months = (at - date.fromisoformat(self.document.as_of)).days / _DAYS_A_MONTH
        self.reasons: list[str] = []
        if self.seller and self.segment != segment:
            self.reasons.append(f"{provider} is a {self.segment}, and is priced as one")
        if provider and not self.seller:
            self.reasons.append(f"no price of a seller {provider!r} is known: it is priced as any {segment}")

    def estimate(self, index: Sequence[IndexPrint]) -> Estimate:
        refusals = [*self._range_refusals(), *self._age_refusals()]
        anchor = self._anchor(index)
        half = self._half_width(anchor)
        if half > _WIDEST:
            refusals.append(
                f"four of five such prices lie within a factor of {math.exp(half):.1f} only: that is no price"
            )
        if refusals:
            return self._answer(None, half, (), (*refusals, *self.reasons))
        parts = tuple(Contribution(name=name, log_factor=value) for name, value in self._parts(anchor))
        return self._answer(math.fsum(part.log_factor for part in parts), half, parts, tuple(self.reasons))

    def _answer(
        self, log_price: float | None, half: float, parts: tuple[Contribution, ...], reasons: tuple[str, ...]
    ) -> Estimate:
        return Estimate(
            log_price=log_price,
            low=None if log_price is None else log_price - half,
            high=None if log_price is None else log_price + half,
            contributions=parts,
            basis="measured" if self.features.measured else "spec" if self.priced else "unmeasured",
            reasons=reasons,
            withheld=log_price is None,
            confidence_fraction=self.document.widths.confidence_fraction,
            as_of=self.document.as_of,
            model_digest=self.model.digest,
        )

    def _parts(self, anchor: IndexPrint | None) -> Iterator[tuple[str, float]]:
        d, card_class = self.document, self.features.card_class
        curves = self.model._curves[self.segment]  # noqa: SLF001 - its own class's file
        yield "base", d.base + curves.base
        yield from curves.parts(
            {name: (self.logs[name] - axis.centre) / axis.scale for name, axis in d.axes.items()}
        ).items()
        year = self.features.launched_year
        yield "launched", d.launch_per_year * ((d.launch_centre_year if year is None else year) - d.launch_centre_year)
        yield "class", _of(d.classes, card_class) + _of(d.segment_classes.get(self.segment, {}), card_class)
        yield "segment", d.segments.get(self.segment, 0.0)
        era = self._era()
        if self.seller:
            own = self.seller.classes.get(card_class or "", 0.0)
            yield "seller", self.seller.effect + self.seller.eras.get(era, 0.0) + own
        if self.card:
            yield "name", self._name_effect(self.card, era)
        if self.age_months < 0:
            slope = d.drift.all + d.drift.segments.get(self.segment, 0.0) + _of(d.drift.classes, card_class)
            yield "date", slope * -self.age_months
        if anchor:
            yield "index", anchor.log_ratio

    def _name_effect(self, card: Card, era: str) -> float:
        """Return a name's effect; of a premium only what its rates deserve, and a discount always: so a better rate is never cheaper."""
        effect = card.effect + card.eras.get(era, 0.0)
        return effect * self._deserved() if effect > 0 else effect

    def _deserved(self) -> float:
        """Return the share of its name's premium that a card keeps: 1 down to 80 % of its sheet's rates, 0 from 40 %."""
        if self.sheet is None:
            return 0.0
        sheet = self.sheet
        least = min(log - math.log(getattr(sheet, name)) for name, log in self.logs.items())
        return min(1.0, max(0.0, 1 - (least - _SLACK) / _FADE))

    def _log_rate(self, name: str) -> float:
        """Return the logarithm of a rate as a sheet would state it: a measured one, over what sound cards reach of theirs."""
        value = math.log(getattr(self.features, name))
        return value - math.log(self.document.axes[name].reach_fraction) if name in self.features.measured else value

    def _era(self) -> str:
        """Return the era that a day before the model's date lies in; the current one has no name."""
        begun = [name for name, months in self.document.eras_months.items() if -self.age_months > months]
        return max(begun, key=lambda name: self.document.eras_months[name], default="")

    def _anchor(self, index: Sequence[IndexPrint]) -> IndexPrint | None:
        """Return the newest print of the card's class that may be used; say why where one may not."""
        usable = []
        for print_ in index:
            if (
                print_.card_class != self.features.card_class
                or not self.document.as_of <= print_.date <= self.at.isoformat()
            ):
                continue
            if why := objection(print_):
                self.reasons.append(f"the index of {print_.card_class} cards of {print_.date} is not used: {why}")
            else:
                usable.append(print_)
        return max(usable, key=lambda p: p.date, default=None)

    def _half_width(self, anchor: IndexPrint | None) -> float:
        w = self.document.widths
        known = {(True, True): w.known, (False, True): w.unseen_card, (True, False): w.unseen_seller}
        half = known.get((self.priced, self.seller is not None), w.unseen_both)
        if not self.priced and self._is_new_architecture():
            half = max(half, math.hypot(half, w.unseen_architecture) if self.seller is None else w.unseen_architecture)
            self.reasons.append(
                "newer than any card that was priced: the interval is that of an architecture never seen"
            )
        half = math.hypot(half, _OUTSIDE * max(0.0, *self.outside.values()))
        card_class = self.features.card_class
        if card_class and card_class not in self.document.segment_class_counts.get(self.segment, {}):
            half = math.hypot(half, _NEVER_SOLD)
            self.reasons.append(f"no {self.segment} was seen to offer a {card_class} card: the interval is wider")
        newest = date.fromisoformat(anchor.date if anchor else self.document.as_of)
        months = abs((self.at - newest).days) / _DAYS_A_MONTH
        if self.at > newest and months > 1:
            age = f"{months:.0f} months" if months >= 1.5 else "a month"  # noqa: PLR2004 - rounds to 2
            self.reasons.append(f"the newest prices are {age} older than the day asked for: the interval is wider")
        return math.hypot(half, _Z80 * w.drift_per_sqrt_month * math.sqrt(months))

    def _is_new_architecture(self) -> bool:
        year = self.features.launched_year
        return year is None or year > self.document.launch_newest_year + 0.25

    def _range_refusals(self) -> Iterator[str]:
        for name, axis in self.document.axes.items():
            outside = self.outside[name]
            if outside > _TOO_FAR:
                low, high = math.exp(axis.low), math.exp(axis.high)
                yield f"out of range: {name} is {math.exp(self.logs[name]):.3g}, and the cards that were priced have {low:.3g} to {high:.3g}"
            elif outside > _BEYOND:
                self.reasons.append(f"{name} lies {math.expm1(outside):.0%} beyond that of any card that was priced")

    def _outside(self, name: str) -> float:
        """Return how far a rate lies outside those of all cards that were priced, in logarithms; below 0 where it is inside."""
        axis, value = self.document.axes[name], self.logs[name]
        return max(axis.low - value, value - axis.high)

    def _age_refusals(self) -> Iterator[str]:
        if self.age_months > _NEWEST_MONTHS:
            yield f"too old: the newest prices are of {self.document.as_of}, {self.age_months:.0f} months before {self.at}; fit fresh ones"
        if self.age_months < -_OLDEST_MONTHS:
            yield f"too early: no price is older than {_OLDEST_MONTHS:.0f} months before {self.document.as_of}, and {self.at} is"


@cache
def _shipped() -> MarketModel:
    return MarketModel.from_json(table("market_model"))


def _features(sheet: Sheet) -> Features:
    return Features(
        fp16_flops_per_s=sheet.fp16_flops_per_s,
        fp32_flops_per_s=sheet.fp32_flops_per_s,
        memory_bytes_per_s=sheet.memory_bytes_per_s,
        memory_bytes=sheet.memory_bytes,
        fp64_flops_per_s=sheet.fp64_flops_per_s,
        tdp_w=sheet.tdp_w,
        launched_year=sheet.launched_year,
        card_class=sheet.card_class,
    )


def _of(effects: Mapping[str, float], key: str | None) -> float:
    """Return an effect; for want of a key, the middle of them all."""
    if key is not None or not effects:
        return effects.get(key or "", 0.0)
    return math.fsum(effects.values()) / len(effects)


def _check(features: Features, segment: str) -> None:
    if segment not in _SEGMENTS:
        msg = f"no kind of seller {segment!r}; there are {', '.join(_SEGMENTS)}"
        raise MisuseError(msg)
    for name in ("fp16_flops_per_s", "fp32_flops_per_s", "memory_bytes_per_s", "memory_bytes"):
        value = getattr(features, name)
        if not (math.isfinite(value) and value > 0):
            msg = f"{name} must be a positive number, not {value!r}"
            raise MisuseError(msg)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.casefold())
