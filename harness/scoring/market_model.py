"""What the market asks for an hour of a card, from its rates: a log-linear part and monotone trees, shrunk effects, an interval.

Covers: a better rate is never cheaper, all else equal, whatever the model's numbers are; an estimate says what it rests on, or is
withheld with a reason; the same model and features give the same estimate on any machine.
Does not cover: truth. Asks are what sellers hope for, and they move by 20 to 50 % in a year: hence the interval, and its growth with age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

__all__ = ["Basis", "CardClass", "Contribution", "Estimate", "Features", "MarketModel", "Segment"]

Segment = Literal["hyperscaler", "neocloud", "marketplace"]
CardClass = Literal["datacenter", "workstation", "consumer"]
Basis = Literal["measured", "spec", "unmeasured"]  # this node's rates; its name's sheet; the sheet of a name nobody has priced


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
    """The market's price of one GPU-hour, as a natural logarithm of USD, with the ends of its 80 % interval."""

    log_price: float | None  # None where it is withheld
    low: float | None
    high: float | None
    contributions: tuple[Contribution, ...]  # sum to log_price
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

    @classmethod
    def load(cls) -> MarketModel:
        """Return the model that is shipped."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> MarketModel:
        """Read a model from parsed JSON.

        Raises:
            MisuseError: it is not a market model, or its trees are not monotone.
        """
        raise NotImplementedError

    def features_of(self, gpu_name: str, memory_bytes: int | None = None) -> Features | None:
        """Return the sheet of a card by its key (`RTX-4090`) or its name in NVML; None where there is none."""
        raise NotImplementedError

    def estimate(
        self,
        features: Features,
        *,
        segment: Segment = "neocloud",
        provider: str | None = None,
        gpu_name: str | None = None,
        at: date | None = None,
    ) -> Estimate:
        """Estimate the market's price of one hour of one such card.

        Args:
            features: its rates.
            segment: what kind of seller asks.
            provider: a seller's key; one that is known brings its own level.
            gpu_name: the card's key or its name in NVML; a known one brings what its name is paid beyond its rates.
            at: the day to estimate for; the model's own date where it is left out.
        """
        raise NotImplementedError
