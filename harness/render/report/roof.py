"""The roofline of a device by what it did itself in one session: its best bandwidth, its best arithmetic, and every kernel under them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.model import Device, Measurement
from harness.render.report.views import Peak, Roof, RoofPoint
from harness.render.report.words import label, percent, shown, tame
from harness.units import quantity

__all__ = ["dtype_of", "roof"]

_ARITHMETIC = frozenset(
    {"batched_gemm", "burn", "fma", "gemm", "mma"}
)  # what stands for the most a device can calculate
_SPELT = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3"}
_USUAL = "float32"  # of kernels that do not name a type


def dtype_of(m: Measurement) -> str:
    """Return the type that a kernel calculates in: as its parameters or its model's name say, else float32."""
    named = m.job.params.get("dtype")
    if isinstance(named, str):
        return named
    model = str(m.job.params.get("model", ""))
    return _SPELT.get(model.rpartition(":")[2], _USUAL)


def roof(device: Device, measured: Sequence[Measurement]) -> Roof:
    """Return a device's roof and the kernels under it; results that cannot be true set no roof and get no point."""
    sound = [m for m in measured if m.state != "invalid"]
    streams = [m for m in sound if m.job.benchmark == "stream" and _from_memory(device, m)]
    best = max(streams, key=_bytes_per_s, default=None)
    bandwidth = None if best is None else _bytes_per_s(best)
    peaks = _peaks(sound)
    placed = sorted((m for m in sound if m.work.flops and m.work.bytes_moved), key=_intensity)
    return Roof(
        bytes_per_s=bandwidth,
        bandwidth_source="" if best is None else label(best.job),
        peaks=peaks,
        points=tuple(_point(i, device, m, bandwidth, peaks) for i, m in enumerate(placed, 1)),
        left_out=tuple(_left_out(device, sound, bandwidth)),
    )


def _peaks(sound: Sequence[Measurement]) -> tuple[Peak, ...]:
    found: dict[str, Measurement] = {}
    for m in sound:
        if m.job.benchmark in _ARITHMETIC and m.work.flops and not m.work.nominal:
            dtype = dtype_of(m)
            found[dtype] = max(found.get(dtype, m), m, key=_flops_per_s)
    rates = [Peak(dtype=d, flops_per_s=_flops_per_s(m), source=label(m.job)) for d, m in found.items()]
    return tuple(sorted(rates, key=lambda p: -p.flops_per_s))


def _point(number: int, device: Device, m: Measurement, bandwidth: float | None, peaks: Sequence[Peak]) -> RoofPoint:
    dtype = dtype_of(m)
    peak = next((p.flops_per_s for p in peaks if p.dtype == dtype), None)
    limit, allowed = _limit(m, bandwidth, peak, in_memory=_from_memory(device, m))
    return RoofPoint(
        number=number,
        label=label(m.job),
        dtype=dtype,
        flops_per_byte=_intensity(m),
        flops_per_s=_flops_per_s(m),
        limit=limit,
        reached_fraction=None if allowed is None else _flops_per_s(m) / allowed,
        counting="operations by convention" if m.work.nominal else "operations counted",
    )


def _limit(m: Measurement, bandwidth: float | None, peak: float | None, *, in_memory: bool) -> tuple[str, float | None]:
    """Return what limits a kernel, and the rate that this allows."""
    if bandwidth is None or peak is None:
        return "no roof measured for it", None
    by_memory = bandwidth * _intensity(m)
    if by_memory >= peak:
        return "arithmetic", peak
    return ("memory", by_memory) if in_memory else ("a cache serves it", None)


def _from_memory(device: Device, m: Measurement) -> bool:
    """Tell whether a kernel's data came from memory: from a cache it comes faster, and memory's roof is not its own."""
    if device.emulated:  # an emulator has no caches, whatever it says, and is given work that would fit into any
        return True
    caches = max((size for size in (device.l2_bytes, device.l3_bytes) if size), default=0)
    held = m.footprint_bytes if m.footprint_bytes is not None else m.work.bytes_moved
    return m.cache != "hot" and held > caches


def _left_out(device: Device, sound: Sequence[Measurement], bandwidth: float | None) -> Iterator[str]:
    for m in sound:
        value = quantity(m.work, m.metric, m.time_s)
        told = f"{label(m.job)}: {shown(value.value, value.unit)}"
        if m.work.flops and m.work.bytes_moved:
            continue
        if m.metric == "bandwidth" and bandwidth and _from_memory(device, m):
            yield f"{told}, {percent(_bytes_per_s(m) / bandwidth)} of the memory roof; it calculates nothing"
        elif m.metric == "bandwidth":
            yield f"{told}; it calculates nothing"
        elif m.work.flops:
            yield f"{told}; it moves no data"
        else:
            yield f"{told}; counted by the {tame(m.work.item, 60)}, not in operations"


def _intensity(m: Measurement) -> float:
    return m.work.flops / m.work.bytes_moved


def _flops_per_s(m: Measurement) -> float:
    return m.work.flops / m.time_s


def _bytes_per_s(m: Measurement) -> float:
    return m.work.bytes_moved / m.time_s
