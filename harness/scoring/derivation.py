"""What an hour of a device costs its owner, line by line: the floor below which standing idle is cheaper, and the price that sustains it.

Covers: each line says what it is made of and is rounded once to a micro-dollar; the lines sum to the price exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from harness.model import Capability, CostLine, Device
from harness.scoring.costs import Setting
from harness.scoring.devices import Rating
from harness.scoring.exact import MICRO, decimal_of
from harness.scoring.tables import table

__all__ = ["capex", "cost_lines", "floor_of", "running_lines", "total", "watts"]

_HOURS_A_YEAR = 8760


def running_lines(inputs: Mapping[str, Setting]) -> tuple[CostLine, ...]:
    """Return what an hour of work costs beyond standing idle: power, host, wear."""
    return _energy(inputs), _per_hour("host", inputs), _per_hour("wear", inputs)


def cost_lines(inputs: Mapping[str, Setting], running: Sequence[CostLine]) -> tuple[CostLine, ...]:
    """Return the lines of the price that sustains a device: running it, its purchase, a margin, and the marketplace's fee."""
    energy, *rest = running
    costs = (energy, _amortisation(inputs), *rest)
    margin = _margin(total(costs), inputs["margin_fraction"])
    net = total(costs) + margin.usd_per_hour
    fee = inputs["fee_fraction"]
    basis = f"computed: {_show(fee)} of the price, so that the lines above are left after it"
    return (*costs, margin, CostLine(name="fee", usd_per_hour=_fee(net, fee.value), basis=basis))


def floor_of(inputs: Mapping[str, Setting], running: Sequence[CostLine]) -> Decimal:
    """Return the price at which an hour of work pays its power, host and wear after the fee: no price is below it."""
    cost = total(running)
    return cost + _fee(cost, inputs["fee_fraction"].value)


def total(lines: Sequence[CostLine]) -> Decimal:
    """Return what lines sum to."""
    return sum((line.usd_per_hour for line in lines), Decimal(0))


def watts(seen: Capability, device: Device, rated: Rating | None) -> Setting | None:
    """Return what a device draws while busy: measured, else its limit, else its maker's word, else of a CPU by its cores."""
    if seen.power_w is not None:
        return Setting(decimal_of(seen.power_w), "measured: mean power while busy")
    if device.power_limit_w is not None:
        return Setting(decimal_of(device.power_limit_w), "rated: the device's power limit")
    if rated:
        return Setting(rated.tdp_w, "rated: the maker's figure in the device table")
    return _per_core(device, "watts")


def capex(device: Device, rated: Rating | None) -> Setting | None:
    """Return what a device costs to buy, if a table knows."""
    if rated:
        return Setting(rated.capex_usd, f"assumed: {rated.capex_basis}, in the device table")
    return _per_core(device, "capex_usd")


def _energy(inputs: Mapping[str, Setting]) -> CostLine:
    power, pue, usd_per_kwh = inputs["watts"], inputs["pue"], inputs["electricity_usd_per_kwh"]
    return CostLine(
        name="energy",
        usd_per_hour=_micro(power.value / 1000 * pue.value * usd_per_kwh.value),
        basis=f"{power.basis}; {power.value} W x PUE {_show(pue)} x {_show(usd_per_kwh)} USD/kWh",
    )


def _amortisation(inputs: Mapping[str, Setting]) -> CostLine:
    """Spread the purchase over its rented hours: straight-line wear, and interest on what is tied up on average."""
    purchase, life, residual = inputs["capex_usd"], inputs["life_years"], inputs["residual_fraction"]
    rate, utilisation = inputs["capital_rate"], inputs["utilisation"]
    lost = purchase.value * (1 - residual.value) / life.value
    interest = rate.value * purchase.value * (1 + residual.value) / 2
    return CostLine(
        name="amortisation",
        usd_per_hour=_micro((lost + interest) / (_HOURS_A_YEAR * utilisation.value)),
        basis=f"{purchase.basis}; {purchase.value} USD over {_show(life)} years to a residual of {_show(residual)}, "
        f"capital at {_show(rate)} a year on the average balance, {_show(utilisation)} of hours rented",
    )


def _per_hour(name: str, inputs: Mapping[str, Setting]) -> CostLine:
    setting = inputs[f"{name}_usd_per_hour"]
    return CostLine(name=name, usd_per_hour=_micro(setting.value), basis=setting.basis)


def _margin(subtotal: Decimal, margin: Setting) -> CostLine:
    basis = f"computed: {_show(margin)} of the lines above"
    return CostLine(name="margin", usd_per_hour=_micro(subtotal * margin.value), basis=basis)


def _fee(net: Decimal, fraction: Decimal) -> Decimal:
    """Return the fee on the price that leaves `net` to the owner."""
    return _micro(net * fraction / (1 - fraction))


def _per_core(device: Device, what: str) -> Setting | None:
    if device.kind != "cpu" or device.core_count is None:
        return None
    row = table("cost_defaults")["cpu_per_core"][what]
    basis = f"assumed: {row['value']} for each of {device.core_count} cores, {row['basis']}"
    return Setting(Decimal(row["value"]) * device.core_count, basis)


def _show(setting: Setting) -> str:
    return f"{setting.value} ({setting.basis.partition(':')[0]})"


def _micro(usd: Decimal) -> Decimal:
    return usd.quantize(MICRO) + 0  # + 0: no price of minus zero
