"""A job that is set up: its case, the account of its time, and what becomes of it when something raises."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from harness import registry, units
from harness.device.backend import Backend
from harness.device.cuda import is_out_of_memory
from harness.errors import FailureError, HarnessError
from harness.measure.ceiling import Reach, reach
from harness.measure.digests import answer_digest
from harness.measure.timing import Clockwork
from harness.model import Failed, FailureKind, Job, Outcome, Skipped, Soak

__all__ = ["Seat", "attempt", "now", "sit_down"]


def now() -> str:
    """Return the time in UTC to the second, as RFC 3339 spells it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True, kw_only=True)
class Seat:
    """A job that is set up and takes part in the rounds."""

    job: Job
    bench: registry.Benchmark
    case: registry.Case
    started_at: str
    busy_s: float  # what it has taken of the process's time
    digest: str
    idle_w: float | None = None
    clockwork: Clockwork | None = None
    soak: Soak | None = None
    reached: list[Reach] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)

    @property
    def clock(self) -> Clockwork:
        """What times it, once it has begun."""
        assert self.clockwork is not None  # noqa: S101 - a seat takes no turn before it has begun
        return self.clockwork

    def reach_roof(self, backend: Backend) -> None:
        """Measure its case's roof, where it has one: once before its rounds and once after them."""
        if self.case.roof is not None:
            self.reached.append(reach(self.case.roof, backend))

    def fail(self, kind: FailureKind, reason: str) -> Outcome:
        """Return its failure."""
        return _failed(self.job, self.started_at, self.busy_s, kind, reason)


def _failed(job: Job, started_at: str, elapsed_s: float, kind: FailureKind, reason: str) -> Outcome:
    return Outcome(failed=Failed(job=job, started_at=started_at, elapsed_s=elapsed_s, outcome=kind, reason=reason))


def sit_down(job: Job, backend: Backend) -> tuple[Seat | None, Outcome | None]:
    """Set a job up and check its first answer; return it, or what became of it instead."""
    started_at, began = now(), time.perf_counter()
    try:
        bench = registry.find([job.benchmark])[0]
        _same_version(bench, job)
        case = bench.build(backend, int(job.seed, 16), job.params)
        _some_work(bench, case)
        first = case.run()
        backend.synchronize()
        right = case.check(first)
        digest = answer_digest(first, backend)
    except registry.Skip as skip:
        return None, Outcome(skipped=Skipped(job=job, reason=str(skip)))
    except Exception as err:  # noqa: BLE001 - whatever a benchmark raises is an outcome
        return None, _failed(job, started_at, time.perf_counter() - began, *_what_broke(err))
    seat = Seat(
        job=job, bench=bench, case=case, started_at=started_at, busy_s=time.perf_counter() - began, digest=digest
    )
    if not right:
        return None, seat.fail("wrong_answer", "the answer of the first run does not pass the benchmark's check")
    return seat, None


def _same_version(bench: registry.Benchmark, job: Job) -> None:
    if bench.version != job.version:
        msg = f"planned for version {job.version}, here is {bench.version}"
        raise registry.Skip(msg)


def _some_work(bench: registry.Benchmark, case: registry.Case) -> None:
    """Refuse a rate of nothing a second: it would look like a measurement, and a price would follow from it."""
    metric = bench.metric or units.metric_of(case.work)
    if units.amount(case.work, metric)[0] <= 0:
        msg = f"benchmark {bench.name!r} declares no work of its metric, {metric}"
        raise FailureError(msg)


def _what_broke(err: Exception) -> tuple[Literal["out_of_memory", "failed"], str]:
    """Say what broke and in which line: a benchmark's author needs both, in one line and of bearable length."""
    kind: Literal["out_of_memory", "failed"] = "out_of_memory" if is_out_of_memory(err) else "failed"
    if isinstance(err, HarnessError):
        return kind, str(err)
    last = traceback.extract_tb(err.__traceback__)[-1]
    said = " ".join(str(err).encode(errors="replace").decode().split())[:500]  # a file's name may hold half a surrogate
    return kind, f"{type(err).__name__}: {said} ({Path(last.filename).name}:{last.lineno})"


def attempt(seat: Seat, what: Callable[[], object]) -> Outcome | None:
    """Do a part of a job on its own account of time; return its failure if it raises."""
    began = time.perf_counter()
    try:
        what()
    except Exception as err:  # noqa: BLE001 - whatever a benchmark raises is an outcome
        seat.busy_s += time.perf_counter() - began
        return seat.fail(*_what_broke(err))
    seat.busy_s += time.perf_counter() - began
    return None
