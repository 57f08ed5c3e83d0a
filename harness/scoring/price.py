"""From a report to a price with its derivation, exact throughout: what the market pays for a GPU's hour, or what a device costs its owner.

Covers: each factor says what it is made of; the lines sum to the price to the micro-dollar; no price is below what an hour of work
costs in power, host, wear and fee; the same report, terms and data give the same quote to the last digit, on any machine.
Does not cover: what one buyer would pay, or what a price does to demand. A quote is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

from harness.errors import MisuseError
from harness.model import Capability, Device, NativePrice, Quote, Record, Report, Score, Terms
from harness.scoring.capability import capability
from harness.scoring.costs import Costs, Setting, given_costs, settings
from harness.scoring.cycles import CYCLES_PER_CU_HOUR, CYCLES_PER_MCYCLE
from harness.scoring.derivation import capex, cost_lines, floor_of, running_lines, total, watts
from harness.scoring.devices import rating
from harness.scoring.exact import precise, ratio_of, ratio_rounded
from harness.scoring.product import Product
from harness.scoring.profiles import Profile, profile_of
from harness.scoring.reliability import Discount, Episode, episodes, record_of, reliability, steadiness, useful_share
from harness.scoring.score import score_of
from harness.scoring.tables import digest_of, parameter
from harness.scoring.terms import Basis, Deal, check_terms, profile_in, terms_of
from harness.scoring.worth import Appraiser, Market, shipped_market

__all__ = ["TABLES", "quote", "quoter", "quoter_on", "requote"]

_VALID_FOR_S = 600  # ten minutes: what a buyer needs to say yes
_HOURS_A_YEAR = 8760
_PICO = Decimal("0.000000000001")  # a dollar holds 10^12: an Mcycle of the cheapest card still has six digits
TABLES = ("cost_defaults", "devices", "pricing", "profiles", "public_ranges", "reference")
_PRICED = ("gemm_fp16", "gemm_bf16", "gemm_fp32", "mem")  # what the market model takes
_BATCHES = {"FLOP": 10**15, "B": 10**12}  # counted things come by the million

_CPU_ONLY = "this is a CPU's cost floor: it is not for a GPU market"
_EMULATED = "emulated: what was measured is the emulator, so there is nothing to price"
_NOTHING = "no result of this device counts; its score lists what was excluded, and why"
_WRONG = "wrong answers from {names}: a device that computes something false is worth nothing until it is mended"
_ILL = "the card itself says that it is ill ({what}): it is worth nothing until it is mended"
_NO_WATTS = "no watts: no sensor gave any, no limit is stated, and {name!r} is not in the device table"
_NO_CAPEX = "no purchase price: {name!r} is not in the device table; give capex_usd in a costs file"


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
        history: reports from which each device's reliability is taken: of those sealed before the one that is priced.
        market: a stand-in for the shipped market model.

    Raises:
        MisuseError: there is no such profile.
    """
    asked = quoter(costs=costs, profile=profile, basis=basis, deal=deal, history=history, market=market)
    return tuple(one for report in reports for one in asked(report))


def quoter(  # noqa: PLR0913 - each is a part of what is asked
    *,
    costs: Costs | None = None,
    profile: str | Profile = "general",
    basis: Basis = "market",
    deal: Deal | None = None,
    history: Sequence[Report] = (),
    market: Market | None = None,
) -> Callable[[Report], tuple[Quote, ...]]:
    """Return what prices one report after the other on the same terms: for a fleet. The arguments are those of `quote`."""
    chosen = profile_of(profile)
    terms = terms_of(chosen, costs or Costs(), basis, deal or Deal())
    return quoter_on(terms, chosen, episodes(history, chosen), market)


def quoter_on(
    asked: Terms, profile: Profile, told: Mapping[str, Sequence[Episode]], market: Market | None = None
) -> Callable[[Report], tuple[Quote, ...]]:
    """Return what prices one report after the other on terms of `terms_of`; `told` is what earlier reports say of devices, by UUID."""
    pricers: dict[tuple[str, str, Record | None], _Pricer] = {}

    def pricer(kind: str, at: str, record: Record | None) -> _Pricer:
        key = ("cost" if kind == "cpu" else asked.basis, at, record)
        if key not in pricers:
            terms = replace(asked, basis=key[0], at=at, record=record)
            pricers[key] = _Pricer(terms, profile, market)
        return pricers[key]

    def quoted(report: Report) -> tuple[Quote, ...]:
        at = asked.at or report.sealed_at[:10]
        with precise():
            return tuple(
                pricer(seen.kind, at, record_of(report, told.get(seen.device_uuid, ()))).quote(report, seen)
                for seen in capability(report)
            )

    return quoted


def requote(report: Report, device_uuid: str, terms: Terms, *, market: Market | None = None) -> Quote:
    """Price one device again on a quote's own terms.

    Raises:
        MisuseError: the report does not have the device, or nobody could have asked for such terms.
    """
    check_terms(terms)
    seen = next((c for c in capability(report) if c.device_uuid == device_uuid), None)
    if seen is None:
        message = f"the report has nothing of device {device_uuid!r}"
        raise MisuseError(message)
    if terms.record and report.seal.digest in terms.record.report_digests:
        message = "its record counts the report itself, which vouches for nothing"
        raise MisuseError(message)
    if seen.kind == "cpu" and terms.basis != "cost":
        message = f"basis is {terms.basis!r}; a CPU is priced by its cost"
        raise MisuseError(message)
    with precise():
        return _Pricer(terms, profile_in(terms), market).quote(report, seen)


_Fields = dict[str, Any]  # of a quote


class _Pricer:
    """Prices devices on one set of terms; what they share is worked out once."""

    def __init__(self, terms: Terms, profile: Profile, market: Market | None) -> None:
        self._terms, self._profile = terms, profile
        self._settings = dict(settings(given_costs(terms.costs)))
        self._digests = {name: digest_of(name) for name in TABLES} | {"profile": profile.digest}
        self._appraiser = None
        if terms.basis == "market":
            market = market or shipped_market()
            self._digests["market_model"] = market.digest
            day = date.fromisoformat(terms.at)
            self._appraiser = Appraiser(market, profile, terms.segment, terms.provider, day)  # type: ignore[arg-type]
            self._sold = _of_the_deal(terms)

    def quote(self, report: Report, seen: Capability) -> Quote:
        """Price one device of a report."""
        device = next(d for d in report.devices if d.uuid == seen.device_uuid)
        scored = score_of(seen, self._profile)
        found = self._refused(report, seen) or self._priced(device, seen, scored)
        return Quote(**(self._blank(report, scored) | found))

    def _blank(self, report: Report, scored: Score) -> _Fields:
        return {
            "schema": "harness.quote/2",
            "report_digest": scored.report_digest,
            "device_uuid": scored.device_uuid,
            "device_name": scored.device_name,
            "kind": scored.kind,
            "emulated": scored.emulated,
            "status": "withheld",
            "reasons": (),
            "for_gpu_market": False,
            "currency": "USD",
            "method": self._terms.basis,
            "terms": self._terms,
            "floor_usd_per_hour": None,
            "sustainable_usd_per_hour": None,
            "price_usd_per_hour": None,
            "low_usd_per_hour": None,
            "high_usd_per_hour": None,
            "price_usd_per_cu_hour": None,
            "price_usd_per_mcycle": None,
            "native": (),
            "profile": scored.profile,
            "unit": scored.unit,
            "cycles_per_s": scored.cycles_per_s,
            "breakdown": (),
            "factors": (),
            "issued_at": report.sealed_at,
            "valid_for_s": _VALID_FOR_S,
            "evidence": tuple(dict.fromkeys(part.evidence for part in scored.parts)),
            "digests": self._digests,
        }

    def _refused(self, report: Report, seen: Capability) -> _Fields | None:
        """Return why a device gets no price, whatever its numbers."""
        if seen.emulated:
            return {"reasons": (_EMULATED,)}
        failures = (o.failed for o in report.outcomes if o.failed and o.failed.job.device_uuid == seen.device_uuid)
        wrong = dict.fromkeys(f.job.benchmark for f in failures if f.outcome == "wrong_answer")
        if wrong:
            return {"reasons": (_WRONG.format(names=", ".join(wrong)),)}
        if seen.ailments:
            return {"reasons": (_ILL.format(what="; ".join(seen.ailments)),)}
        return None if seen.counted_count else {"reasons": (_NOTHING,)}

    def _priced(self, device: Device, seen: Capability, scored: Score) -> _Fields:
        inputs, gaps = self._inputs(device, seen)
        if "watts" not in inputs:
            return {"reasons": gaps}
        running = running_lines(inputs)
        lines = cost_lines(inputs, running) if "capex_usd" in inputs else ()
        found: _Fields = {
            "floor_usd_per_hour": floor_of(inputs, running),
            "sustainable_usd_per_hour": total(lines) if lines else None,
        }
        if self._appraiser:
            return found | self._by_market(device, seen, scored, found["floor_usd_per_hour"])
        if gaps:
            return found | {"reasons": gaps}
        return found | {"breakdown": lines} | _of_a_price(total(lines), seen, scored, ())

    def _by_market(self, device: Device, seen: Capability, scored: Score, floor: Decimal) -> _Fields:
        assert self._appraiser  # noqa: S101 - asked for by the market
        worth = self._appraiser.worth(seen, device)
        if worth.withheld:
            return {"reasons": tuple(f"withheld: {reason}" for reason in worth.reasons)}
        sold = Product(worth, self._sold, Decimal(self._terms.congestion)).sold(floor)
        return sold.fields() | _of_a_price(sold.price, seen, scored, sold.reasons)

    def _inputs(self, device: Device, seen: Capability) -> tuple[dict[str, Setting], tuple[str, ...]]:
        """Return every cost with its basis, and what is wanting."""
        given, rated = self._settings, rating(device)
        found = {"watts": watts(seen, device, rated), "capex_usd": given.get("capex_usd") or capex(device, rated)}
        gaps = {"watts": _NO_WATTS, "capex_usd": _NO_CAPEX}
        missing = tuple(gaps[name].format(name=device.name) for name, setting in found.items() if setting is None)
        return given | {name: setting for name, setting in found.items() if setting is not None}, missing


def _of_the_deal(terms: Terms) -> dict[str, Discount]:
    """Return what the market's price is multiplied by for who sells and how."""
    found = {"reliability": reliability(terms.record), "steadiness": steadiness(terms.record)}
    if terms.spot and terms.interruptions_per_hour is not None:
        share = useful_share(Decimal(terms.interruptions_per_hour), terms.checkpoint_s or 0, terms.restart_s or 0)
        found["spot"] = share
    elif terms.spot:
        found["spot"] = Discount(parameter("spot"), "assumed: spot against on-demand in the market")
    if terms.term_s:
        paid = min(Decimal(terms.term_s) / 3600 / _HOURS_A_YEAR, Decimal(1))
        found["term"] = Discount(1 - parameter("term_discount") * paid, f"assumed: {terms.term_s} s paid in advance")
    return found


def _of_a_price(price: Decimal, seen: Capability, scored: Score, reasons: Sequence[str]) -> _Fields:
    """Return what follows from the price of an hour."""
    above, below = price.as_integer_ratio()
    per_cycle = (above, below * 3600 * scored.cycles_per_s) if scored.cycles_per_s else None
    bursts = _bursts(seen, scored)
    return {
        "status": "priced",
        "reasons": (*reasons, *_remarks(scored, bursts)),
        "for_gpu_market": scored.kind == "cuda" and not bursts,
        "price_usd_per_hour": price,
        "price_usd_per_cu_hour": per_cycle and ratio_rounded(per_cycle[0] * CYCLES_PER_CU_HOUR, per_cycle[1]),
        "price_usd_per_mcycle": per_cycle and ratio_rounded(per_cycle[0] * CYCLES_PER_MCYCLE, per_cycle[1], _PICO),
        "native": tuple(_native(seen, above, below)),
    }


def _native(seen: Capability, above: int, below: int) -> Iterator[NativePrice]:
    """Yield what the units that benchmarks count cost at a price of an hour, a quotient, at the rates' low ends."""
    for rate in seen.rates:
        unit = rate.unit.removesuffix("/s")
        count = _BATCHES.get(unit, 10**6)
        rate_above, rate_below = ratio_of(rate.low_per_s)
        yield NativePrice(
            work_class=rate.work_class,
            unit=unit,
            batch_count=count,
            usd_per_batch=ratio_rounded(above * count * rate_below, below * 3600 * rate_above, _PICO),
            point=rate.point,
            evidence=rate.evidence,
        )


def _bursts(seen: Capability, scored: Score) -> list[str]:
    """Return the classes of work whose rates were taken before the card was warm: nobody gets those for an hour."""
    if seen.kind != "cuda":
        return []
    priced = {*_PRICED, *(part.work_class for part in scored.parts)}
    return [rate.work_class for rate in seen.rates if rate.regime == "burst" and rate.work_class in priced]


def _remarks(scored: Score, bursts: Sequence[str]) -> Iterator[str]:
    if scored.kind == "cpu":
        yield _CPU_ONLY
    if bursts:
        yield f"not to sell by: {', '.join(bursts)} measured in bursts; `harness run --preset standard` measures what it sustains"
    if scored.missing:
        yield f"no price per CU-hour: profile {scored.profile!r} lacks {', '.join(scored.missing)}"
    if scored.too_small:
        yield f"no price per CU-hour: {scored.too_small}"
