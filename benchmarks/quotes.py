"""How many devices a minute one core prices, from report files and from one Parquet file: `python benchmarks/quotes.py [--nodes 200]`.

A made-up fleet: eight GPUs a node, a sealed report each with a dozen sustained results a GPU, of eight rounds each. Reported: the whole way from
files, verification included; from Parquet; and pricing alone, of records in memory: CPU time of this process. Then both kinds of file through a
Ray cluster of this machine's cores (`--no-ray` does without): by the clock once its workers have begun, and what of it is this process, which reads
and hands out. `--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from standin import StandIn
from test_scoring import gpu, measured, report

from harness import codec, stats
from harness.cli.fleet_quotes import quotes_through
from harness.cluster.fanout import connect
from harness.cluster.rayenv import quiet
from harness.model import Device, Interval, Outcome, Quote, Report, Round, Work
from harness.proof.seal import OPEN, seal
from harness.scoring import evidence, parquet, piecework
from harness.scoring.evidence import load_quickly
from harness.scoring.price import quote

CARDS = 8
ROUNDS = 8
POINTS = (
    ("gemm", "float16", 758e12),
    ("gemm", "bfloat16", 784e12),
    ("gemm", "float32", 51.9e12),
    ("gemm", "float64", 53e12),
    ("gemm", "tfloat32", 380e12),
    ("stream", "triad", 3.03e12),
    ("stream", "copy", 2.9e12),
    ("stream", "scale", 2.9e12),
    ("fft", "", 5e12),
    ("sha256", "", 4e9),
    ("sort", "", 1e10),
    ("chase", "", 2e6),
)


def card(node: int, slot: int) -> Device:
    device = gpu("NVIDIA H100 80GB HBM3", memory_gib=80)
    return replace(device, uuid=f"GPU-{node:06x}-{slot:02x}", selector=f"cuda:{slot}", power_limit_w=700.0)


def result(device: Device, name: str, kind: str, rate: float, luck: float) -> Outcome:
    """Return a measurement whose interval follows from its raw times, as a verifier asks for."""
    work = {
        "gemm": (Work(flops=10**12), "compute", {"dtype": kind, "n": 8192}),
        "stream": (Work(bytes_moved=10**12), "bandwidth", {"op": kind, "n": 1 << 30}),
        "fft": (Work(flops=10**12), "compute", {"n": 1 << 24}),
        "sha256": (Work(items=10**9, item="hash"), "throughput", {"n": 1 << 22}),
        "sort": (Work(items=10**9, item="key"), "throughput", {"n": 1 << 27}),
        "chase": (Work(items=10**3, item="hop"), "latency", {"size_bytes": 1 << 28}),
    }[name]
    amount = work[0].flops or work[0].bytes_moved or work[0].items
    rounds = tuple(
        Round(
            at_s=float(i), batch=1, times_s=tuple(amount / rate / luck * (1 + (i * 5 + j) % 7 / 5000) for j in range(5))
        )
        for i in range(ROUNDS)
    )
    times = [r.times_s for r in rounds]
    centre, low, high = stats.interval(stats.medians(times), stats.step(times))
    watts = 600.0 * luck * (1 + len(name) / 97)  # no two cards alike, so that nothing is remembered of another one
    held = measured(name, work[0], work[1], device=device, power_w=watts, **work[2]).measurement  # type: ignore[arg-type]
    if held is None:
        raise TypeError(name)
    interval = Interval(low_s=max(low, min(map(min, times))), high_s=high, confidence_fraction=stats.CONFIDENCE)
    return Outcome(measurement=replace(held, time_s=centre, interval=interval, rounds=rounds))


def node(at: int) -> Report:
    cards = [card(at, slot) for slot in range(CARDS)]
    outcomes = tuple(
        result(c, *point, luck=1 - (at * CARDS + i) * 0.6180339887 % 1 / 10)
        for i, c in enumerate(cards)
        for point in POINTS
    )
    whole = replace(
        report(*outcomes, device=cards[0]),
        devices=tuple(cards),
        plan=tuple(o.measurement.job for o in outcomes if o.measurement),
        seal=OPEN,
    )
    return replace(seal(whole, [codec.digest(o) for o in outcomes], None), outcomes=outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--stand-in", action="store_true", help="the tests' market instead of the shipped model")
    parser.add_argument("--no-ray", action="store_true")
    args = parser.parse_args()
    market = StandIn() if args.stand_in else None
    with tempfile.TemporaryDirectory() as folder:
        files, table = Path(folder, "results"), Path(folder, "fleet.parquet")
        files.mkdir()
        for at in range(args.nodes):
            Path(files, f"{at:06}.json").write_bytes(codec.encode(node(at)))
        parquet.export(*sorted(files.iterdir()), out=table)
        size = sum(f.stat().st_size for f in files.iterdir()) / args.nodes
        print(
            f"{args.nodes} nodes of {CARDS} GPUs, {size / 1000:.0f} kB a report, {table.stat().st_size / args.nodes / 1000:.0f} in Parquet"
        )
        evidence.quote(next(files.iterdir()), market=market)  # what is read once a process is read now
        told = partial(tell, args.nodes * CARDS, profiled=args.profile)
        told("report files, verified", lambda: evidence.quote(files, market=market))
        told("one Parquet file", lambda: evidence.quote(table, market=market))
        if not args.no_ray and market is None:
            through_ray(args.nodes * CARDS, files, table)
        reports = [load_quickly(file) for file in sorted(files.iterdir())]
        gc.collect()
        gc.freeze()  # the caller's records are no part of what pricing them costs
        told("records in memory", lambda: quote(*reports, market=market))


def tell(count: int, name: str, way: Callable[[], Sequence[Quote]], *, profiled: bool) -> None:
    """Time one way from where a fleet's results are to its quotes, in CPU time of this process."""
    profiler = cProfile.Profile()
    if profiled:
        profiler.enable()
    began = time.process_time()
    found = way()
    took = time.process_time() - began
    profiler.disable()
    judge(found, count)
    print(f"{name:<24} {1000 * took / count:8.3f} ms a device {60 * count / took:10.0f} devices a minute")
    if profiled:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(22)


def through_ray(count: int, files: Path, table: Path) -> None:
    """Time both kinds of file through Ray."""
    order, lines = piecework.order(), []
    with quiet(), connect("local", local_cpus=None) as ray:
        tuple(
            quotes_through(ray, order, [files])
        )  # each core has a worker now, and each worker has read what it reads once
        for name, source in (("report files", files), ("one Parquet file", table)):
            began, own = time.perf_counter(), time.process_time()
            found = tuple(quotes_through(ray, order, [source]))
            took, own = time.perf_counter() - began, time.process_time() - own
            judge(found, count)
            lines.append(
                f"{name + ', Ray':<24} {1000 * took / count:8.3f} ms a device {60 * count / took:10.0f} devices a minute by the clock, "
                f"{os.cpu_count()} cores; {1000 * own / count:.3f} ms a device in this process"
            )
    print(*lines, sep="\n")


def judge(found: Sequence[Quote], count: int) -> None:
    """End it unless so many devices have a price."""
    unpriced = [one for one in found if one.status != "priced"]
    if unpriced or len(found) != count:
        sys.exit(f"{len(found)} quotes, {len(unpriced)} of them without a price: {unpriced[:1]}")


if __name__ == "__main__":
    main()
