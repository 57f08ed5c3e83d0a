"""Compares two reports: what got faster, what slower, what stayed the same, and what cannot be told.

A baseline is a file that somebody chose by a policy: a release, a certified run, the median of a fleet. It is never "the last run": one
lucky run would then be the measure of all honest ones after it.

Decided is only what both readings agree on: the time of a run, and its cycles (time by the clock it ran at), so that neither a clock
that moved nor a cold day counts as progress. Not promised: that the difference comes from the code. Read the remarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from harness.model import Device, Job, Measurement, Outcome, Params, Regime, Report

__all__ = ["LEAST_FRACTION", "Basis", "Comparison", "Decision", "anything_decided", "compare", "regressed", "remarks"]

LEAST_FRACTION = 0.01  # a smaller change is not worth a word

Decision = Literal["faster", "slower", "same", "ambiguous", "broken", "mended", "missing", "not_comparable"]
Basis = Literal["time and cycles", "time only"]

_NO_MEASURE = frozenset({"invalid", "throttled"})
_UNSETTLED = frozenset({"drifting", "not_steady"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One point of one benchmark on one device in two reports. A change is B's speed against A's: +0.02 is 2 % faster."""

    benchmark: str
    version: int  # of A where both have it
    params: Params
    regime: Regime
    device: str  # selector, as A calls it where both have it
    decision: Decision
    reason: str
    basis: Basis | None = None  # what was compared, None where nothing was
    change_fraction: float | None = None
    low_fraction: float | None = None
    high_fraction: float | None = None  # None with a change: unbounded
    cycles_change_fraction: float | None = None


class _Ratio(NamedTuple):
    """B's speed over A's with the ends of its interval, and the half widths of both, relative."""

    value: float
    low: float
    high: float
    half_a: float
    half_b: float


def compare(a: Report, b: Report) -> tuple[Comparison, ...]:
    """Compare report B with baseline A: one comparison for each point that either of them measured, in A's order, then B's.

    Points are paired by benchmark, parameters, regime and device: the same device where both reports have it, else the device
    of the same kind in the same place. The reports are taken as they are: who holds them has verified them.
    """
    places = _places(a, b)
    ours, theirs = _outcomes(a, {d.uuid: d.uuid for d in a.devices}), _outcomes(b, places)
    selectors = {d.uuid: d.selector for d in (*b.devices, *a.devices)}
    keys = dict.fromkeys((*ours, *theirs))
    emulated = a.emulated or b.emulated
    found = (_compare(ours.get(k), theirs.get(k), selectors.get(k[-1], k[-1]), emulated=emulated) for k in keys)
    return tuple(c for c in found if c is not None)


def regressed(comparisons: Sequence[Comparison]) -> bool:
    """Tell whether anything got slower, or came to nothing where the baseline did not."""
    return any(c.decision in {"slower", "broken"} for c in comparisons)


def anything_decided(comparisons: Sequence[Comparison]) -> bool:
    """Tell whether any point could be compared: reports that have none in common show no regression, and nothing else."""
    return any(c.decision not in {"missing", "not_comparable"} for c in comparisons)


def remarks(a: Report, b: Report) -> tuple[str, ...]:
    """Say what a reader of the comparison must know: what else differs between the two reports."""
    return tuple(_remarks(a, b))


def _remarks(a: Report, b: Report) -> Iterator[str]:
    if _is_same(a, b):
        yield "this is one report compared with itself: nothing can differ"
    for name, report in (("A", a), ("B", b)):
        if report.emulated:
            yield f"{name} was made on an emulated device: its times mean nothing and are not compared"
    places = {before: now for now, before in _places(a, b).items()}
    theirs = {d.uuid: d for d in b.devices}
    for device in a.devices:
        other = theirs.get(places.get(device.uuid, ""))
        if other is not None:
            yield from _differences(device, other)
    for name in ("harness_version", "python", "os"):
        before, now = getattr(a.environment, name), getattr(b.environment, name)
        if before != now:
            yield f"{name} was {before}, is {now}"
    if a.preset != b.preset:
        yield f"preset was {a.preset}, is {b.preset}"


def _differences(a: Device, b: Device) -> Iterator[str]:
    if a.uuid != b.uuid:
        yield f"{a.selector} is another device: was {a.name} ({a.uuid}), is {b.name} ({b.uuid})"
    for name in ("driver", "vbios", "power_limit_w", "ecc_enabled", "mig_enabled"):
        before, now = getattr(a, name), getattr(b, name)
        if before != now:
            yield f"{name} of {a.selector} was {_word(before)}, is {_word(now)}"


def _word(value: object) -> str:
    return "unknown" if value is None else str(value)


def _is_same(a: Report, b: Report) -> bool:
    return (a.seal.digest, a.seal.outcomes) == (b.seal.digest, b.seal.outcomes)


_Key = tuple[str, str, Regime, str]


def _places(a: Report, b: Report) -> Mapping[str, str]:
    """Return for each device of B the uuid of the device of A that it is compared with; its own where there is none."""
    known = {d.uuid for d in a.devices}
    shared = known & {d.uuid for d in b.devices}
    free = {(d.kind, d.selector): d.uuid for d in a.devices if d.uuid not in shared}
    return {d.uuid: d.uuid if d.uuid in shared else free.get((d.kind, d.selector), d.uuid) for d in b.devices}


def _outcomes(report: Report, places: Mapping[str, str]) -> dict[_Key, Outcome]:
    found: dict[_Key, Outcome] = {}
    for outcome in report.outcomes:
        job = _job(outcome)
        params = repr(sorted(job.params.items()))
        found[job.benchmark, params, job.regime, places.get(job.device_uuid, job.device_uuid)] = outcome
    return found


def _job(outcome: Outcome) -> Job:
    result = outcome.measurement or outcome.skipped or outcome.failed
    assert result is not None  # noqa: S101 - a verified report's outcome holds one
    return result.job


def _compare(before: Outcome | None, now: Outcome | None, device: str, *, emulated: bool) -> Comparison | None:
    known = before or now
    assert known is not None  # noqa: S101 - the key came from one of them
    job = _job(known)
    old = before.measurement if before else None
    new = now.measurement if now else None
    if old is None and new is None:
        return None
    blank = Comparison(
        benchmark=job.benchmark,
        version=job.version,
        params=job.params,
        regime=job.regime,
        device=device,
        decision="not_comparable",
        reason="",
    )
    if old is None:
        failed = before is not None and before.failed is not None
        return replace(blank, decision="mended" if failed else "missing", reason=f"A: {_absence(before)}")
    if new is None:
        failed = now is not None and now.failed is not None
        return replace(blank, decision="broken" if failed else "missing", reason=f"B: {_absence(now)}")
    obstacle = "emulated: its times mean nothing" if emulated else _obstacle(old, new)
    if obstacle:
        return replace(blank, reason=obstacle)
    useless = {
        name: f"{name} is {m.state}: {m.reason}" for name, m in (("A", old), ("B", new)) if m.state in _NO_MEASURE
    }
    if useless:  # in A alone or in B alone, the card or its cooling has changed
        decision: Decision = "not_comparable" if len(useless) == 2 else "broken" if "B" in useless else "mended"  # noqa: PLR2004
        return replace(blank, decision=decision, reason="; ".join(useless.values()))
    return _decided(blank, old, new)


def _absence(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not in the report"
    if outcome.failed is not None:
        return f"{outcome.failed.outcome}: {outcome.failed.reason}"
    return f"skipped: {outcome.skipped.reason}" if outcome.skipped else "nothing"


def _obstacle(a: Measurement, b: Measurement) -> str:
    if a.job.version != b.job.version:
        return f"version {a.job.version} of the benchmark against version {b.job.version}"
    if a.work != b.work:
        return "the same parameters, but other work"
    if a.cache != b.cache:
        return f"cache {a.cache} against {b.cache}"
    return ""


def _decided(blank: Comparison, a: Measurement, b: Measurement) -> Comparison:
    clocks = (a.clock_mhz, b.clock_mhz) if a.clock_mhz and b.clock_mhz else None
    time = _ratio(a, b, 1.0)
    cycles = _ratio(a, b, clocks[0] / clocks[1]) if clocks else None
    decision, reason = _by_both(time, cycles, clocks)
    unsettled = [f"{name} was {m.state}" for name, m in (("A", a), ("B", b)) if m.state in _UNSETTLED]
    if unsettled:
        decision, reason = "ambiguous", f"{' and '.join(unsettled)}: no interval can be vouched for"
    return replace(
        blank,
        decision=decision,
        reason=reason,
        basis="time and cycles" if cycles else "time only",
        change_fraction=time.value - 1,
        low_fraction=time.low - 1,
        high_fraction=None if math.isinf(time.high) else time.high - 1,
        cycles_change_fraction=cycles.value - 1 if cycles else None,
    )


def _ratio(a: Measurement, b: Measurement, scale: float) -> _Ratio:
    """Return B's speed over A's; with A's clock over B's as `scale` it is a ratio of cycles."""
    return _Ratio(
        scale * a.time_s / b.time_s,
        scale * a.interval.low_s / b.interval.high_s,
        scale * a.interval.high_s / b.interval.low_s if b.interval.low_s else math.inf,
        (a.interval.high_s - a.interval.low_s) / 2 / a.time_s,
        (b.interval.high_s - b.interval.low_s) / 2 / b.time_s,
    )


def _by_both(time: _Ratio, cycles: _Ratio | None, clocks: tuple[float, float] | None) -> tuple[Decision, str]:
    decision, reason = _by_one(time)
    if cycles is None or clocks is None:
        return decision, f"{reason}; time only: a clock is not known"
    in_cycles, _ = _by_one(cycles)
    if decision not in {in_cycles, "ambiguous"}:
        moved = f"the clock was {clocks[0]:.0f} MHz, is {clocks[1]:.0f} MHz"
        return "ambiguous", f"{decision} in time, {in_cycles} in cycles ({cycles.value - 1:+.1%}): {moved}"
    return decision, reason


def _by_one(ratio: _Ratio) -> tuple[Decision, str]:
    """Decide by one ratio; exchanging the reports inverts it and must give the mirror image."""
    least = 1 + LEAST_FRACTION
    if 1 / least < ratio.low and ratio.high < least:
        return "same", f"less than {LEAST_FRACTION:.0%} apart for certain"
    widths = f"±{ratio.half_a:.1%} and ±{ratio.half_b:.1%}"
    if ratio.low <= 1 <= ratio.high:
        if ratio.half_a + ratio.half_b <= LEAST_FRACTION:
            return "same", f"the intervals overlap, and {widths} would have shown {LEAST_FRACTION:.0%}"
        return "ambiguous", f"the intervals overlap, and {widths} are too wide to show {LEAST_FRACTION:.0%}"
    if 1 / least < ratio.value < least:
        return "ambiguous", f"the intervals part, but by a change that may be under {LEAST_FRACTION:.0%}"
    return ("faster" if ratio.value > 1 else "slower"), "the intervals part"
