"""The rate no honest device can pass: what its units can do in a cycle, times the clock it was seen to run at.

The maker's sheet is no ceiling: honest cards clock past the quoted boost and pass it by up to a sixth. The measured clock is one. A
capability that the tables below do not know has no ceiling: a new card is not refused for being new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.model import Cache, Ceiling, Device, Metric, Params, TelemetrySample, Work
from harness.units import quantity

__all__ = ["LIMIT_FRACTION", "ceiling"]

LIMIT_FRACTION = 1.02  # what the clock's own reading may be off

# Fused multiply-adds a cycle and multiprocessor: the most that any of its units, tensor cores among them, does in a type. From the
# architectures' tuning guides and white papers; with the boost clock they give the published dense peaks.
_FMA_PER_CYCLE: Mapping[str, Mapping[str, int]] = {
    "float64": {"7.5": 2, "8.0": 64, "8.6": 2, "8.9": 2, "9.0": 128, "10.0": 64, "12.0": 2},
    "float32": {"7.5": 64, "8.0": 64, "8.6": 128, "8.7": 128, "8.9": 128, "9.0": 128, "10.0": 128, "10.3": 128, "12.0": 128},
    "tfloat32": {"8.0": 512, "8.6": 256, "8.9": 256, "9.0": 1024, "10.0": 2048, "12.0": 256},
    "float16": {"7.5": 512, "8.0": 1024, "8.6": 512, "8.9": 512, "9.0": 2048, "10.0": 4096, "10.3": 4096, "12.0": 512},
    "bfloat16": {"8.0": 1024, "8.6": 512, "8.9": 512, "9.0": 2048, "10.0": 4096, "10.3": 4096, "12.0": 512},
    "int8": {"7.5": 1024, "8.0": 2048, "8.6": 1024, "8.9": 1024, "9.0": 4096, "10.0": 8192, "12.0": 1024},
    "float8_e4m3": {"8.9": 1024, "9.0": 4096, "10.0": 8192, "10.3": 8192, "12.0": 1024},
}  # fmt: skip
_TRANSFERS_PER_CYCLE = 2  # NVML tells half of a memory's data rate, for GDDR and HBM alike


def ceiling(  # noqa: PLR0913 - a rate, and all that it follows from
    device: Device,
    params: Params,
    work: Work,
    metric: Metric,
    time_s: float,
    *,
    cache: Cache,
    clock_mhz: float | None,
    telemetry: Sequence[TelemetrySample],
) -> Ceiling | None:
    """Return the ceiling of a measurement and what part of it was reached; None where none is known."""
    if device.kind != "cuda" or work.nominal:
        return None
    if metric == "compute":
        found = _compute(device, str(params.get("dtype", "")), clock_mhz, telemetry)
    elif metric == "bandwidth" and cache == "cold":
        found = _memory(device, telemetry)
    else:
        found = None
    if found is None:
        return None
    rate, basis = found
    return Ceiling(rate_per_s=rate, reached_fraction=quantity(work, metric, time_s).value / rate, basis=basis)


def _compute(
    device: Device, dtype: str, clock_mhz: float | None, telemetry: Sequence[TelemetrySample]
) -> tuple[float, str] | None:
    fma = _FMA_PER_CYCLE.get(dtype, {}).get(device.compute_capability or "")
    told = [s.sm_clock_mhz for s in telemetry if s.sm_clock_mhz is not None]
    clock, source = (clock_mhz, "measured") if clock_mhz else (max(told, default=None), "highest told")
    if fma is None or device.sm_count is None or clock is None:
        return None
    basis = f"{device.sm_count} multiprocessors x {fma} {dtype} multiply-adds x {clock:.0f} MHz {source}"
    return 2 * fma * device.sm_count * clock * 1e6, basis


def _memory(device: Device, telemetry: Sequence[TelemetrySample]) -> tuple[float, str] | None:
    told = [s.memory_clock_mhz for s in telemetry if s.memory_clock_mhz is not None]
    if device.memory_bus_bits is None or not told:
        return None
    clock = max(told)  # an idle memory runs slower; honest cards caught at it must not look impossible
    rate = _TRANSFERS_PER_CYCLE * clock * 1e6 * device.memory_bus_bits / 8
    return rate, f"{device.memory_bus_bits} bits x {_TRANSFERS_PER_CYCLE} x {clock:.0f} MHz told"
