"""Made-up reports of GPUs that nobody measured: whole, sealed, and true to their own raw times, so that they verify like real ones.

The nodes are called `madeup-...`, for what is drawn from them must not be taken for a measurement.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from test_scoring import report as blank

from harness import codec, stats
from harness.model import (
    Device,
    Energy,
    Interval,
    Job,
    Measurement,
    Outcome,
    Report,
    Round,
    State,
    TelemetrySample,
    Work,
)
from harness.proof.seal import OPEN, seal

__all__ = ["A100", "MODELS", "RTX_4090", "Model", "card", "many", "node", "report_of", "session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a kind of card does, about as published."""

    name: str
    bytes_per_s: float
    flops_per_s: dict[str, float]
    power_w: float
    memory_gib: int
    sm_count: int
    l2_bytes: int
    capability: str


RTX_4090 = Model(
    name="NVIDIA GeForce RTX 4090",
    bytes_per_s=9.16e11,
    flops_per_s={"float16": 1.65e14, "float32": 5.3e13, "float64": 1.25e12},
    power_w=450.0,
    memory_gib=24,
    sm_count=128,
    l2_bytes=72 << 20,
    capability="8.9",
)
H100 = Model(
    name="NVIDIA H100 80GB HBM3",
    bytes_per_s=2.85e12,
    flops_per_s={"float16": 7.6e14, "float32": 5.2e13, "float64": 5.4e13},
    power_w=700.0,
    memory_gib=80,
    sm_count=132,
    l2_bytes=50 << 20,
    capability="9.0",
)
A100 = Model(
    name="NVIDIA A100-SXM4-80GB",
    bytes_per_s=1.74e12,
    flops_per_s={"float16": 2.65e14, "float32": 1.92e13, "float64": 1.85e13},
    power_w=400.0,
    memory_gib=80,
    sm_count=108,
    l2_bytes=40 << 20,
    capability="8.0",
)
MODELS = (RTX_4090, H100, A100)
_SENSORS: dict[str, Any] = dict.fromkeys(("energy", "power", "sm_clock", "temperature", "throttle_reasons"), "ok")


def card(model: Model, at: int, **facts: Any) -> Device:
    """Return one card of a model."""
    told: dict[str, Any] = {
        "uuid": f"GPU-0000-{at:08x}",
        "name": model.name,
        "kind": "cuda",
        "selector": f"cuda:{at % 8}",
        "memory_bytes": model.memory_gib << 30,
        "compute_capability": model.capability,
        "sm_count": model.sm_count,
        "l2_bytes": model.l2_bytes,
        "pcie_generation_max": 4,
        "pcie_width_max": 16,
        "driver": "580.95.05",
        "power_limit_w": model.power_w,
        "power_default_limit_w": model.power_w,
        "sensors": _SENSORS,
    }
    return Device(**told | facts)


def measurement(
    device: Device, benchmark: str, work: Work, metric: Any, time_s: float, dice: random.Random, *,
    noise: float = 0.002, state: State = "valid", reason: str = "", second: int = 0, watts: float | None = None, hot: bool = False, **params: Any
) -> Outcome:  # fmt: skip
    """Return a measurement whose interval follows from its rounds."""
    rounds = tuple(
        Round(at_s=1.0 + 0.5 * i, batch=1, times_s=tuple(time_s * (1 + dice.gauss(0, noise)) for _ in range(3)))
        for i in range(6)
    )
    counted = [r.times_s for r in rounds]
    centre, low, high = stats.interval(stats.medians(counted), stats.step(counted))
    job = Job(benchmark=benchmark, version=1, params=params, device_uuid=device.uuid, seed="0" * 16, regime="sustained" if watts else "burst")  # fmt: skip
    energy = None
    if watts:
        energy = Energy(joules=watts * 4, window_s=4.0, run_count=4 / centre, source="counter", scope="gpu", integral_j=watts * 4, disputed=None, idle_power_w=40.0)  # fmt: skip
    return Outcome(
        measurement=Measurement(
            job=job,
            started_at=f"2026-11-24T12:{second // 60:02}:{second % 60:02}Z",
            elapsed_s=4.0,
            work=work,
            metric=metric,
            state=state,
            reason=reason or f"it was {state}",
            time_s=centre,
            interval=Interval(
                low_s=max(low, min(map(min, counted))), high_s=high, confidence_fraction=stats.CONFIDENCE
            ),
            warmup_times_s=(),
            rounds=rounds,
            telemetry=_telemetry(device, watts, dice, hot=hot) if watts else (),
            telemetry_lost=None,
            answer_digest="a" * 64,
            cache="cold",
            footprint_bytes=1 << 33,
            energy=energy,
            clock_mhz=2520.0,
        )
    )


def _telemetry(device: Device, watts: float, dice: random.Random, *, hot: bool) -> tuple[TelemetrySample, ...]:
    limit = device.power_limit_w or watts
    samples = []
    for i in range(40):
        warm = i / 39
        reasons = (
            ("hw_thermal", "sw_power_cap") if hot and i > 24 else ("sw_power_cap",) if watts > 0.97 * limit else ()
        )
        clock = 1410.0 if hot and i > 24 else 2520 - 120 * warm
        drawn = watts * (0.7 if hot and i > 24 else min(1.0, 0.55 + i / 8)) + dice.gauss(0, 2)
        samples.append(
            TelemetrySample(at_s=i / 10, power_w=drawn, temperature_c=48 + (38 if hot else 22) * warm, sm_clock_mhz=clock, throttle_reasons=reasons)
        )  # fmt: skip
    return tuple(samples)


def session(model: Model, device: Device, seed: int = 1, *, hot: bool = False) -> list[Outcome]:
    """Return what a card did in a whole session."""
    limit_w = min(model.power_w, device.power_limit_w or model.power_w)
    dice, second = random.Random(seed), 0  # noqa: S311 - made up, not secret
    found: list[Outcome] = []

    def add(benchmark: str, work: Work, metric: Any, time_s: float, **more: Any) -> None:
        nonlocal second
        found.append(measurement(device, benchmark, work, metric, time_s, dice, second=second, **more))
        second += 6

    for op, share, flops in (("copy", 1.0, 0), ("triad", 0.985, 2)):
        work = Work(bytes_moved=3 << 30, flops=flops << 28)
        add("stream", work, "bandwidth", work.bytes_moved / (model.bytes_per_s * share), op=op, n=1 << 28, dtype="float32", watts=0.68 * limit_w)  # fmt: skip
    for dtype, rate in model.flops_per_s.items():
        work = Work(flops=2 * 8192**3, bytes_moved=3 * 8192**2 * {"float64": 8, "float32": 4, "float16": 2}[dtype])
        state: State = "throttled" if hot and dtype == "float16" else "power_capped"
        why = "hw_thermal in a round" if state == "throttled" else "at its power limit"
        add("gemm", work, "compute", work.flops / rate / (0.6 if state == "throttled" else 1), dtype=dtype, n=8192, watts=limit_w * 0.99, state=state, reason=why, hot=hot and dtype == "float16")  # fmt: skip
    for mads in (1, 4, 16, 64, 256):
        work = Work(flops=2 * mads << 27, bytes_moved=8 << 27)
        time_s = max(work.bytes_moved / (0.96 * model.bytes_per_s), work.flops / (0.9 * model.flops_per_s["float32"]))
        add("roofline", work, "compute", time_s, mads=mads, n=1 << 27)
    for name, intensity, share in (("softmax", 0.6, 0.9), ("rmsnorm", 0.4, 0.93), ("transpose", 0.0, 0.83), ("fft", 5.0, 0.7), ("reduce", 0.25, 0.97)):  # fmt: skip
        work = Work(bytes_moved=1 << 30, flops=int(intensity * (1 << 30)), nominal=name == "fft")
        add(name, work, "bandwidth", work.bytes_moved / (share * model.bytes_per_s), n=1 << 27)
    for power in range(12, 29):
        size = 1 << power
        hop_s = 14e-9 if size <= 1 << 16 else 95e-9 + 5e-9 * (power - 16) if size <= model.l2_bytes else 330e-9
        add("chase", Work(items=1 << 17, item="hop"), "latency", hop_s * (1 << 17), noise=0.006, size_bytes=size)
    return found


def report_of(name: str, *held: tuple[Device, Sequence[Outcome]]) -> Report:
    """Return a sealed report of one node."""
    outcomes = tuple(o for _, found in held for o in found)
    jobs = tuple(m.job for o in outcomes if (m := o.measurement or o.failed or o.skipped))
    whole = replace(
        blank(),
        node=replace(blank().node, name=name),
        devices=tuple(device for device, _ in held),
        emulated=any(device.emulated for device, _ in held),
        plan=jobs,
        outcomes=(),
        seal=OPEN,
    )
    return replace(seal(whole, [codec.digest(o) for o in outcomes], None), outcomes=outcomes)


def node(at: int, model: Model, *, slow: int | None = None, card_count: int = 8) -> Report:
    """Return a node of a fleet with a few points a card; one card may be slow in memory."""
    dice, held = random.Random(at), []  # noqa: S311 - made up, not secret
    for i in range(card_count):
        device = card(model, at * 8 + i)
        luck = 1 + dice.gauss(0, 0.006)
        memory = model.bytes_per_s * luck * (0.87 if i == slow else 1)
        copy, gemm = Work(bytes_moved=3 << 30), Work(flops=2 * 8192**3)
        found = [
            measurement(device, "stream", copy, "bandwidth", copy.bytes_moved / memory, dice, op="triad", n=1 << 28)
        ]
        for dtype in ("float16", "float32"):
            time_s = gemm.flops / (model.flops_per_s[dtype] * (1 + dice.gauss(0, 0.008)))
            found.append(measurement(device, "gemm", gemm, "compute", time_s, dice, dtype=dtype, n=8192))
        held.append((device, found))
    return report_of(f"madeup-{at:03}", *held)


def many(count: int, card_count: int = 8) -> list[Report]:
    """Return a fleet of three models; every fortieth node has a card that is slow in memory."""
    return [
        node(at, MODELS[at % len(MODELS)], slow=3 if at % 40 == 7 else None, card_count=card_count)
        for at in range(count)
    ]
