"""What processes and records cost: forks, encoding, decoding, verifying, and the journal. All of it is made up but the time it takes."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cost import Line, line, timed

from harness import codec, stats
from harness.cluster.isolate import Nursery
from harness.cluster.journal import Journal
from harness.cluster.task import Task, answered
from harness.device.cpu import CpuDevice
from harness.device.sampler import SilentSensors
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
    Work,
)
from harness.proof.seal import OPEN, assemble, seal
from harness.proof.verify import judge_report

__all__ = ["processes", "records"]

_NUMBERS = 100_000
_OUTCOMES = 50


def processes(device: Device) -> Iterator[Line]:
    """Time a job that only fails: naming a version that does not exist, it ends before any work."""
    job = _job(device, 0)
    nothing = Task(kind="measure", jobs=(job,), device=device, effort=_effort())

    def first() -> None:
        with Nursery() as nursery:
            _ask(nursery, nothing)

    starts = timed(first, 7)
    with Nursery() as nursery:
        _ask(nursery, nothing)
        forks = timed(lambda: _ask(nursery, nothing), 50)
    here = timed(lambda: measure(job, CpuDevice(device), SilentSensors(), _effort()), 50)
    yield line("start of the nursery", starts, "ms", "fresh interpreter, imports, one empty job, end")
    yield line("fork for a job", forks, "ms", "an empty job sent, run in a new process, answered")
    yield line("the empty job itself", here, "ms", "the same job in this process, for comparison")


def _ask(nursery: Nursery, task: Task) -> None:
    ended = nursery.run(codec.encode(task), deadline_s=60)
    if ended.how != "ok" or [o.skipped is None for o in answered(ended.result, task.jobs)] != [False]:
        sys.exit(f"the empty job ended as {ended.how}: {ended.why}")


def _effort() -> Effort:
    return Effort(warmup_s=0.0, budget_s=0.0)


def records(device: Device) -> Iterator[Line]:
    """Time what is done to a report, and to its file."""
    outcomes = [_outcome(device, i) for i in range(_OUTCOMES)]
    head = _head(device)
    parts = [codec.encode(o) for o in outcomes]
    report = replace(seal(head, [codec.digest(p) for p in parts], None), outcomes=tuple(outcomes))
    data = codec.encode(report)
    if judge_report(report, "this report").faults or assemble(report, parts) != data:
        sys.exit("the made-up report does not verify")
    size = f"{_NUMBERS:,} raw times in {_OUTCOMES} measurements, {len(data) / 1e6:.1f} MB"
    yield line("encode a report", timed(lambda: codec.encode(report), 9), "ms", size)
    decoding = timed(lambda: codec.decode(data, Report), 9)
    yield line("decode a report", decoding, "ms", "the same, its canonical form checked")
    yield line(
        "verify a report", timed(lambda: judge_report(report, ""), 9), "ms", "the same, decoded: digests, intervals"
    )
    for rounds, label in ((_NUMBERS // _OUTCOMES // 10, "2,000 raw times"), (15, "150 raw times")):
        yield from _appends(device, rounds, label)


def _appends(device: Device, rounds: int, label: str) -> Iterator[Line]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # /tmp may be memory, where a sync costs nothing
        journal = Journal(Path(folder), _head(device), None)
        outcomes = iter([_outcome(device, i, rounds) for i in range(_OUTCOMES)])
        times = timed(lambda: journal.append(next(outcomes)), _OUTCOMES)
        size = journal.path.stat().st_size
        block = bytes(size)
        syncs = timed(lambda: _sync(Path(folder) / "plain", block), 20)
    how = f"encoded, sealed, whole file written beside, fsync, renamed; 1st to {_OUTCOMES}th, then {size / 1e6:.2f} MB"
    yield line(f"append {label}", times, "ms", how)
    yield line("of which the last write", syncs, "ms", f"write, fsync and rename of {size / 1e6:.2f} MB alone")


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
        schema="harness.report/2",
        created_at=now(),
        sealed_at=now(),
        node=Node(name="overhead"),
        environment=environment,
        devices=(device,),
        preflight=(),
        emulated=False,
        preset="quick",
        seed="0" * 16,
        plan=tuple(_job(device, i) for i in range(_OUTCOMES)),
        outcomes=(),
        previous=None,
        seal=OPEN,
    )
