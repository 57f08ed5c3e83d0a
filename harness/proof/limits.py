"""Numbers and dates of a report that no device and no clock can have given: whatever is concluded from a report relies on these.

Covers: what prices are computed from, beside the times: dates, watts, joules, sizes, cores.
Does not cover: whether a possible number is a true one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from harness.model import Device, Fault, Measurement, Report

__all__ = ["device_faults", "head_faults", "number_faults"]

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_MOST_W = 1e9  # of one device; drivers' own nonsense, 2^32 milliwatts, is below it
_LONGEST_S = 1e9


def head_faults(report: Report) -> Iterator[Fault]:
    """Name what is impossible in a report, its outcomes aside."""
    for name in ("created_at", "sealed_at"):
        if not _is_stamp(stamp := getattr(report, name)):
            yield Fault(path=f"$.{name}", what=f"{stamp!r} is no time, which would be as 2026-10-31T12:00:00Z")
    for i, device in enumerate(report.devices):
        yield from device_faults(device, f"$.devices[{i}]")


def device_faults(device: Device, path: str) -> Iterator[Fault]:
    """Name what is impossible in what a device says of itself."""
    for name in ("memory_bytes", "core_count"):
        count = getattr(device, name)
        if count is not None and count <= 0:
            yield Fault(path=f"{path}.{name}", what=f"{count} is not more than 0")
    for name in ("power_limit_w", "power_default_limit_w"):
        if not _is_power(watts := getattr(device, name)):
            yield Fault(path=f"{path}.{name}", what=f"{watts} W is no power of a device")


def number_faults(m: Measurement, path: str) -> Iterator[Fault]:
    """Name what is impossible in the energy and the power of a measurement."""
    energy = m.energy
    if energy and not 0 < energy.window_s <= _LONGEST_S:
        yield Fault(path=f"{path}.energy.window_s", what=f"{energy.window_s} s is no time in which energy is spent")
    elif energy and not energy.disputed and not 0 <= energy.joules <= _MOST_W * energy.window_s:
        what = f"{energy.joules} J in {energy.window_s} s is no energy of a device"
        yield Fault(path=f"{path}.energy.joules", what=what)
    for i, sample in enumerate(m.telemetry):
        if sample.power_w is not None and not _is_power(sample.power_w):
            yield Fault(path=f"{path}.telemetry[{i}].power_w", what=f"{sample.power_w} W is no power of a device")


def _is_power(watts: float | None) -> bool:
    return watts is None or 0 <= watts <= _MOST_W


def _is_stamp(text: str) -> bool:
    if not _STAMP.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
