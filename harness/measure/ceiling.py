"""The rate no honest device can pass: what its units can do in a cycle, times the clock it was seen to run at.

The maker's sheet is no ceiling: honest cards clock past the quoted boost and pass it by up to a sixth. The measured clock is one. A
capability that the tables below do not know has no ceiling: a new card is not refused for being new.

A case that brings a roof needs no tables: its ceiling is what the same device reached in memory and in arithmetic right before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.model import Cache, Ceiling, Device, Metric, Params, TelemetrySample, Work
from harness.units import amount, quantity

if TYPE_CHECKING:
    from harness.device.backend import Backend
    from harness.registry import Roof

__all__ = ["LIMIT_FRACTION", "Reach", "ceiling", "measured_ceiling", "reach"]

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
_REACH_TRIES = 5  # of which the best counts: a neighbour must not lower a roof
_SHORTEST_S = 1e-9
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


class Reach(NamedTuple):
    """What a device was seen to do at most, for a roof."""

    bytes_per_s: float
    flops_per_s: float


def reach(roof: Roof, backend: Backend) -> Reach:
    """Measure what a roof asks for, now. Takes six runs of each; the first is for whatever comes with a first run."""

    def best_s(run: Callable[[], object]) -> float:
        times = []
        for _ in range(1 + _REACH_TRIES):
            with backend.stopwatch() as watch:
                run()
            times.append(watch.device_s)
        return max(min(times[1:]), _SHORTEST_S)

    return Reach(roof.read_bytes / best_s(roof.read), roof.multiply_flops / best_s(roof.multiply))


def measured_ceiling(roof: Roof, reached: Sequence[Reach], work: Work, metric: Metric, time_s: float) -> Ceiling:
    """Return the ceiling of a measurement by the best that was reached beside it, and what part of it the measurement was."""
    memory, arithmetic = max(r.bytes_per_s for r in reached), max(r.flops_per_s for r in reached)
    least_s = roof.least_s(memory, arithmetic)
    return Ceiling(
        rate_per_s=amount(work, metric)[0] / least_s,
        reached_fraction=least_s / time_s,
        basis=f"{memory / 1e9:.4g} GB/s read and {arithmetic / 1e12:.4g} TFLOP/s multiplied beside it",
    )


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
