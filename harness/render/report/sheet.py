"""Outcomes as CSV for a spreadsheet, one row each. A text that a spreadsheet would run as a formula is made one that it shows."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from typing import TextIO

from harness.model import Device, Outcome, Report
from harness.units import energy_per_unit, quantity, rate_interval

__all__ = ["write_csv"]

_HEAD = (
    "node", "created_at", "emulated", "device", "device_name", "kind", "benchmark", "version", "params", "regime", "ended", "reason",
    "value", "low", "high", "unit", "time_s", "clock_mhz", "energy_per_unit_j", "energy_unit", "outcome_digest", "report_digest",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
Cell = str | int | float | bool | None


def write_csv(reports: Iterable[Report], file: TextIO) -> int:
    """Write the outcomes of reports, and return how many there are; unknown values are empty cells."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEAD)
    count = 0
    for report in reports:
        for row in _rows(report):
            writer.writerow([_cell(value) for value in row])
            count += 1
    return count


def _cell(value: Cell) -> Cell:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows(report: Report) -> Iterator[tuple[Cell, ...]]:
    devices = {d.uuid: d for d in report.devices}
    for outcome, digest in zip(report.outcomes, report.seal.outcomes, strict=True):
        yield (
            report.node.name,
            report.created_at,
            report.emulated,
            *_what(outcome, devices),
            *_numbers(outcome),
            digest,
            report.seal.digest,
        )


def _what(outcome: Outcome, devices: dict[str, Device]) -> tuple[Cell, ...]:
    """Return the device, the job, and how it ended."""
    held = outcome.measurement or outcome.skipped or outcome.failed
    assert held is not None  # noqa: S101 - a verified report's outcome holds one
    job, device = held.job, devices.get(held.job.device_uuid)
    ended = (
        outcome.measurement.state if outcome.measurement else outcome.failed.outcome if outcome.failed else "skipped"
    )
    name, kind = (device.name, device.kind) if device else (None, None)
    params = json.dumps(dict(job.params), sort_keys=True)
    return job.device_uuid, name, kind, job.benchmark, job.version, params, job.regime, ended, held.reason


def _numbers(outcome: Outcome) -> tuple[Cell, ...]:
    m = outcome.measurement
    if m is None:
        return (None,) * 8
    value, (low, high), energy = quantity(m.work, m.metric, m.time_s), rate_interval(m), energy_per_unit(m)
    joules = (None, None) if energy is None else (energy.value, energy.unit)
    return value.value, low.value, high.value, value.unit, m.time_s, m.clock_mhz, *joules
