"""From a report to what each device was shown to do: the low end of each interval, never the best run.

Covers: lucky runs (the interval's slow end counts), results in a bad state, memory rates taken in a cache, classes of work that were tried
and gave nothing that counts: they are named, and nothing that flatters stands in for them.
Does not cover: invented times, or points left out of a plan. Whether a report is true is for `harness.proof` to say.
"""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import ForgeryError
from harness.model import Capability, Device, Failed, Job, Measurement, Metric, Param, Rate, Report, State
from harness.scoring.health import ailments
from harness.units import amount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Result", "capability", "counted", "results"]


class Result(NamedTuple):
    """A measurement, and the digest by which the seal names its outcome."""

    measurement: Measurement
    digest: str


class _Rule(NamedTuple):
    """Which results stand for a class of work, and what is counted in them."""

    work_class: str
    benchmark: str
    metric: Metric
    where: Mapping[str, Param]
    size: str | None = None  # only results with the largest value of this parameter stand for the class


# The first rule that was tried gives the class, or leaves it without a rate. A chase is counted as hops per second, so that larger is better.
_RULES = (
    _Rule("decode", "sustained_decode", "throughput", {}),
    _Rule("decode", "decode", "throughput", {"depth": 0}),
    _Rule("fft", "fft", "compute", {}),
    _Rule("gemm_bf16", "gemm", "compute", {"dtype": "bfloat16"}),
    _Rule("gemm_fp16", "gemm", "compute", {"dtype": "float16"}),
    _Rule("gemm_fp32", "gemm", "compute", {"dtype": "float32"}),
    _Rule("gemm_fp64", "gemm", "compute", {"dtype": "float64"}),
    _Rule("gemm_fp8", "gemm", "compute", {"dtype": "float8_e4m3"}),
    _Rule("gemm_int8", "gemm", "compute", {"dtype": "int8"}),
    _Rule("gemm_tf32", "gemm", "compute", {"dtype": "tfloat32"}),
    _Rule("hash", "sha256", "throughput", {}),
    _Rule("latency", "chase", "throughput", {}, size="size_bytes"),
    _Rule("mem", "stream", "bandwidth", {"op": "triad"}, size="n"),
    _Rule("mem", "stream", "bandwidth", {"op": "copy"}, size="n"),
    _Rule("p2p", "p2p", "bandwidth", {"direction": "to"}, size="n"),
    _Rule("prefill", "prefill", "throughput", {"length": 512}),
    _Rule("rays", "pathtrace", "throughput", {}),
    _Rule("sort", "sort", "throughput", {}, size="n"),
)
_STEADY: frozenset[State] = frozenset({"valid", "power_capped", "thermally_limited"})
# A CPU shares its machine with everything else; its lower bound stays honest, and no GPU price depends on it.
_RESTLESS: frozenset[State] = frozenset({"noisy", "drifting", "not_steady"})


class _Judged(NamedTuple):
    """A result, why it may not count, and what of its job is asked for often."""

    result: Result
    objection: str | None
    params: Mapping[str, Param]


def capability(report: Report) -> tuple[Capability, ...]:
    """Return what each device with a result, good or bad, has shown, in the report's order of devices.

    Raises:
        ForgeryError: the seal does not name each outcome.
    """
    tried: dict[str, list[Result]] = {}
    for result in results(report):
        tried.setdefault(result.measurement.job.device_uuid, []).append(result)
    failed: dict[str, list[Failed]] = {}
    for outcome in report.outcomes:
        if outcome.failed:
            failed.setdefault(outcome.failed.job.device_uuid, []).append(outcome.failed)
    return tuple(
        _capability(report, device, tried.get(device.uuid, []), failed.get(device.uuid, []))
        for device in report.devices
        if device.uuid in tried or device.uuid in failed
    )


def results(report: Report) -> list[Result]:
    """Return a report's measurements, each with its digest.

    Raises:
        ForgeryError: the seal does not name each outcome.
    """
    if len(report.seal.outcomes) != len(report.outcomes):
        what = f"names {len(report.seal.outcomes)} outcomes; the report has {len(report.outcomes)}"
        raise ForgeryError(what, "$.seal.outcomes")
    pairs = zip(report.outcomes, report.seal.outcomes, strict=True)
    return [Result(outcome.measurement, digest) for outcome, digest in pairs if outcome.measurement]


def counted(report: Report, device: Device) -> list[Measurement]:
    """Return a device's measurements that may enter a score."""
    own = (m for m, _ in results(report) if m.job.device_uuid == device.uuid)
    return [m for m in own if not _objection(device, m)]


def _capability(report: Report, device: Device, found: Sequence[Result], failed: Sequence[Failed]) -> Capability:
    judged = [_Judged(one, _objection(device, one.measurement), one.measurement.job.params) for one in found]
    good = [j.result.measurement for j in judged if not j.objection]
    samples = (s for one in found for s in one.measurement.telemetry)
    notes = ((n.severity, n.what) for seen in report.preflight if seen.device_uuid == device.uuid for n in seen.notes)
    rates, uncounted = _rates(device, judged, failed)
    return Capability(
        report_digest=report.seal.digest,
        device_uuid=device.uuid,
        device_name=device.name,
        kind=device.kind,
        emulated=report.emulated or device.emulated,
        memory_bytes=device.memory_bytes,
        power_w=_power_w(good),
        power_limit_w=device.power_limit_w,
        rates=rates,
        uncounted=uncounted,
        counted_count=len(good),
        excluded=tuple(_excluded(judged, failed)),
        ailments=tuple(ailments(device, samples, notes)),
    )


def _objection(device: Device, m: Measurement) -> str | None:
    """Return why a result may not count for a device, or None."""
    allowed = _STEADY if device.kind == "cuda" else _STEADY | _RESTLESS
    if m.state not in allowed:
        return f"{m.state}: {m.reason}"
    if not math.isfinite(m.interval.high_s):
        return "its interval has no slow end: one round is not enough"
    if _in_cache(device, m):
        return f"{m.work.bytes_moved} bytes stay in a cache of {device.l2_bytes} bytes: not a memory rate"
    return None


def _in_cache(device: Device, m: Measurement) -> bool:
    """Tell whether a GPU's stream was short enough to be served by its L2, which would sell a cache as memory."""
    if device.kind != "cuda" or device.l2_bytes is None or m.job.benchmark != "stream":
        return False
    return m.work.bytes_moved < 2 * device.l2_bytes


def _excluded(judged: Sequence[_Judged], failures: Sequence[Failed]) -> Iterator[str]:
    """Yield each result that does not count, with why: bad measurements, then failures."""
    for one in judged:
        if one.objection:
            yield f"{_point(one.result.measurement.job)}: {one.objection}"
    for failed in failures:
        yield f"{_point(failed.job)}: {failed.outcome}: {failed.reason}"


def _point(job: Job) -> str:
    return " ".join([job.benchmark, *(f"{name}={value}" for name, value in sorted(job.params.items()))])


def _rates(
    device: Device, judged: Sequence[_Judged], failures: Sequence[Failed]
) -> tuple[tuple[Rate, ...], tuple[str, ...]]:
    """Return the rates, and the classes of work that were tried and have none."""
    found: dict[str, list[_Judged]] = {}
    for one in judged:
        found.setdefault(one.result.measurement.job.benchmark, []).append(one)
    rates: dict[str, Rate] = {}
    uncounted: list[str] = []
    for rule in _RULES:
        if not (rule.benchmark in found or failures) or rule.work_class in rates or rule.work_class in uncounted:
            continue
        standing = _standing(rule, found.get(rule.benchmark, []))
        best = max((_rate(rule, j.result) for j in standing if not j.objection), key=_low, default=None)
        if best and best.low_per_s > 0:
            rates[rule.work_class] = best
        elif not all(_in_cache(device, j.result.measurement) for j in standing) or _failed_at(rule, failures):
            uncounted.append(rule.work_class)
    return tuple(rates.values()), tuple(uncounted)


def _failed_at(rule: _Rule, failures: Sequence[Failed]) -> bool:
    own = (f.job.params for f in failures if f.job.benchmark == rule.benchmark)
    return any(all(params.get(name) == value for name, value in rule.where.items()) for params in own)


def _low(rate: Rate) -> tuple[float, str]:
    """Order rates by what they promise; of equal ones, the order of results must not decide which is named."""
    return rate.low_per_s, rate.evidence


def _standing(rule: _Rule, found: list[_Judged]) -> list[_Judged]:
    """Return the results that stand for a class: sustained ones where there are any, for these are what a customer gets.

    The largest size is sought among all results, bad ones too: a bad result in memory must not promote one in a cache.
    """
    fitting = found
    for name, value in rule.where.items():
        fitting = [j for j in fitting if j.params.get(name) == value]
    if len(fitting) > 1:
        fitting = [j for j in fitting if j.result.measurement.job.regime == "sustained"] or fitting
    if rule.size and len(fitting) > 1:
        largest = max(_size(rule, j) for j in fitting)
        fitting = [j for j in fitting if _size(rule, j) == largest]
    return fitting


def _size(rule: _Rule, one: _Judged) -> float:
    value = one.params.get(rule.size or "", 0)
    return 0 if isinstance(value, str) else value


def _rate(rule: _Rule, result: Result) -> Rate:
    m, digest = result
    count, unit = amount(m.work, rule.metric)  # of no rule a latency
    return Rate(
        work_class=rule.work_class,
        low_per_s=count / m.interval.high_s,
        high_per_s=count / _fastest_s(m),
        unit=f"{unit}/s",
        state=m.state,
        regime=m.job.regime,
        point=_point(m.job),
        evidence=digest,
    )


def _fastest_s(m: Measurement) -> float:
    """Return the interval's fast end; where noise pushed it down to zero, the fastest run seen."""
    return m.interval.low_s or min(t for r in m.rounds for t in r.times_s)


def _power_w(measurements: Sequence[Measurement]) -> float | None:
    """Return watts while busy: from the energy counter, else from power samples, else None.

    A latency-bound run leaves the device waiting, so it does not count as busy. What is not positive was no reading.
    """
    busy = [m for m in measurements if m.metric != "latency"]
    means = [
        e.joules / e.window_s for m in busy if (e := m.energy) and not e.disputed and e.joules > 0 and e.window_s > 0
    ]
    if means:
        return median(means)
    samples = [s.power_w for m in busy for s in m.telemetry if s.power_w is not None and s.power_w > 0]
    return fmean(samples) if samples else None
