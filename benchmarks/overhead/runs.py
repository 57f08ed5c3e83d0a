"""How much of a whole run on the CPU is neither warm-up nor timed work, and what it is instead."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from cost import Line, line

import harness
from harness.cluster.session import Silent
from harness.model import Device, Job, Outcome

__all__ = ["lines"]

_LIMIT_PERCENT = 15.0  # of a standard run; a quick one times too little of everything to promise it
_NAMED = 5


class _Follower(Silent):
    """Remembers when the plan stood, and says what is done."""

    planned_at = 0.0

    def planned(self, devices: Sequence[Device], jobs: Sequence[Job], already: int) -> None:  # noqa: ARG002 - the protocol's
        self.planned_at = time.perf_counter()

    def ended(self, outcome: Outcome) -> None:
        if (done := outcome.measurement or outcome.failed) is not None:
            print(f"  {done.job.benchmark} {dict(done.job.params)}: {done.elapsed_s:.1f} s", file=sys.stderr)


def lines(preset: str) -> Iterator[Line]:
    """Run a preset as `harness run` does, without a score, and take its wall time apart."""
    follower, began = _Follower(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (finished,) = harness.run(preset=preset, device="cpu", out=folder, progress=follower)
    wall_s = time.perf_counter() - began
    loaded_s, around = _taken(finished.report.outcomes)
    around_s, start_s = sum(around.values()), follower.planned_at - began
    between_s = wall_s - loaded_s - around_s - start_s

    def share(what: str, spent_s: float, how: str, limit: float | None = None) -> Line:
        return line(f"{preset} run: {what}", [spent_s / wall_s * 100], "% of its time", how, limit=limit)

    limit = _LIMIT_PERCENT if preset == "standard" else None
    yield line(f"{preset} run", [wall_s], "s", _counted(finished.report.outcomes))
    yield share("not work", wall_s - loaded_s, "all but warm-up, soak and what is timed; made of these:", limit)
    yield share("start", start_s, "until the plan stood: the machine inspected, its power at rest taken")
    yield share("around the work", around_s, f"inputs, compiling, checks, rests between rounds; most: {_most(around)}")
    yield share("between jobs", between_s, "processes, points skipped, the journal, the seal")


def _taken(outcomes: Sequence[Outcome]) -> tuple[float, dict[str, float]]:
    """Return the seconds under load of all jobs together, and for each benchmark those that its jobs took beyond."""
    loaded_s, around = 0.0, defaultdict[str, float](float)
    for outcome in outcomes:
        if (done := outcome.measurement) is not None:
            loaded_s += done.loaded_s or 0.0
            around[done.job.benchmark] += done.elapsed_s - (done.loaded_s or 0.0)
        elif (failed := outcome.failed) is not None:
            around[failed.job.benchmark] += failed.elapsed_s
    return loaded_s, around


def _most(spent_s: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {spent_s[name]:.1f} s" for name in sorted(spent_s, key=lambda n: -spent_s[n])[:_NAMED])


def _counted(outcomes: Sequence[Outcome]) -> str:
    kinds = Counter("measured" if o.measurement else "skipped" if o.skipped else "failed" for o in outcomes)
    return "device cpu: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
