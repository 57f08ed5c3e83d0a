"""Measurements as a pandas table: the package's only door to pandas, which is loaded on the first call."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.scoring.capability import results
from harness.units import quantity

if TYPE_CHECKING:
    import pandas as pd

    from harness.model import Measurement, Report

__all__ = ["frame", "texts", "value_of"]

_TYPES = {
    "node": "string",
    "device": "string",
    "device_name": "string",
    "kind": "string",
    "benchmark": "string",
    "version": "int64",
    "params": "string",
    "value": "float64",
    "unit": "string",
    "low": "float64",
    "high": "float64",
    "state": "string",
    "reason": "string",
    "digest": "string",
}


def frame(*reports: Report) -> pd.DataFrame:
    """Return one row a measurement, in the order of the reports.

    `device` is the UUID; `params` is JSON text, keys sorted; `value`, `low` and `high` are in `unit`; `digest` names
    the outcome. Skipped and failed points have no row.

    Raises:
        ForgeryError: the seal does not name each outcome.
    """
    import pandas as pd

    rows = [row for report in reports for row in _rows(report)]
    return pd.DataFrame(rows, columns=list(_TYPES)).astype(_TYPES)


def texts(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Return rows of text as a table whose columns are all text: amounts that no float may touch."""
    import pandas as pd

    return pd.DataFrame([[row[name] for name in columns] for row in rows], columns=list(columns)).astype("string")


def _rows(report: Report) -> list[dict[str, object]]:
    return [_row(report, m, digest) for m, digest in results(report)]


def _row(report: Report, m: Measurement, digest: str) -> dict[str, object]:
    device = next(d for d in report.devices if d.uuid == m.job.device_uuid)
    low, high = sorted(value_of(m, t) for t in (m.interval.low_s, m.interval.high_s))
    return {
        "node": report.node.name,
        "device": device.uuid,
        "device_name": device.name,
        "kind": device.kind,
        "benchmark": m.job.benchmark,
        "version": m.job.version,
        "params": json.dumps(dict(m.job.params), sort_keys=True),
        "value": value_of(m, m.time_s),
        "unit": quantity(m.work, m.metric, m.time_s).unit,
        "low": low,
        "high": high,
        "state": m.state,
        "reason": m.reason,
        "digest": digest,
    }


def value_of(m: Measurement, time_s: float) -> float:
    """Return the metric's value; a rate in no time at all, the open end of an interval, is infinite."""
    return quantity(m.work, m.metric, time_s).value if time_s or m.metric == "latency" else math.inf
