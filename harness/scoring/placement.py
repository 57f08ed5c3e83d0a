"""Where a result lies among what others measured on the same model of GPU, in a sentence an operator can act on.

Covers: cards and links that the table of public numbers names exactly. Does not cover: truth. The numbers come from strangers,
with other kernels and settings: a result outside them is a reason to look, not a proof of anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from harness.model import Device, Measurement, Params, Report
from harness.scoring.devices import rating
from harness.scoring.tables import table
from harness.units import Quantity, engineering, quantity

__all__ = ["Placement", "gate", "no_public_numbers", "place", "placements"]

_TOLERANCE_FRACTION = 0.03  # many a public range is a single run, and runs of one card differ that much
_QUIET: Mapping[str, Sequence[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One result against a public range, in the unit of its quantity."""

    device_uuid: str
    quantity: str  # copy, gemm float16, pcie h2d, ...
    params: Params
    unit: str
    value_per_s: float
    low_per_s: float
    high_per_s: float
    reached_fraction: float  # of the range's high end
    lies: Literal["below", "within", "above"]
    causes: tuple[str, ...]  # what may have held it back
    sources: tuple[str, ...]
    sentence: str


def placements(report: Report, causes: Mapping[str, Sequence[str]] = _QUIET) -> tuple[Placement, ...]:
    """Return the place of each measurement for which there are public numbers.

    Args:
        report: its real GPUs are placed; an emulated one has nothing to be compared with.
        causes: for a device's uuid, in plain words what may hold it back: `power limit 250 of 450 W`.
    """
    devices = {device.uuid: device for device in report.devices if not report.emulated}
    found = (
        place(devices[m.job.device_uuid], m, causes.get(m.job.device_uuid, ()))
        for m in (outcome.measurement for outcome in report.outcomes)
        if m and m.job.device_uuid in devices
    )
    return tuple(placement for placement in found if placement)


def place(device: Device, measurement: Measurement, causes: Sequence[str] = ()) -> Placement | None:
    """Return where a measurement lies, or None where there is nothing to compare it with.

    What cannot be true has no place. A stream that a cache may have served is not compared, nor is a slice of a card.
    """
    if device.kind != "cuda" or device.emulated or measurement.state == "invalid" or _in_cache(device, measurement):
        return None
    for owner, entry in _ranges(device):
        if _is(entry["quantity"], measurement):
            state = () if measurement.state == "valid" else (measurement.reason,)
            return _placement(measurement, owner, entry, (*causes, *state))
    return None


def no_public_numbers(device: Device) -> str | None:
    """Say that there are no public numbers of a real GPU yet; None where there are."""
    if device.kind != "cuda" or device.emulated or _card(device):
        return None
    return f"no public numbers for {device.name} yet"


def gate(measurement: Measurement) -> str | None:
    """Say what is wrong with the part of its ceiling that a measurement reached; None where nothing is, or none is known."""
    if measurement.ceiling is None:
        return None
    reached = measurement.ceiling.reached_fraction
    for limits in table("public_ranges")["gates"]:
        low, high = limits["low_fraction"], limits["high_fraction"]
        if _is(limits["quantity"], measurement) and not low <= reached <= high:
            advice = (
                "find out what holds it back" if reached < low else "no such kernel reaches that: do not believe it"
            )
            expected = f"expected {low:.0%} to {high:.0%}"
            return f"{limits['quantity']}: {reached:.0%} of the {limits['of']}, {expected}: {advice}"
    return None


def _placement(m: Measurement, owner: str, entry: Mapping[str, Any], causes: tuple[str, ...]) -> Placement:
    value, unit = quantity(m.work, m.metric, m.time_s)
    low, high = float(entry["low"]), float(entry["high"])
    lies: Literal["below", "within", "above"] = "within"
    if value < low * (1 - _TOLERANCE_FRACTION):
        lies = "below"
    elif value > high * (1 + _TOLERANCE_FRACTION):
        lies = "above"
    reach = _span(low, high, unit)
    said = f"{entry['quantity']} {_text(value, unit)}: {value / high:.0%} of what {owner} reach ({reach})"
    return Placement(
        device_uuid=m.job.device_uuid,
        quantity=entry["quantity"],
        params=m.job.params,
        unit=unit,
        value_per_s=value,
        low_per_s=low,
        high_per_s=high,
        reached_fraction=value / high,
        lies=lies,
        causes=causes,
        sources=tuple(entry["sources"]),
        sentence="; ".join([said, *(causes if lies == "below" else ())]),
    )


def _span(low: float, high: float, unit: str) -> str:
    """Return `912 to 924 GB/s`: the unit once where both ends have the same prefix."""
    (first, prefixed), (last, same) = engineering(Quantity(low, unit)), engineering(Quantity(high, unit))
    if low == high:
        return _text(low, unit)
    return f"{first:.3g} to {last:.3g} {same}" if prefixed == same else f"{_text(low, unit)} to {_text(high, unit)}"


def _text(value: float, unit: str) -> str:
    shown = engineering(Quantity(value, unit))
    return f"{_digits(shown.value)} {shown.unit}"


def _digits(value: float) -> str:
    """Return three significant digits, trailing zeros too: 1.00, 23.4, 912."""
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"


def _is(name: str, measurement: Measurement) -> bool:
    """Tell whether a measurement is of a quantity that the table names."""
    kind, job = table("public_ranges")["quantities"][name], measurement.job
    return (kind["benchmark"], kind["metric"]) == (job.benchmark, measurement.metric) and kind[
        "params"
    ].items() <= job.params.items()


def _in_cache(device: Device, m: Measurement) -> bool:
    short = device.l2_bytes is not None and m.work.bytes_moved < 2 * device.l2_bytes
    return m.job.benchmark == "stream" and (m.cache == "hot" or short)


def _ranges(device: Device) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each public range of a device and of the link that it and its slot are made for, with whose it is."""
    if card := _card(device):
        yield from ((card["plural"], entry) for entry in card["ranges"])
    for link in table("public_ranges")["links"]:
        if (link["generation"], link["width"]) == (device.pcie_generation_max, device.pcie_width_max):
            owner = f"PCIe {link['generation']} x{link['width']} links"
            yield from ((owner, entry) for entry in link["ranges"])


def _card(device: Device) -> Mapping[str, Any] | None:
    """Return a card's entry, by its exact name; where the device table knows it, memory and multiprocessors fit, too."""
    name = _plain(device.name)
    known = {_plain(row["name"]) for row in table("devices")["devices"]}
    if name in known and rating(device) is None:
        return None
    cards: Sequence[Mapping[str, Any]] = table("public_ranges")["cards"]
    return next((card for card in cards if name in map(_plain, card["names"])), None)


def _plain(name: str) -> str:
    return " ".join(name.casefold().split()).removeprefix("nvidia ")
