"""From a preset, a choice of devices and a seed to the jobs of a run, in the order in which they are worth doing."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness import codec, registry
from harness.errors import MisuseError
from harness.measure.rounds import EFFORTS, Effort, adapted
from harness.model import Device, Job, Params, Regime

__all__ = ["batches", "check", "choose", "deadline_s", "effort_for", "expected_s", "plan", "seed_or_fresh"]

_SEED = re.compile(r"[0-9a-f]{1,64}")
_TOGETHER = 8  # jobs that take turns: enough to space each one's rounds, few enough to fit into memory
_SETUP_S = 1.5  # of a job on a CPU, besides timing: inputs, compilation, checks
_BUDGET_LEAST_S = 0.1


def seed_or_fresh(seed: str | None) -> str:
    """Return a run's seed in lower case, or a fresh one. Raises `MisuseError` if it is not hex."""
    if seed is None:
        return secrets.token_hex(16)
    if not _SEED.fullmatch(seed.lower()):
        msg = f"seed {seed!r} is not 1 to 64 hexadecimal digits, such as {secrets.token_hex(8)}"
        raise MisuseError(msg)
    return seed.lower()


def check(names: Sequence[str], preset: str, budget_s: float | None) -> None:
    """Refuse a request that could never be met, before any device is opened.

    Raises:
        MisuseError: there is no such benchmark or preset, or the budget is not a positive number of seconds.
    """
    registry.find(names)
    effort_for(preset, budget_s, 1)


def choose(devices: Sequence[Device], selector: str) -> tuple[Device, ...]:
    """Return the usable devices that `all`, `cpu` or `cuda:N` names.

    Raises:
        MisuseError: there is none; the message says what there is.
    """
    if selector == "all":
        return tuple(d for d in devices if d.unusable_reason is None)
    for device in devices:
        if device.selector == selector:
            if device.unusable_reason:
                msg = f"device {selector!r} ({device.name}) cannot be used: {device.unusable_reason}"
                raise MisuseError(msg)
            return (device,)
    known = ", ".join(d.selector for d in devices)
    hint = "; a GPU needs NVIDIA's driver and CuPy (the extra cuda13 or cuda12)" if selector.startswith("cuda") else ""
    msg = f"no device {selector!r} on this machine; there are: {known}, all{hint}"
    raise MisuseError(msg)


def plan(devices: Sequence[Device], names: Sequence[str], preset: str, seed: str) -> tuple[Job, ...]:
    """Lay out the jobs: device by device, and on each the first point of every benchmark before any second one; soaked ones last.

    A run that is cut short then knows a little of everything. An emulated device gets each benchmark's smallest size.

    Raises:
        MisuseError: there is no such benchmark.
    """
    found = [b for b in registry.find(names) if names or preset != "quick" or b.in_quick]
    jobs: list[Job] = []
    for device in devices:
        ranked = [
            (rank, bench, params)
            for bench in found
            for rank, params in enumerate(
                registry.points(bench, device, quick=preset == "quick", small=device.emulated)
            )
        ]
        ordered = sorted(ranked, key=lambda r: (r[0], r[1].name))
        jobs += [_job(bench, params, device, seed, "burst") for _, bench, params in ordered]
        jobs += [
            _job(bench, params, device, seed, "sustained")
            for _, bench, params in ordered
            if preset != "quick" and _priced(bench, params, device)
        ]
    return tuple(jobs)


def _priced(bench: registry.Benchmark, params: Params, device: Device) -> bool:
    """Tell whether a point is also measured soaked: those of preset `quick` of the benchmarks that ask for it."""
    if not bench.sustained:
        return False
    return params in registry.points(bench, device, quick=True, small=device.emulated)


def _job(bench: registry.Benchmark, params: Params, device: Device, seed: str, regime: Regime) -> Job:
    own = codec.digest([seed, bench.name, bench.version, dict(params), regime])[:16]
    return Job(
        benchmark=bench.name, version=bench.version, params=params, device_uuid=device.uuid, seed=own, regime=regime
    )


def effort_for(preset: str, budget_s: float | None, job_count: int) -> Effort:
    """Return the preset's effort, cut down where a time budget for so many jobs asks for it.

    Raises:
        MisuseError: there is no such preset, or the budget is not a positive number of seconds.
    """
    if preset not in EFFORTS:
        msg = f"no preset {preset!r}; there are {', '.join(EFFORTS)}"
        raise MisuseError(msg)
    effort = EFFORTS[preset]
    if budget_s is None:
        return effort
    if not 0 < budget_s < math.inf:
        msg = f"budget {budget_s!r} is not a positive number of seconds, such as 60"
        raise MisuseError(msg)
    share_s = max(budget_s / max(job_count, 1) - _SETUP_S, _BUDGET_LEAST_S)
    scale = min(1.0, share_s / (effort.warmup_s + effort.budget_s))
    return replace(effort, warmup_s=effort.warmup_s * scale, budget_s=effort.budget_s * scale)


def deadline_s(effort: Effort, device: Device, jobs: Sequence[Job] = ()) -> float:
    """Return how long jobs may take before they are given up: generous, since a hang never ends and slowness does."""
    burst_s = 10 * (effort.warmup_s + effort.budget_s)
    soaking_s = effort.soak_max_s + effort.energy_s + effort.cool_max_s
    lasting = sum(burst_s + (soaking_s if job.regime == "sustained" else 0.0) for job in jobs) if jobs else burst_s
    return (600.0 if device.emulated else 120.0) + lasting


def expected_s(effort: Effort, device: Device, job: Job) -> float:
    """Guess how long a job takes: for whoever waits, and to be corrected by what is seen."""
    own = adapted(effort, device.kind)
    burst_s = _SETUP_S + own.warmup_s + own.budget_s
    if job.regime == "burst":
        return burst_s
    return _SETUP_S + own.warmup_s + own.soak_min_s + max(own.energy_s, own.rounds_min * own.space_s)


def batches(jobs: Sequence[Job]) -> Iterator[tuple[Job, ...]]:
    """Cut a device's jobs into those that are measured together, taking turns.

    A sustained job has the device for itself; so has one that takes the node's other GPUs too, since its process sees more of them.
    """
    known = registry.benchmarks()
    waiting: list[Job] = []
    for job in jobs:
        soaked, taking_peers = job.regime == "sustained", job.benchmark in known and known[job.benchmark].peers
        if waiting and (soaked or len(waiting) == _TOGETHER or job.device_uuid != waiting[0].device_uuid):
            yield tuple(waiting)
            waiting = []
        if soaked or taking_peers:
            yield (job,)
        else:
            waiting.append(job)
    if waiting:
        yield tuple(waiting)
