"""What the market asks for an hour of a device as it was measured: the market model's estimate, made exact and taken apart.

Covers: a rate that was measured goes before the one on the sheet; a sheet never stands in for a rate that was tried and did not count; a
slow card of a good name is not worth more than its share of a good one; what the model withholds stays withheld.
Does not cover: the model itself, which is `market_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import cache, lru_cache
from typing import Protocol

from harness.model import Capability, Device
from harness.scoring.exact import Measured, decimal_of, logarithm
from harness.scoring.market_model import Estimate, Features, MarketModel, Segment
from harness.scoring.profiles import Profile
from harness.scoring.typical import delivered_share, measured_rates

__all__ = ["Appraiser", "Market", "Worth", "shipped_market"]

# Logarithms of measured rates are floats, whose last digits may differ between two machines' libraries: nine decimals do not.
_STEP = Decimal("0.000000001")
_NOTHING = Decimal(0)
_FIELDS = {
    "fp16_flops_per_s": ("gemm_fp16", "gemm_bf16"),
    "fp32_flops_per_s": ("gemm_fp32",),
    "memory_bytes_per_s": ("mem",),
    "fp64_flops_per_s": ("gemm_fp64",),
}
_UNPRICED = "fp64_flops_per_s"  # with the others known, the market pays nothing for it


class Market(Protocol):
    """What estimates prices: `MarketModel`, or a stand-in."""

    @property
    def digest(self) -> str:
        """The digest that names the model."""

    def features_of(self, gpu_name: str, memory_bytes: int | None = None) -> Features | None:
        """Return the sheet of a card."""

    def estimate(
        self, features: Features, *, segment: Segment, provider: str | None, gpu_name: str | None, at: date | None
    ) -> Estimate:
        """Estimate the price of an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """The market's price of an hour, in exact logarithms, or why there is none."""

    logs: Mapping[str, Decimal]  # by factor; the first, `base`, is what a card without qualities would cost
    log_low: Decimal
    log_high: Decimal
    basis: str
    reasons: tuple[str, ...]
    withheld: bool
    log_price: Decimal  # of the price in USD: the sum of the factors


class Appraiser:
    """Estimates what an hour of devices is worth to one kind of seller on one day; what a name brings is worked out once."""

    def __init__(self, market: Market, profile: Profile, segment: Segment, provider: str | None, at: date) -> None:
        self._market, self._profile = market, profile
        self._segment, self._provider, self._at = segment, provider, at
        self._named: dict[tuple[str, int | None], tuple[Features | None, Worth | None]] = {}

    def worth(self, seen: Capability, device: Device) -> Worth:
        """Estimate one device, as it was measured."""
        if bad := _tried_in_vain(seen, self._profile):
            return _withheld(bad)
        sheet, sound = self._of_its_name(device)
        rates = {r.work_class: r.low_per_s for r in seen.rates}
        features = _features(rates, device, sheet)
        if features is None:
            return _withheld(_unmeasured(seen, sheet))
        own = self._estimated(features, device)
        share = None if own.withheld or sound is None else delivered_share(seen, self._profile)
        if share is None or sound is None:
            return own
        most = sound.log_price + logarithm(Decimal(share.numerator) / share.denominator).quantize(_STEP)
        return own if most >= own.log_price else _lowered(own, most - own.log_price)

    def _of_its_name(self, device: Device) -> tuple[Features | None, Worth | None]:
        """Return the sheet of a device's name, and what one that does what its name promises is worth."""
        key = device.name, device.memory_bytes
        if key not in self._named:
            sheet = self._market.features_of(*key)
            sound = (
                None
                if sheet is None
                else self._estimated(_features(measured_rates(*key), device, sheet) or sheet, device)
            )
            self._named[key] = sheet, None if sound is None or sound.withheld else sound
        return self._named[key]

    def _estimated(self, features: Features, device: Device) -> Worth:
        found = self._market.estimate(
            features, segment=self._segment, provider=self._provider, gpu_name=device.name, at=self._at
        )
        return _exact(found)


def _lowered(own: Worth, by: Decimal) -> Worth:
    return replace(
        own,
        logs={**own.logs, "below its name": by},
        log_price=own.log_price + by,
        log_low=own.log_low + by,
        log_high=own.log_high + by,
        reasons=(
            *own.reasons,
            "it does less than its name promises, and is worth no more than that share of a sound one",
        ),
    )


def _features(rates: Mapping[str, Measured], device: Device, sheet: Features | None) -> Features | None:
    """Return a device's features: what was measured, and of the rest what the sheet of its name says."""
    measured = {name: next((rates[c] for c in classes if c in rates), None) for name, classes in _FIELDS.items()}
    known = {name: rate for name, rate in measured.items() if rate is not None}
    if not known:
        return None
    if sheet is not None:
        return replace(sheet, **known, measured=frozenset(known))  # type: ignore[arg-type]
    needed = set(_FIELDS) - {_UNPRICED}
    if needed - set(known) or device.memory_bytes is None:
        return None
    return Features(
        **known,  # type: ignore[arg-type]
        memory_bytes=device.memory_bytes,
        tdp_w=device.power_default_limit_w or device.power_limit_w,
        measured=frozenset(known),
    )


def _tried_in_vain(seen: Capability, profile: Profile) -> str | None:
    """Return why a device has no price that has results of what a price or a profile asks for, and none that counts.

    The sheet of its name would stand in for it: whoever throttles or crashes would be priced as a sound one.
    """
    if not seen.uncounted:
        return None
    classes, tried = {r.work_class for r in seen.rates}, set(seen.uncounted)
    groups = (names for field, names in _FIELDS.items() if field != _UNPRICED and classes.isdisjoint(names))
    bad = [*(w for names in groups for w in names if w in tried), *(w for w in profile.fractions if w in tried)]
    if not bad:
        return None
    return f"no result of {', '.join(dict.fromkeys(bad))} counts, though it was tried: the sheet of its name does not stand in for it"


def _unmeasured(seen: Capability, sheet: Features | None) -> str:
    classes = {r.work_class for r in seen.rates}
    lacking = [names[0] for field, names in _FIELDS.items() if field != _UNPRICED and not classes & set(names)]
    if sheet is not None:
        return f"no rate that the market model knows was measured ({', '.join(lacking)}): a name alone is not priced"
    return f"the market model has no sheet of {seen.device_name!r}, and of its rates lack {', '.join(lacking) or 'the memory size'}"


def _withheld(*reasons: str) -> Worth:
    return Worth(
        logs={},
        log_low=_NOTHING,
        log_high=_NOTHING,
        basis="unmeasured",
        reasons=reasons,
        withheld=True,
        log_price=_NOTHING,
    )


def _exact(estimate: Estimate) -> Worth:
    """Round an estimate's logarithms once; what rounding leaves over goes to the base."""
    if estimate.withheld or estimate.log_price is None or estimate.low is None or estimate.high is None:
        return _withheld(*estimate.reasons)
    price, low, high = map(_stepped, (estimate.log_price, estimate.low, estimate.high))
    logs: dict[str, Decimal] = {"base": _NOTHING}
    for part in estimate.contributions:
        logs[part.name] = logs.get(part.name, _NOTHING) + _stepped(part.log_factor)
    logs["base"] += price - sum(logs.values(), _NOTHING)
    basis = f"{estimate.basis}, {estimate.confidence_fraction:.0%} interval, prices up to {estimate.as_of}"
    return Worth(
        logs=logs,
        log_low=low,
        log_high=high,
        basis=basis,
        reasons=estimate.reasons,
        withheld=False,
        log_price=price,
    )


@lru_cache(4096)
def _stepped(log: Measured) -> Decimal:
    """Return a logarithm to nine decimals; cards of one name share most of theirs."""
    return decimal_of(log).quantize(_STEP)


@cache
def shipped_market() -> Market:
    """Return the market model that is shipped."""
    return MarketModel.load()
