"""From a report to a price with its derivation, exact throughout: what the market pays for a GPU's hour, or what a device costs its owner.

Covers: each factor says what it is made of; the lines sum to the price to the micro-dollar; no price is below what an hour of work
costs in power, host, wear and fee; the same report, terms and data give the same quote to the last digit, on any machine.
Does not cover: what one buyer would pay, or what a price does to demand. A quote is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Literal, NamedTuple

from harness.errors import MisuseError
from harness.model import Capability, CostLine, Device, Factor, Failed, NativePrice, Quote, Report, Score, Terms
from harness.scoring.breakdown import shapley
from harness.scoring.capability import capability, counted
from harness.scoring.costs import Costs, Setting, given_costs, settings, told_costs
from harness.scoring.cycles import CYCLES_PER_CU_HOUR, CYCLES_PER_MCYCLE
from harness.scoring.derivation import capex, cost_lines, floor_of, total, watts
from harness.scoring.devices import rating
from harness.scoring.exact import MICRO, fraction_of, plain, precise, rounded, shared_out
from harness.scoring.market_model import Segment
from harness.scoring.profiles import Profile, profile_of
from harness.scoring.reliability import Discount, record_of, reliability, steadiness, useful_share
from harness.scoring.score import score_of
from harness.scoring.tables import digest_of, table
from harness.scoring.worth import Asked, Market, Worth, shipped_market, worth_of

__all__ = ["Basis", "Deal", "profile_in", "quote", "requote", "terms_of"]

Basis = Literal["market", "cost"]

_VALID_FOR_S = 600  # ten minutes: what a buyer needs to say yes
_HOURS_A_YEAR = 8760
_PICO = Decimal("0.000000000001")  # a dollar holds 10^12: an Mcycle of the cheapest card still has six digits
_TABLES = ("cost_defaults", "devices", "pricing", "profiles", "public_ranges", "reference")
_BATCHES = {"FLOP": 10**15, "B": 10**12}  # counted things come by the million

_CPU_ONLY = "this is a CPU's cost floor: it is not for a GPU market"
_EMULATED = "emulated: what was measured is the emulator, so there is nothing to price"
_NOTHING = "no result of this device counts; its score lists what was excluded, and why"
_WRONG = "wrong answers from {names}: a device that computes something false is worth nothing until it is mended"
_NO_WATTS = "no watts: no sensor gave any, no limit is stated, and {name!r} is not in the device table"
_NO_CAPEX = "no purchase price: {name!r} is not in the device table; give capex_usd in a costs file"
_BY_COST = "by cost: what the owner needs, not what the market pays"
_RAISED = "raised to the floor: the market pays less than power, host, wear and fee cost"


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
        least, most = _parameter("congestion_least"), _parameter("congestion_most")
        if not isinstance(self.congestion, Decimal) or not least <= self.congestion <= most:
            message = f"congestion is {self.congestion!r}; it should be a Decimal from {least} to {most}"
            raise MisuseError(message)
        rate = self.interruptions_per_hour
        if rate is not None and (not isinstance(rate, Decimal) or not rate.is_finite() or rate < 0):
            message = f"interruptions_per_hour is {rate!r}; it should be a Decimal, 0 or more"
            raise MisuseError(message)


def quote(  # noqa: PLR0913 - each is a part of what is asked
    *reports: Report,
    costs: Costs | None = None,
    profile: str | Profile = "general",
    basis: Basis = "market",
    deal: Deal | None = None,
    history: Sequence[Report] = (),
    market: Market | None = None,
) -> tuple[Quote, ...]:
    """Price an hour of each device of each report, or say why there is no price. A CPU is priced by its cost.

    The floor covers power, host and wear after the market's fee: below it, standing idle is cheaper, and no price is. A quote is issued
    when its report was sealed, and good for ten minutes.

    Args:
        reports: each device of each gets a quote.
        costs: what the owner says his costs are.
        profile: the workload that cycles are counted for.
        basis: `market`, what the market pays for such a device; or `cost`, what its owner needs.
        deal: who sells, when, and how.
        history: earlier reports, from which each device's reliability is taken.
        market: a stand-in for the shipped market model.

    Raises:
        MisuseError: there is no such profile.
    """
    chosen, deal = profile_of(profile), deal or Deal()
    with precise():
        return tuple(
            _quoted(report, seen, terms_of(report, seen, chosen, costs, basis, deal, history), chosen, market)
            for report in reports
            for seen in capability(report)
        )


def requote(report: Report, device_uuid: str, terms: Terms, *, market: Market | None = None) -> Quote:
    """Price one device again on a quote's own terms.

    Raises:
        MisuseError: the report does not have the device, or the terms are none.
    """
    seen = next((c for c in capability(report) if c.device_uuid == device_uuid), None)
    if seen is None:
        message = f"the report has nothing of device {device_uuid!r}"
        raise MisuseError(message)
    with precise():
        return _quoted(report, seen, terms, profile_in(terms), market)


def terms_of(  # noqa: PLR0913 - each is a part of what was asked
    report: Report,
    seen: Capability,
    profile: Profile,
    costs: Costs | None,
    basis: Basis,
    deal: Deal,
    history: Sequence[Report],
) -> Terms:
    """Return what a quote is asked for, in the form in which the quote keeps it."""
    rate = deal.interruptions_per_hour
    return Terms(
        basis="cost" if seen.kind == "cpu" else basis,
        profile=profile.name,
        shares={} if profile.ours else {name: plain(profile.shares[name]) for name in sorted(profile.shares)},
        profile_memory_bytes=profile.memory_bytes,
        costs=told_costs(costs or Costs()),
        segment=deal.segment,
        provider=deal.provider,
        at=(deal.at.isoformat() if deal.at else report.sealed_at[:10]),
        spot=deal.spot,
        term_s=deal.term_s,
        interruptions_per_hour=None if rate is None else plain(rate),
        checkpoint_s=deal.checkpoint_s,
        restart_s=deal.restart_s,
        congestion=plain(deal.congestion),
        record=record_of(seen.device_uuid, history, profile),
    )


def profile_in(terms: Terms) -> Profile:
    """Return the profile that a quote was asked for."""
    if not terms.shares:
        return profile_of(terms.profile)
    shares = {name: Decimal(share) for name, share in terms.shares.items()}
    return Profile(name=terms.profile, shares=shares, memory_bytes=terms.profile_memory_bytes)


def _quoted(report: Report, seen: Capability, terms: Terms, profile: Profile, market: Market | None) -> Quote:
    device = next(d for d in report.devices if d.uuid == seen.device_uuid)
    scored = score_of(seen, profile)
    market = (market or shipped_market()) if terms.basis == "market" else None
    blank = _blank(report, seen, scored, terms, profile, market)
    if refusal := _refusal(report, seen, device):
        return replace(blank, reasons=(refusal,))
    inputs, gaps = _inputs(seen, device, given_costs(terms.costs))
    if "watts" not in inputs:
        return replace(blank, reasons=gaps)
    blank = replace(blank, floor_usd_per_hour=floor_of(inputs))
    if "capex_usd" in inputs:
        blank = replace(blank, sustainable_usd_per_hour=total(cost_lines(inputs)))
    if market is None:
        return replace(blank, reasons=gaps) if gaps else _by_cost(blank, seen, scored, inputs)
    asked = Asked(terms.segment, terms.provider, date.fromisoformat(terms.at))  # type: ignore[arg-type]
    worth = worth_of(seen, device, profile, market, asked)
    if worth.withheld:
        return replace(blank, reasons=tuple(f"withheld: {reason}" for reason in worth.reasons))
    return _by_market(blank, seen, scored, worth)


def _refusal(report: Report, seen: Capability, device: Device) -> str | None:
    """Return why a device gets no price, whatever its numbers."""
    if seen.emulated:
        return _EMULATED
    wrong = [o.failed.job.benchmark for o in report.outcomes if o.failed and _is_wrong(o.failed, device)]
    if wrong:
        return _WRONG.format(names=", ".join(dict.fromkeys(wrong)))
    return None if counted(report, device) else _NOTHING


def _inputs(seen: Capability, device: Device, costs: Costs) -> tuple[dict[str, Setting], tuple[str, ...]]:
    """Return every cost with its basis, and what is wanting."""
    given, rated = dict(settings(costs)), rating(device)
    found = {"watts": watts(seen, device, rated), "capex_usd": given.get("capex_usd") or capex(device, rated)}
    gaps = {"watts": _NO_WATTS, "capex_usd": _NO_CAPEX}
    missing = tuple(gaps[name].format(name=device.name) for name, setting in found.items() if setting is None)
    return given | {name: setting for name, setting in found.items() if setting is not None}, missing


def _is_wrong(failed: Failed, device: Device) -> bool:
    return failed.outcome == "wrong_answer" and failed.job.device_uuid == device.uuid


def _blank(  # noqa: PLR0913 - each is named in the record
    report: Report, seen: Capability, scored: Score, terms: Terms, profile: Profile, market: Market | None
) -> Quote:
    digests = {name: digest_of(name) for name in _TABLES} | {"profile": profile.digest}
    return Quote(
        schema="harness.quote/2",
        report_digest=seen.report_digest,
        device_uuid=seen.device_uuid,
        device_name=seen.device_name,
        kind=seen.kind,
        emulated=seen.emulated,
        status="withheld",
        reasons=(),
        for_gpu_market=False,
        currency="USD",
        method=terms.basis,
        terms=terms,
        floor_usd_per_hour=None,
        sustainable_usd_per_hour=None,
        price_usd_per_hour=None,
        low_usd_per_hour=None,
        high_usd_per_hour=None,
        price_usd_per_cu_hour=None,
        price_usd_per_mcycle=None,
        native=(),
        profile=scored.profile,
        unit=scored.unit,
        cycles_per_s=scored.cycles_per_s,
        breakdown=(),
        factors=(),
        issued_at=report.sealed_at,
        valid_for_s=_VALID_FOR_S,
        evidence=tuple(dict.fromkeys(part.evidence for part in scored.parts)),
        digests=digests | ({"market_model": market.digest} if market else {}),
    )


# --- by cost ----------------------------------------------------------------------------------------------------------


def _by_cost(blank: Quote, seen: Capability, scored: Score, inputs: Mapping[str, Setting]) -> Quote:
    return _priced(replace(blank, breakdown=cost_lines(inputs)), seen, scored, ())


# --- by the market ----------------------------------------------------------------------------------------------------


class _Product(NamedTuple):
    """A price as a product: a base, the market's factors and those of the deal, and the ends of the interval."""

    base: Decimal
    factors: Mapping[str, Discount]
    low: Decimal
    high: Decimal

    @property
    def price(self) -> Decimal:
        price = self.base
        for discount in self.factors.values():
            price *= discount.times
        return price


def _by_market(blank: Quote, seen: Capability, scored: Score, worth: Worth) -> Quote:
    assert blank.floor_usd_per_hour is not None  # noqa: S101 - watts are known
    product = _product(worth, blank.terms)
    low, high = product.low.quantize(MICRO), product.high.quantize(MICRO)
    kept = max(min(product.price.quantize(MICRO), high), low)
    price = max(kept, blank.floor_usd_per_hour)
    lines = (*_shapley_lines(product, worth), *_clamps(product.price.quantize(MICRO), kept, price))
    reasons = (*worth.reasons, *((_RAISED,) if price > kept else ()))
    found = replace(
        blank,
        low_usd_per_hour=max(low, blank.floor_usd_per_hour),
        high_usd_per_hour=max(high, blank.floor_usd_per_hour),
        breakdown=lines,
        factors=tuple(
            Factor(name=name, times=plain(d.times.quantize(_PICO)), basis=d.basis)
            for name, d in product.factors.items()
        ),
    )
    return _priced(found, seen, scored, reasons)


def _product(worth: Worth, terms: Terms) -> _Product:
    """Multiply out what the market pays for such a device, sold by such a seller on such terms.

    Congestion moves a price within its interval and not the interval.
    """
    logs = dict(worth.logs)
    base = logs.pop("base").exp()
    market = {name: Discount(log.exp(), f"market: {worth.basis}") for name, log in logs.items()}
    sold = _of_the_deal(terms)
    scale = Decimal(1)
    for discount in sold.values():
        scale *= discount.times
    ends = [end.exp() * scale for end in (worth.log_low, worth.log_high)]
    congestion = {"congestion": Discount(Decimal(terms.congestion), "given: the controller's multiplier")}
    return _Product(base, market | sold | congestion, *ends)


def _of_the_deal(terms: Terms) -> dict[str, Discount]:
    found = {"reliability": reliability(terms.record), "steadiness": steadiness(terms.record)}
    if terms.spot and terms.interruptions_per_hour is not None:
        share = useful_share(Decimal(terms.interruptions_per_hour), terms.checkpoint_s or 0, terms.restart_s or 0)
        found["spot"] = share
    elif terms.spot:
        found["spot"] = Discount(_parameter("spot"), "assumed: spot against on-demand in the market")
    if terms.term_s:
        paid = min(Decimal(terms.term_s) / 3600 / _HOURS_A_YEAR, Decimal(1))
        found["term"] = Discount(1 - _parameter("term_discount") * paid, f"assumed: {terms.term_s} s paid in advance")
    return found


def _shapley_lines(product: _Product, worth: Worth) -> Iterator[CostLine]:
    parts = {"base": product.base} | shapley(product.base, {n: d.times for n, d in product.factors.items()})
    shown = shared_out(product.price.quantize(MICRO), parts)
    bases = {"base": f"market: a card without qualities; {worth.basis}"} | {
        n: d.basis for n, d in product.factors.items()
    }
    for name, usd in shown.items():
        yield CostLine(name=name, usd_per_hour=usd, basis=bases[name])


def _clamps(product: Decimal, kept: Decimal, price: Decimal) -> Iterator[CostLine]:
    if kept != product:
        yield CostLine(name="interval", usd_per_hour=kept - product, basis="computed: kept within the interval")
    if price != kept:
        yield CostLine(name="floor", usd_per_hour=price - kept, basis="computed: raised to the floor")


# --- both -------------------------------------------------------------------------------------------------------------


def _priced(found: Quote, seen: Capability, scored: Score, reasons: Sequence[str]) -> Quote:
    price = total(found.breakdown)
    cycles = scored.cycles_per_s
    per_cycle = Fraction(price) / 3600 / cycles if cycles else None  # an hour's dollars over an hour's cycles
    return replace(
        found,
        status="priced",
        reasons=(*reasons, *_remarks(scored)),
        for_gpu_market=scored.kind == "cuda" and not _bursts(seen, scored),
        price_usd_per_hour=price,
        price_usd_per_cu_hour=None if per_cycle is None else rounded(per_cycle * CYCLES_PER_CU_HOUR),
        price_usd_per_mcycle=None if per_cycle is None else rounded(per_cycle * CYCLES_PER_MCYCLE, _PICO),
        native=tuple(_native(seen, price)),
    )


def _native(seen: Capability, price: Decimal) -> Iterator[NativePrice]:
    """Yield what the units that benchmarks count cost at a price of an hour, at the rates' low ends."""
    for rate in seen.rates:
        unit = rate.unit.removesuffix("/s")
        count = _BATCHES.get(unit, 10**6)
        yield NativePrice(
            work_class=rate.work_class,
            unit=unit,
            batch_count=count,
            usd_per_batch=rounded(Fraction(price) / 3600 / fraction_of(rate.low_per_s) * count, _PICO),
            point=rate.point,
            evidence=rate.evidence,
        )


def _bursts(seen: Capability, scored: Score) -> list[str]:
    """Return the classes of work whose rates were taken before the card was warm: nobody gets those for an hour."""
    if seen.kind != "cuda":
        return []
    priced = {"gemm_fp16", "gemm_bf16", "gemm_fp32", "mem"} | {part.work_class for part in scored.parts}
    return [rate.work_class for rate in seen.rates if rate.regime == "burst" and rate.work_class in priced]


def _remarks(scored: Score) -> Iterator[str]:
    bursts = [part.work_class for part in scored.parts if part.regime == "burst" and scored.kind == "cuda"]
    if scored.kind == "cpu":
        yield _CPU_ONLY
    if bursts:
        yield f"not to sell by: {', '.join(bursts)} measured in bursts; `harness run --preset standard` measures what it sustains"
    if scored.missing:
        yield f"no price per CU-hour: profile {scored.profile!r} lacks {', '.join(scored.missing)}"
    if scored.too_small:
        yield f"no price per CU-hour: {scored.too_small}"


def _parameter(name: str) -> Decimal:
    rows: Mapping[str, Mapping[str, str]] = table("pricing")["parameters"]
    return Decimal(rows[name]["value"])
