"""When to stop timing: rounds of samples until the interval is narrow, or the time is up.

A round is a run of samples taken back to back; its median shrugs off spikes. The spread *between* rounds is what the interval is
made of, because that is where clocks, neighbours and temperature show. Pure functions and one record; no clock in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness import stats

__all__ = ["EFFORTS", "Effort", "batch_for", "enough", "samples_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to try. Times are of one job."""

    warmup_s: float
    budget_s: float
    sample_s: float = 1e-3  # a sample shorter than this is a reading of the timer, not of the device
    samples: int = 30
    rounds_min: int = 5
    rounds_max: int = 15
    half_width_fraction: float = 0.005
    drift_fraction: float = 0.005


EFFORTS = {
    "quick": Effort(
        warmup_s=0.2, budget_s=0.8, samples=10, rounds_max=10, half_width_fraction=0.01, drift_fraction=0.01
    ),
    "standard": Effort(warmup_s=0.5, budget_s=4.0),
    "full": Effort(warmup_s=1.0, budget_s=15.0),
}


def batch_for(run_s: float, effort: Effort) -> int:
    """Return how many runs make one sample: the power of two that lasts at least `effort.sample_s`."""
    batch = 1
    while batch * run_s < effort.sample_s and batch < 1 << 20:
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
    centre, low, high = stats.interval(values)
    narrow = high - low <= 2 * effort.half_width_fraction * centre
    return narrow and abs(stats.drift(values)) <= effort.drift_fraction
