"""When to stop timing: rounds of samples until the interval is narrow, or the time is up.

A round is a run of samples taken back to back; its median shrugs off spikes. The spread *between* rounds is what the interval is
made of, because that is where clocks, neighbours and temperature show. Pure functions and one record; no clock in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness import stats
from harness.model import DeviceKind

__all__ = ["EFFORTS", "Effort", "adapted", "batch_for", "enough", "samples_for"]

_MOST_RUNS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to try. Times are of one job."""

    warmup_s: float
    budget_s: float
    warmup_max_s: float = 10.0  # a clock that has not settled by then is left to the rounds to show
    sample_s: float = 1e-3  # a sample shorter than this is a reading of the timer, not of the device
    samples: int = 30
    rounds_min: int = 7  # with five, all may have met one clock of two, and agree on half of the truth
    rounds_max: int = 15
    half_width_fraction: float = 0.005
    drift_fraction: float = 0.005
    hold_below_s: float = 1e-4  # runs shorter than this are queued behind a kernel that waits, where the device can
    cool_max_s: float = 60.0  # after a round that the hardware throttled
    soak_min_s: float = 30.0
    soak_max_s: float = 300.0
    sweep_s: float = (
        0.0  # at least, from a round of a job that takes turns to its next: closer ones are not independent
    )
    space_s: float = 2.5  # of load between two rounds of a sustained measurement, for the same reason
    energy_s: float = 5.0  # at least, of load to take the energy of: the counter ticks about ten times a second
    idle_s: float = 2.0  # of rest to take the idle power of


EFFORTS = {
    "quick": Effort(
        warmup_s=0.2,
        warmup_max_s=1.0,
        budget_s=0.8,
        samples=10,
        rounds_max=10,
        half_width_fraction=0.01,
        drift_fraction=0.01,
        cool_max_s=10.0,
        sweep_s=0.3,
        idle_s=1.0,
    ),
    "standard": Effort(warmup_s=0.5, budget_s=5.0, sweep_s=0.8),
    "full": Effort(warmup_s=1.0, budget_s=15.0, sweep_s=1.8, idle_s=10.0),
}


def adapted(effort: Effort, kind: DeviceKind) -> Effort:
    """Return the effort for a kind of device: a CPU has no price that a long soak would be worth."""
    if kind != "cpu":
        return effort
    return replace(effort, soak_min_s=min(effort.soak_min_s, 5.0), space_s=min(effort.space_s, 1.0))


def batch_for(run_s: float, effort: Effort, most: int = _MOST_RUNS) -> int:
    """Return how many runs make one sample: the power of two that lasts at least `effort.sample_s`, or `most`."""
    batch = 1
    while batch * run_s < effort.sample_s and batch < most:
        batch *= 2
    return batch


def samples_for(sample_s: float, effort: Effort) -> int:
    """Return how many samples make a round, so that the least number of rounds fits the budget; at least one."""
    affordable = int(effort.budget_s / (effort.rounds_min * max(sample_s, 1e-9)))
    return max(1, min(effort.samples, affordable))


def enough(rounds: Sequence[Sequence[float]], spent_s: float, effort: Effort) -> bool:
    """Decide whether to stop after these rounds: precise and steady enough, or out of rounds or time."""
    if len(rounds) < effort.rounds_min:
        return False
    if len(rounds) >= effort.rounds_max or spent_s >= effort.budget_s:
        return True
    values = stats.medians(rounds)
    centre, low, high = stats.interval(values, stats.step(rounds))
    narrow = high - low <= 2 * effort.half_width_fraction * centre
    return narrow and abs(stats.drift(values)) <= effort.drift_fraction
