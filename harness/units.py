"""From work and time to a value in a unit: the only place that divides one by the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from harness.model import Measurement, Metric, Work

__all__ = [
    "Quantity",
    "amount",
    "energy_per_unit",
    "engineering",
    "metric_of",
    "net_energy_per_unit",
    "quantity",
    "rate_interval",
]


class Quantity(NamedTuple):
    """A value with its unit, decimal prefixes only."""

    value: float
    unit: str


_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


def metric_of(work: Work) -> Metric:
    """Choose the headline of a piece of work that declares none: FLOPs, else bytes, else items."""
    if work.flops:
        return "compute"
    return "bandwidth" if work.bytes_moved else "throughput"


def amount(work: Work, metric: Metric) -> tuple[int, str]:
    """Return how much of the metric one run does, and the unit of that amount."""
    match metric:
        case "compute":
            return work.flops, "FLOP"
        case "bandwidth":
            return work.bytes_moved, "B"
        case "throughput" | "latency":
            return work.items, work.item


def quantity(work: Work, metric: Metric, time_s: float) -> Quantity:
    """Turn the time of one run into the metric's value in SI units: FLOP/s, B/s, item/s or s/item."""
    count, unit = amount(work, metric)
    if metric == "latency":
        return Quantity(time_s / count, f"s/{unit}")
    return Quantity(count / time_s, f"{unit}/s")


def rate_interval(measurement: Measurement) -> tuple[Quantity, Quantity]:
    """Return the low and the high end of a measurement's value; for a latency, low is the faster end."""
    ends = [
        quantity(measurement.work, measurement.metric, t)
        for t in (measurement.interval.low_s, measurement.interval.high_s)
    ]
    low, high = sorted(ends, key=lambda q: q.value)
    return low, high


def energy_per_unit(measurement: Measurement) -> Quantity | None:
    """Return the joules that one unit of a measurement's work cost, idle power included; None where no energy is known."""
    energy = measurement.energy
    if energy is None or not energy.run_count:
        return None
    count, unit = amount(measurement.work, measurement.metric)
    return Quantity(energy.joules / energy.run_count / count, f"J/{unit}")


def net_energy_per_unit(measurement: Measurement) -> Quantity | None:
    """Return the same without what the device would have taken at rest; None where that is not known either."""
    gross, energy = energy_per_unit(measurement), measurement.energy
    if gross is None or energy is None or energy.idle_power_w is None or not energy.joules:
        return None
    return Quantity(gross.value * (1 - energy.idle_power_w * energy.window_s / energy.joules), gross.unit)


def engineering(q: Quantity) -> Quantity:
    """Scale a quantity to a readable prefix: 3.2e10 B/s is 32 GB/s, 4.1e-9 s/hop is 4.1 ns/hop."""
    if q.unit.startswith(("s/", "J/")) or q.unit == "s":
        scale, prefix = next((p for p in _SMALL if abs(q.value) >= p[0]), _SMALL[-1])
        return Quantity(q.value / scale, prefix + q.unit)
    scale, prefix = next((p for p in _PREFIXES if abs(q.value) >= p[0]), _PREFIXES[-1])
    head = q.unit.split("/", maxsplit=1)[0]
    # A prefix belongs on a unit (GB/s), not on a counted thing: those read "11 M hash/s".
    joint = prefix + q.unit if head in {"FLOP", "B", "OP"} else f"{prefix} {q.unit}".strip()
    return Quantity(q.value / scale, joint)
