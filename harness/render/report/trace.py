"""Telemetry over a session, on one clock with the benchmarks that ran meanwhile.

A record says when its job was set up, to the second, and its samples count from when the jobs of its group began to be timed. The groups are
found again from both, so what is drawn side by side was side by side to about a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise

from harness.model import Device, Measurement, TelemetrySample
from harness.render.report.views import Band, Lane, Sample, Tone, Trace
from harness.render.report.words import label

__all__ = ["missing_sensors", "trace"]

_SAMPLES_MOST = 600  # as many as a wide screen tells apart
_ROUNDS_MOST = 120  # of one lane
_LANES_MOST = 80
_STEP_S = 1.0  # what a start's seconds leave open
_GLANCE_S = 0.1  # the width of what was seen once
_LONGEST_GAP_S = 3.0  # a state that was seen lasts until the next look, if that comes soon
_SHOWN = ("power", "sm_clock", "temperature", "throttle")
_QUIET = frozenset({"none", "gpu_idle", "idle", "applications_clocks", "app_clocks"})  # no hardware held back by these
_HEAT = ("thermal", "slowdown", "brake")


def trace(device: Device, measured: Sequence[Measurement]) -> Trace:
    """Return what the sensors of a device told over a session, thinned out to what can be seen."""
    placed = _placed(measured)
    begun = min((start for start, _ in placed), default=0.0)
    seen: dict[float, TelemetrySample] = {}
    for start, m in placed:
        seen |= {round(start - begun + s.at_s, 3): s for s in m.telemetry}
    moments = sorted(seen.items())
    samples = [Sample(t, s.power_w, s.sm_clock_mhz, s.temperature_c) for t, s in moments]
    lanes = [_lane(start - begun, m) for start, m in placed]
    return Trace(
        end_s=max([*(lane.end_s for lane in lanes), *(t for t, _ in moments), 1.0]),
        samples=_thinned(samples),
        sample_count=len(samples),
        bands=tuple(_bands(moments)),
        lanes=tuple(lanes[:_LANES_MOST]),
        power_limit_w=device.power_limit_w,
        missing=_missing(device, samples),
    )


def _placed(measured: Sequence[Measurement]) -> list[tuple[float, Measurement]]:
    """Return each measurement with the moment that its times count from, in seconds of the calendar."""
    ordered = sorted(((_epoch_s(m), m) for m in measured), key=lambda one: one[0])
    groups: list[list[tuple[float, Measurement]]] = []
    ends_s = float("-inf")
    for start, m in ordered:
        if not groups or start > ends_s - _STEP_S:
            groups.append([])
            ends_s = start
        groups[-1].append((start, m))
        ends_s = max(ends_s, start + _last_s(m))
    return [(group[-1][0], m) for group in groups for _, m in group]


def _epoch_s(m: Measurement) -> float:
    try:
        return datetime.fromisoformat(m.started_at).timestamp()
    except (ValueError, OverflowError, OSError):  # a stranger's report may say anything here
        return 0.0


def _last_s(m: Measurement) -> float:
    ends = [r.at_s + r.batch * sum(r.times_s) for r in m.rounds]
    return max([*ends, *(s.at_s for s in m.telemetry)], default=m.elapsed_s)


def _lane(start_s: float, m: Measurement) -> Lane:
    rounds = [start_s + r.at_s for r in m.rounds][:_ROUNDS_MOST]
    first = min([*rounds, *(start_s + s.at_s for s in m.telemetry[:1])], default=start_s)
    return Lane(label(m.job), first, start_s + _last_s(m), tuple(rounds), m.state)


def _thinned(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Keep of each stretch the samples with the least and the most power, so that no peak is lost."""
    if len(samples) <= _SAMPLES_MOST:
        return tuple(samples)
    width = -(-len(samples) * 2 // _SAMPLES_MOST)
    kept: list[Sample] = []
    for at in range(0, len(samples), width):
        stretch = samples[at : at + width]
        ends = {min(stretch, key=_height), max(stretch, key=_height)}
        kept += sorted(ends, key=lambda s: s.at_s)
    return tuple(kept)


def _height(sample: Sample) -> float:
    return next((v for v in (sample.power_w, sample.clock_mhz, sample.temperature_c) if v is not None), 0.0)


def _bands(moments: Sequence[tuple[float, TelemetrySample]]) -> Iterator[Band]:
    """Yield the times in which a reason to hold back was told, joined where the same one goes on."""
    open_band: Band | None = None
    for (at_s, sample), (next_s, _) in pairwise(moments):
        reasons = sorted(set(sample.throttle_reasons or ()) - _QUIET)
        end_s = next_s if next_s - at_s <= _LONGEST_GAP_S else at_s + _GLANCE_S
        told = ", ".join(reasons)
        if open_band and open_band.reasons == told and at_s <= open_band.end_s:
            open_band = open_band._replace(end_s=end_s)
            continue
        if open_band:
            yield open_band
        open_band = Band(at_s, end_s, told, _tone(reasons)) if told else None
    if open_band:
        yield open_band


def _tone(reasons: Sequence[str]) -> Tone:
    return "bad" if any(word in reason for reason in reasons for word in _HEAT) else "fair"


def missing_sensors(device: Device) -> tuple[str, ...]:
    """Say which sensors of a device cannot be read, and why."""
    states: dict[str, list[str]] = {}
    for name, state in device.sensors.items():
        if state != "ok":
            states.setdefault(state.replace("_", " "), []).append(name)
    return tuple(f"{', '.join(sorted(names))}: {state}" for state, names in sorted(states.items()))


def _missing(device: Device, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Say what is not drawn, and why."""
    told = {
        "power": any(s.power_w is not None for s in samples),
        "clock": any(s.clock_mhz is not None for s in samples),
        "temperature": any(s.temperature_c is not None for s in samples),
    }
    names = {"clock": "sm_clock"}
    return tuple(
        f"{what}: {(device.sensors.get(names.get(what, what)) or 'no sensor told any').replace('_', ' ')}"
        for what, known in told.items()
        if not known
    )
