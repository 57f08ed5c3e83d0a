"""From a report to a price with its derivation: what an hour of the device costs its owner, in Decimal throughout.

Covers: each line says what it is made of, the lines sum to the price exactly, and the same report and costs give the
same quote to the last digit, on any machine.
Does not cover: what the market would pay. A price by cost is what the owner needs, not what a buyer offers.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import TYPE_CHECKING

from harness.model import Capability, CostLine, Device, Failed, Quote, Report, Score
from harness.scoring.capability import capability, counted
from harness.scoring.costs import Costs, Setting, settings
from harness.scoring.devices import Rating, rating
from harness.scoring.score import score_of
from harness.scoring.tables import digest_of, table

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["quote"]

_VALID_FOR_S = 600  # ten minutes: what a buyer needs to say yes
_HOURS_A_YEAR = 8760
_MICRO = Decimal("0.000001")
# The caller's context must not change a price. 400 digits hold the reciprocal of the smallest score a double can be.
_CONTEXT = Context(prec=400, rounding=ROUND_HALF_EVEN)
_TABLES = ("cost_defaults", "devices", "profiles", "reference")

_CPU_ONLY = "this is a CPU's cost floor: it is not for a GPU market"
_EMULATED = "emulated: what was measured is the emulator, so there is nothing to price"
_NOTHING = "no result of this device counts; its score lists what was excluded, and why"
_WRONG = "wrong answers from {names}: a device that computes something false is worth nothing until it is mended"
_NO_WATTS = "no watts: no sensor gave any, no limit is stated, and {name!r} is not in the device table"
_NO_CAPEX = "no purchase price: {name!r} is not in the device table; give capex_usd in a costs file"


def quote(*reports: Report, costs: Costs | None = None, profile: str = "general") -> tuple[Quote, ...]:
    """Price an hour of each device of each report, or say why there is no price.

    The floor covers electricity and host after the market's fee: below it, standing idle is cheaper. The price adds the
    purchase and the margin. It is issued when its report was sealed and good for ten minutes.

    Raises:
        MisuseError: there is no such profile.
    """
    with localcontext(_CONTEXT):
        return tuple(
            _quote(report, seen, score_of(seen, profile), settings(costs or Costs()))
            for report in reports
            for seen in capability(report)
        )


def _quote(report: Report, seen: Capability, scored: Score, given: Mapping[str, Setting]) -> Quote:
    device = next(d for d in report.devices if d.uuid == seen.device_uuid)
    blank = _withheld(report, seen, scored)
    if seen.emulated:
        return replace(blank, reasons=(_EMULATED,))
    wrong = [o.failed.job.benchmark for o in report.outcomes if o.failed and _is_wrong(o.failed, device)]
    if wrong:
        return replace(blank, reasons=(_WRONG.format(names=", ".join(dict.fromkeys(wrong))),))
    if not counted(report, device):
        return replace(blank, reasons=(_NOTHING,))
    rated = rating(device)
    watts, capex = _watts(seen, device, rated), given.get("capex_usd") or _capex(device, rated)
    if watts is None or capex is None:
        gaps = [text for text, found in ((_NO_WATTS, watts), (_NO_CAPEX, capex)) if found is None]
        return replace(blank, reasons=tuple(text.format(name=device.name) for text in gaps))
    return _priced(blank, scored, {**given, "watts": watts, "capex_usd": capex})


def _is_wrong(failed: Failed, device: Device) -> bool:
    return failed.outcome == "wrong_answer" and failed.job.device_uuid == device.uuid


def _withheld(report: Report, seen: Capability, scored: Score) -> Quote:
    return Quote(
        schema="harness.quote/1",
        report_digest=seen.report_digest,
        device_uuid=seen.device_uuid,
        device_name=seen.device_name,
        kind=seen.kind,
        emulated=seen.emulated,
        status="withheld",
        reasons=(),
        for_gpu_market=False,
        currency="USD",
        method="cost-floor",
        floor_usd_per_hour=None,
        price_usd_per_hour=None,
        price_usd_per_cu_hour=None,
        profile=scored.profile,
        unit=scored.unit,
        breakdown=(),
        issued_at=report.sealed_at,
        valid_for_s=_VALID_FOR_S,
        evidence=(*dict.fromkeys(part.evidence for part in scored.parts), *map(digest_of, _TABLES)),
    )


def _priced(blank: Quote, scored: Score, inputs: Mapping[str, Setting]) -> Quote:
    lines = _breakdown(inputs)
    costs = {line.name: line.usd_per_hour for line in lines}
    short_run = costs["energy"] + costs["host"]
    price = sum(costs.values(), Decimal(0))
    return replace(
        blank,
        status="priced",
        reasons=tuple(_remarks(scored)),
        for_gpu_market=scored.kind == "cuda" and not _bursts(scored),
        floor_usd_per_hour=short_run + _fee(short_run, inputs["fee_fraction"].value),
        price_usd_per_hour=price,
        price_usd_per_cu_hour=_per_cu(price, scored),
        breakdown=lines,
    )


def _bursts(scored: Score) -> list[str]:
    """Return the classes of work whose rates were taken before the card was warm: nobody gets those for an hour."""
    return [part.work_class for part in scored.parts if part.regime == "burst" and scored.kind == "cuda"]


def _remarks(scored: Score) -> list[str]:
    bursts = _bursts(scored)
    burst = f"not to sell by: {', '.join(bursts)} measured in bursts; `harness run --preset standard` measures what it sustains"
    unscored = f"no price per CU-hour: profile {scored.profile!r} lacks {', '.join(scored.missing)}"
    return [
        text for text, said in ((_CPU_ONLY, scored.kind == "cpu"), (burst, bursts), (unscored, scored.missing)) if said
    ]


def _breakdown(inputs: Mapping[str, Setting]) -> tuple[CostLine, ...]:
    """Return the lines of a price, each rounded once to a micro-dollar; the price is their sum."""
    costs = (_energy(inputs), _amortisation(inputs), _host(inputs))
    margin = _margin(sum((line.usd_per_hour for line in costs), Decimal(0)), inputs["margin_fraction"])
    net = sum((line.usd_per_hour for line in costs), margin.usd_per_hour)
    fee = inputs["fee_fraction"]
    basis = f"computed: {_show(fee)} of the price, so that the lines above are left after it"
    return (*costs, margin, CostLine(name="fee", usd_per_hour=_fee(net, fee.value), basis=basis))


def _energy(inputs: Mapping[str, Setting]) -> CostLine:
    watts, pue, usd_per_kwh = inputs["watts"], inputs["pue"], inputs["electricity_usd_per_kwh"]
    return CostLine(
        name="energy",
        usd_per_hour=_micro(watts.value / 1000 * pue.value * usd_per_kwh.value),
        basis=f"{watts.basis}; {watts.value} W x PUE {_show(pue)} x {_show(usd_per_kwh)} USD/kWh",
    )


def _amortisation(inputs: Mapping[str, Setting]) -> CostLine:
    """Spread the purchase over its rented hours: straight-line wear, and interest on what is tied up on average."""
    capex, life, residual = inputs["capex_usd"], inputs["life_years"], inputs["residual_fraction"]
    rate, utilisation = inputs["capital_rate"], inputs["utilisation"]
    wear = capex.value * (1 - residual.value) / life.value
    interest = rate.value * capex.value * (1 + residual.value) / 2
    return CostLine(
        name="amortisation",
        usd_per_hour=_micro((wear + interest) / (_HOURS_A_YEAR * utilisation.value)),
        basis=f"{capex.basis}; {capex.value} USD over {_show(life)} years to a residual of {_show(residual)}, "
        f"capital at {_show(rate)} a year on the average balance, {_show(utilisation)} of hours rented",
    )


def _host(inputs: Mapping[str, Setting]) -> CostLine:
    host = inputs["host_usd_per_hour"]
    return CostLine(name="host", usd_per_hour=_micro(host.value), basis=host.basis)


def _margin(subtotal: Decimal, margin: Setting) -> CostLine:
    basis = f"computed: {_show(margin)} of the lines above"
    return CostLine(name="margin", usd_per_hour=_micro(subtotal * margin.value), basis=basis)


def _fee(net: Decimal, fraction: Decimal) -> Decimal:
    """Return the fee on the price that leaves `net` to the owner."""
    return _micro(net * fraction / (1 - fraction))


def _per_cu(price: Decimal, scored: Score) -> Decimal | None:
    return _micro(price / _exact(scored.cu_per_hour)) if scored.cu_per_hour else None


def _watts(seen: Capability, device: Device, rated: Rating | None) -> Setting | None:
    if seen.power_w is not None:
        return Setting(_exact(seen.power_w), "measured: mean power while busy")
    if device.power_limit_w is not None:
        return Setting(_exact(device.power_limit_w), "rated: the device's power limit")
    if rated:
        return Setting(rated.tdp_w, "rated: the maker's figure in the device table")
    return _per_core(device, "watts")


def _capex(device: Device, rated: Rating | None) -> Setting | None:
    if rated:
        return Setting(rated.capex_usd, f"assumed: {rated.capex_basis}, in the device table")
    return _per_core(device, "capex_usd")


def _per_core(device: Device, what: str) -> Setting | None:
    if device.kind != "cpu" or device.core_count is None:
        return None
    row = table("cost_defaults")["cpu_per_core"][what]
    basis = f"assumed: {row['value']} for each of {device.core_count} cores, {row['basis']}"
    return Setting(Decimal(row["value"]) * device.core_count, basis)


def _show(setting: Setting) -> str:
    return f"{setting.value} ({setting.basis.partition(':')[0]})"


def _exact(value: float) -> Decimal:
    """Turn a measured number, which is no money, into the decimal that it prints as: once, at the door."""
    return Decimal(repr(value))


def _micro(usd: Decimal) -> Decimal:
    return usd.quantize(_MICRO) + 0  # + 0: no price of minus zero
