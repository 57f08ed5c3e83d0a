"""Measure what the harness itself costs: processes, records, the journal and the sampler.

    uv run python benchmarks/overhead.py [--json | --markdown]

Nothing here is compared with anything; each line says how it was taken. Times are medians with the middle half beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles

from harness import codec, stats
from harness.cluster.isolate import Nursery
from harness.cluster.journal import Journal
from harness.cluster.task import Task
from harness.device.cpu import CpuDevice, cpu_device
from harness.device.sampler import FakeSensors, Sampler, SilentSensors
from harness.measure.rounds import Effort
from harness.measure.runner import measure, now
from harness.model import (
    Device,
    Environment,
    Interval,
    Job,
    Measurement,
    Node,
    Outcome,
    Report,
    Round,
    TelemetrySample,
    Work,
)
from harness.proof.seal import OPEN, assemble, seal
from harness.proof.verify import judge_report

_NUMBERS = 100_000
_OUTCOMES = 50
_PERIOD_S = 0.05  # 20 Hz, the harness's own
_WATCHED_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One cost: the median, the quartiles around it, and how it was measured."""

    what: str
    value: float
    low: float
    high: float
    unit: str
    count: int
    how: str


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what the harness itself costs.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    device = cpu_device()
    lines = []
    for part in (_processes, _records, _sampler):
        for line in part(device):
            print(f"{line.what} ...", file=sys.stderr)
            lines.append(line)
    if args.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        print((_markdown if args.markdown else _aligned)(lines))
    return 0


def _line(what: str, times_s: Sequence[float], how: str) -> Line:
    low, _, high = (t * 1e3 for t in quantiles(times_s, n=4))
    value = median(times_s) * 1e3
    return Line(what=what, value=value, low=low, high=high, unit="ms", count=len(times_s), how=how)


def _timed(work: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


# -- processes


def _processes(device: Device) -> Iterator[Line]:
    """Time a job that only fails: naming a version that does not exist, it ends before any work."""
    job = _job(device, 0)
    nothing = codec.encode(Task(kind="measure", jobs=(job,), device=device, effort=_effort()))

    def first() -> None:
        with Nursery() as nursery:
            _ask(nursery, nothing)

    starts = _timed(first, 7)
    with Nursery() as nursery:
        _ask(nursery, nothing)
        forks = _timed(lambda: _ask(nursery, nothing), 50)
    here = _timed(lambda: measure(job, CpuDevice(device), SilentSensors(), _effort()), 50)
    yield _line("start of the nursery", starts, "fresh interpreter, imports, one empty job, end")
    yield _line("fork for a job", forks, "an empty job sent, run in a new process, answered")
    yield _line("the empty job itself", here, "the same job in this process, for comparison")


def _ask(nursery: Nursery, task: bytes) -> None:
    ended = nursery.run(task, deadline_s=60)
    if ended.how != "ok" or codec.decode(ended.result, Outcome).skipped is None:
        sys.exit(f"the empty job ended as {ended.how}: {ended.why}")


def _effort() -> Effort:
    return Effort(warmup_s=0.0, budget_s=0.0)


# -- records


def _records(device: Device) -> Iterator[Line]:
    outcomes = [_outcome(device, i) for i in range(_OUTCOMES)]
    head = _head(device)
    parts = [codec.encode(o) for o in outcomes]
    report = replace(seal(head, [codec.digest(p) for p in parts], None), outcomes=tuple(outcomes))
    data = codec.encode(report)
    if judge_report(report, "this report").faults or assemble(report, parts) != data:
        sys.exit("the made-up report does not verify")
    size = f"{_NUMBERS:,} raw times in {_OUTCOMES} measurements, {len(data) / 1e6:.1f} MB"
    yield _line("encode a report", _timed(lambda: codec.encode(report), 9), size)
    yield _line(
        "decode a report", _timed(lambda: codec.decode(data, Report), 9), "the same, its canonical form checked"
    )
    yield _line("verify a report", _timed(lambda: judge_report(report, ""), 9), "the same, decoded: digests, intervals")
    for rounds, label in ((_NUMBERS // _OUTCOMES // 10, "2,000 raw times"), (15, "150 raw times")):
        yield from _appends(device, rounds, label)


def _appends(device: Device, rounds: int, label: str) -> Iterator[Line]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # /tmp may be memory, where a sync costs nothing
        journal = Journal(Path(folder), _head(device), None)
        outcomes = iter([_outcome(device, i, rounds) for i in range(_OUTCOMES)])
        times = _timed(lambda: journal.append(next(outcomes)), _OUTCOMES)
        size = journal.path.stat().st_size
        block = bytes(size)
        syncs = _timed(lambda: _sync(Path(folder) / "plain", block), 20)
    how = f"encoded, sealed, whole file written beside, fsync, renamed; 1st to {_OUTCOMES}th, then {size / 1e6:.2f} MB"
    yield _line(f"append {label}", times, how)
    yield _line("of which the last write", syncs, f"write, fsync and rename of {size / 1e6:.2f} MB alone")


def _sync(path: Path, block: bytes) -> None:
    beside = path.with_suffix(".partial")
    with beside.open("wb") as file:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _job(device: Device, number: int) -> Job:
    return Job(benchmark="stream", version=10**6, params={"n": number}, device_uuid=device.uuid, seed=f"{number:016x}")


def _outcome(device: Device, number: int, rounds: int = _NUMBERS // _OUTCOMES // 10) -> Outcome:
    """Make an outcome up, of ten times a round; the times have all their digits, as real ones."""
    times = [tuple((1 + (7919 * (number + 10 * r + i) % 1009) / 1e5) / 3000 for i in range(10)) for r in range(rounds)]
    made = tuple(Round(at_s=r / 7, batch=1, times_s=t) for r, t in enumerate(times))
    centre, low, high = stats.interval(stats.medians(times))
    fastest = min(min(t) for t in times)

    return Outcome(
        measurement=Measurement(
            job=_job(device, number),
            started_at=now(),
            elapsed_s=1.5,
            work=Work(flops=1, bytes_moved=1),
            metric="bandwidth",
            state="valid",
            reason="",
            time_s=centre,
            interval=Interval(low_s=max(low, fastest), high_s=high, confidence_fraction=stats.CONFIDENCE),
            warmup_times_s=(),
            rounds=made,
            telemetry=(),
            telemetry_lost=None,
            answer_digest="0" * 64,
        )
    )


def _head(device: Device) -> Report:
    environment = Environment(
        harness_version="0",
        python="3",
        os="Linux",
        packages={},
        cpu_limit_count=None,
        niceness=None,
        load_average_1min=None,
        memory_free_bytes=None,
        governor=None,
    )
    return Report(
        schema="harness.report/1",
        created_at=now(),
        sealed_at=now(),
        node=Node(name="overhead"),
        environment=environment,
        devices=(device,),
        emulated=False,
        preset="quick",
        seed="0" * 16,
        plan=tuple(_job(device, i) for i in range(_OUTCOMES)),
        outcomes=(),
        previous=None,
        seal=OPEN,
    )


# -- the sampler


def _sampler(_device: Device) -> Iterator[Line]:
    """Read the process's CPU time, which is all the sampler's while nothing else runs in it."""
    sensors = FakeSensors([TelemetrySample(at_s=0.0, power_w=250.0, energy_j=1.0, temperature_c=60.0)])
    shares = []
    for _ in range(5):
        cpu_s, began = time.process_time(), time.perf_counter()
        with Sampler(sensors, period_s=_PERIOD_S):
            time.sleep(_WATCHED_S / 5)
        shares.append((time.process_time() - cpu_s) / (time.perf_counter() - began) * 100)
    low, _, high = quantiles(shares, n=4)
    how = f"FakeSensors at {1 / _PERIOD_S:g} Hz, CPU time of an else idle process, in % of one CPU; no driver's cost"
    yield Line(what="sampler", value=median(shares), low=low, high=high, unit="% of a CPU", count=5, how=how)


# -- how it looks

_TITLES = ("cost of", "median", "middle half", "unit", "times", "how measured")
_NUMERIC = {1, 2, 4}


def _cells(line: Line) -> list[str]:
    span = f"{line.low:.3g} to {line.high:.3g}"
    return [line.what, f"{line.value:.3g}", span, line.unit, str(line.count), line.how]


def _aligned(lines: Sequence[Line]) -> str:
    table = [list(_TITLES), *map(_cells, lines)]
    widths = [max(len(row[i]) for row in table) for i in range(len(_TITLES))]
    return "\n".join(
        "  ".join(c.rjust(w) if i in _NUMERIC else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in table
    )


def _markdown(lines: Sequence[Line]) -> str:
    rule = ["---:" if i in _NUMERIC else "---" for i in range(len(_TITLES))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(_TITLES), rule, *map(_cells, lines)])


if __name__ == "__main__":
    sys.exit(main())
