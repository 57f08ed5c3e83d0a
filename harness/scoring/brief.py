"""An outcome read for its price alone: the fields that a price asks for, under their own names.

Raw times and most of the telemetry, which are nine tenths of the bytes, are passed over: it is for outcomes whose digest was taken already, so
that nothing has to be judged by them.
"""

from __future__ import annotations

from typing import cast

import msgspec

from harness.model import FailureKind, Interval, Metric, Outcome, Param, Regime, State

__all__ = ["brief"]


class _Job(msgspec.Struct, frozen=True, gc=False):
    benchmark: str
    params: dict[str, Param]
    device_uuid: str
    regime: Regime = "burst"


class _Work(msgspec.Struct, frozen=True, gc=False):
    flops: int = 0
    bytes_moved: int = 0
    items: int = 0
    item: str = ""


class _Energy(msgspec.Struct, frozen=True, gc=False):
    joules: float
    window_s: float
    disputed: str | None


class _Sample(msgspec.Struct, frozen=True, gc=False):
    power_w: float | None = None
    ecc_uncorrected_count: int | None = None


class _Measurement(msgspec.Struct, frozen=True, gc=False):
    job: _Job
    work: _Work
    metric: Metric
    state: State
    reason: str
    interval: Interval
    telemetry: tuple[_Sample, ...]
    energy: _Energy | None = None


class _Failed(msgspec.Struct, frozen=True, gc=False):
    job: _Job
    outcome: FailureKind
    reason: str


class _Outcome(msgspec.Struct, frozen=True, gc=False):
    measurement: _Measurement | None = None
    failed: _Failed | None = None


_READER = msgspec.json.Decoder(_Outcome, strict=True)


def brief(data: bytes) -> Outcome | None:
    """Return what a price needs of an outcome's canonical bytes; None where it takes the whole outcome, or where it is none."""
    try:
        found = _READER.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if found.measurement and not found.measurement.interval.low_s:
        return None  # its fast end is then the fastest raw time
    return cast("Outcome", found)
