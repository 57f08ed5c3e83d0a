"""What the device's own counters say of a job, and whether that explains what the job claims to have done.

A rate times the runs of a window is work that the device must have been busy with: too fast a timer, work done elsewhere and work not
done at all leave the units idle that it takes. Not promised: an honest driver. The counters are told by the provider's NVML.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from harness.device.sampler import Sampler
from harness.model import Activity, Cache, Ceiling, Metric

__all__ = ["Witness", "unexplained"]

_BUSY_LEAST = 0.05  # of a window: less load than this is lost in what else the counters saw
_IDLE_FRACTION = 1e-3  # below a fifth of one multiprocessor of the largest GPU
# What is expected is the claim's share of what is physically possible, which no honest unit reaches with less activity. Half of it is
# forgiven because the window's ends are up to a refresh of the counters off.
_FORGIVEN = 0.5
_FORGIVEN_DRAM = 0.4  # cold operands are as little as two caches large, so up to half may never have reached the memory
# The part of a type's ceiling, which is that of the tensor cores, that other units reach: GeForce's half precision a quarter, and its
# float32 half of TF32. What a claim has beyond that takes tensor cores.
_WITHOUT_TENSOR = {
    "float16": 0.25,
    "bfloat16": 0.25,
    "int8": 0.25,
    "float8_e4m3": 0.25,
    "float8_e5m2": 0.25,
    "tfloat32": 0.5,
}
_TENSOR_LEAST = 0.05  # beyond them: the clock behind the ceiling is off by a little, too

_During = Literal["warmup", "rounds"]


def unexplained(
    activity: Activity | None, *, metric: Metric, dtype: str, cache: Cache, ceiling: Ceiling | None
) -> str | None:
    """Return why the counters contradict a claim, or None: they explain it, or nobody knows.

    Args:
        activity: what was counted, with the part of that time that the claim's runs took by the claim.
        metric: what the claim is about.
        dtype: the type of its operands, "" if it has none.
        cache: whether its operands came from memory.
        ceiling: what part of the physically possible it claims.
    """
    if activity is None or activity.busy_fraction is None or activity.busy_fraction < _BUSY_LEAST:
        return None
    # Copies between memories ("n/a" among the bandwidths) are done by engines of their own, and latencies by next to nothing.
    if metric != "compute" and not (metric == "bandwidth" and cache != "n/a"):
        return None
    idle = _idle_multiprocessors(activity, activity.busy_fraction)
    if idle is not None or ceiling is None:
        return idle
    expected = ceiling.reached_fraction * activity.busy_fraction  # of the device's all, over the whole window
    if metric == "bandwidth":
        return _quiet_memory(activity, expected) if cache == "cold" else None
    return next(_quiet_units(activity, dtype, expected, activity.busy_fraction), None)


def _idle_multiprocessors(activity: Activity, busy: float) -> str | None:
    if activity.sm_fraction is None or activity.sm_fraction >= _IDLE_FRACTION * busy:
        return None
    return f"the counters say that the multiprocessors were idle, though its runs took {busy:.0%} of the time"


def _quiet_memory(activity: Activity, expected: float) -> str | None:
    if activity.dram_fraction is None or activity.dram_fraction >= _FORGIVEN_DRAM * expected:
        return None
    return f"the counters say that the memory gave {activity.dram_fraction:.1%} of its bandwidth, where the claim takes {expected:.1%}"


def _quiet_units(activity: Activity, dtype: str, expected: float, busy: float) -> Iterator[str]:
    """Yield each kind of unit that did too little for a compute claim."""
    beyond = expected - _WITHOUT_TENSOR.get(dtype, 1.0) * busy
    tensor = _largest(activity.tensor_fraction, activity.hmma_tensor_fraction, activity.imma_tensor_fraction)
    if tensor is not None and beyond > _TENSOR_LEAST and tensor < _FORGIVEN * beyond:
        yield f"the counters say that tensor cores were busy {tensor:.1%} of the time, where the claim in {dtype} takes {beyond:.1%}"
    # Any tensor pipe will do: libraries compute float64 on those of other types, too.
    double, matrix = activity.fp64_fraction, _largest(activity.tensor_fraction, activity.dfma_tensor_fraction)
    if dtype == "float64" and double is not None and matrix is not None and double + matrix < _FORGIVEN * expected:
        yield f"the counters say that float64 units were busy {double + matrix:.1%} of the time, where the claim takes {expected:.1%}"
    if activity.sm_fraction is not None and activity.sm_fraction < _FORGIVEN * expected:
        yield f"the counters say that multiprocessors were busy {activity.sm_fraction:.1%} of the time, where the claim takes {expected:.1%}"


def _largest(first: float | None, *others: float | None) -> float | None:
    """Return the most that any tells; None unless the first, which covers them all, tells."""
    return None if first is None else max([first, *(x for x in others if x is not None)])


@dataclass(frozen=True, slots=True)
class _Window:
    counted: Activity
    runs: int


class Witness:
    """Reads the counters of a job at the ends of its warm-up and its rounds; costs two readings a round, nothing without counters.

    A job that has the device for itself has one window, from its first round to its last, with the load or the rest between them.
    One that takes turns has a window a round. The counters are slow: where the rounds are too short for them, the warm-up stands in.
    """

    def __init__(self, sampler: Sampler, *, alone: bool) -> None:
        """Begin with nothing seen."""
        self._sampler = sampler
        self._alone = alone
        self._began: tuple[_During, object | None, int] | None = None
        self._windows: dict[_During, list[_Window]] = {"warmup": [], "rounds": []}

    def begin(self, during: _During, runs: int) -> None:
        """Mark the beginning of the warm-up or of a round, before which the job had done so many runs."""
        went_on = self._began is not None and self._began[0] == during and self._began[1] is not None
        if not (self._alone and went_on):
            self._began = during, self._sampler.counters(), runs

    def end(self, runs: int) -> None:
        """Mark the end of the warm-up or of a round that counts."""
        if self._began is None or self._began[1] is None:
            return
        during, mark, before = self._began
        counted = self._sampler.activity(mark, self._sampler.counters())
        if counted is not None:
            kept = [] if self._alone else self._windows[during]
            self._windows[during] = [*kept, _Window(replace(counted, during=during), runs - before)]

    def activity(self, time_s: float) -> Activity | None:
        """Return what was counted, with the part of that time that the runs took if each took `time_s`."""
        windows = self._windows["rounds"] or self._windows["warmup"]
        if not windows:
            return None
        window_s = sum(w.counted.window_s for w in windows)
        busy = sum(w.runs for w in windows) * time_s / window_s
        return replace(_mean([w.counted for w in windows]), window_s=window_s, busy_fraction=min(1.0, busy))


def _mean(parts: Sequence[Activity]) -> Activity:
    """Return the mean over time of each counter that all parts know."""
    window_s = sum(part.window_s for part in parts)
    means: dict[str, float | None] = {}
    for name in (f.name for f in fields(Activity) if f.name.endswith(("_fraction", "_per_s"))):
        told = [(getattr(part, name), part.window_s) for part in parts]
        means[name] = None if any(x is None for x, _ in told) else sum(x * s for x, s in told) / window_s
    return replace(parts[0], **means)  # type: ignore[arg-type]  # each named field is such a number
