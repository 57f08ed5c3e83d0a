"""Compare the harness's CPU benchmarks with plain programs that do the same work, side by side in one process.

    uv run --with scipy python benchmarks/peers [--rounds N] [--only NAME] [--json | --markdown]

A benchmark's case is built as the harness builds it and must pass its own check; so must what the peer leaves behind. Samples of the
two alternate (ours, peer, peer, ours, ...), so that a neighbour's load, a clock change or a warm cache meets both alike. Each round
gives one ratio of medians, the peer's time to ours; the interval is Student's t over the rounds' ratios, as the harness computes it.
"slower" and "faster" are said where the whole interval lies more than 5 % off. Exit status 1 if ours is slower anywhere but at a launch,
whose peer does less: it spreads nothing over threads.

Traps, and what is done about them. Where pages lie (first touch, huge pages, alignment of the arrays to each other): C works on the
very arrays of the benchmark, through their pointers; a second row gives C arrays of its own, on 2 MiB pages, first touched by the
threads that use them. A walk that finds what the other one has just cached: the two chases run half a cycle apart, and so do the
transforms. Threads: both sides use all that the process may run on, or both one; and a pause before each sample lets the other side's
threads fall asleep, since those of OpenMP and OpenBLAS spin for milliseconds after their work (without the pause ours measured up to
13 % slower than C, by that alone). Other processes: a sample during which our threads had to wait for a CPU is taken again; what they do
to the memory's bandwidth without that is left in, and widens the interval.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import numpy as np
from programs import FLAGS, build, has_scipy, has_sha_instructions, programs, thread_count
from timing import SAMPLE_S, SAMPLES, Row, compare

from harness.device.cpu import CpuDevice, cpu_device

__all__ = ["main"]

_WITHOUT_SCIPY = "not installed, its rows are missing: uv run --with scipy python benchmarks/peers"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare CPU benchmarks with plain programs run beside them.")
    parser.add_argument(
        "--rounds", type=int, default=8, help="rounds of each comparison; more make a narrower interval"
    )
    parser.add_argument("--only", default="", help="compare only benchmarks whose name contains this")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: one round has no spread")

    backend = CpuDevice(cpu_device())
    header = _header(backend)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_rows(backend, Path(folder), args.only, args.rounds))
    if not rows:
        parser.error(f"no benchmark compared here has {args.only!r} in its name")
    if args.json:
        print(json.dumps({"header": header, "rows": [asdict(r) for r in rows]}, indent=1))
    else:
        print("\n".join(f"{name}: {value}" for name, value in header.items()), end="\n\n")
        print(_markdown(rows) if args.markdown else _aligned(rows))
    return int(any(r.verdict == "slower" and r.benchmark != "launch" for r in rows))


def _rows(backend: CpuDevice, folder: Path, only: str, rounds: int) -> Iterator[Row]:
    """Set up one pair after the other, so that only one holds memory."""
    for name, make in programs(backend, build(folder)):
        if only in name:
            for pair in make():
                print(f"{name} / {pair.peer} ...", file=sys.stderr)
                yield compare(name, pair, rounds)


def _header(backend: CpuDevice) -> dict[str, str]:
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    packages = ", ".join(f"{p} {metadata.version(p)}" for p in ("numpy", "numba", "llvmlite"))
    cache_bytes = backend.device.l3_bytes
    hashing = (
        "the CPU has them; hashlib uses them, our kernel does not" if has_sha_instructions(backend) else "none known"
    )
    return {
        "CPU": f"{backend.device.name}, {thread_count()} threads, L3 {f'{cache_bytes >> 20} MiB' if cache_bytes else 'unknown'}",
        "system": f"{platform.system()} {platform.release()}, load {os.getloadavg()[0]:.2f} at the start",
        "huge pages": pages.read_text().strip() if pages.exists() else "unknown",
        "SHA instructions": hashing,
        "versions": f"Python {platform.python_version()}, {packages}, {blas['name']} {blas['version']}",
        "SciPy": metadata.version("scipy") if has_scipy() else _WITHOUT_SCIPY,
        "compiler": f"{compiler}, {' '.join(FLAGS)}",
        "sampling": f"{SAMPLES} samples a side and round, alternating; at least {SAMPLE_S * 1e3:g} ms each",
    }


_TITLES = (
    "benchmark", "against", "ours", "peer", "unit", "ratio", "95 % interval", "rounds", "repeated / disturbed", "verdict",
)  # fmt: skip
_TEXT = {0, 1, 4, 9}  # columns of words; the others are numbers and end at the right


def _cells(row: Row) -> list[str]:
    return [
        row.benchmark,
        row.peer,
        _digits(row.ours),
        _digits(row.peers),
        row.unit,
        f"{row.ratio:.3f}",
        f"{row.ratio_low:.3f} to {row.ratio_high:.3f}",
        str(row.rounds),
        f"{row.samples_repeated} / {row.samples_disturbed}",
        row.verdict,
    ]


def _digits(value: float) -> str:
    """Write four digits."""
    return f"{value:.{max(0, 3 - math.floor(math.log10(value)))}f}"


def _aligned(rows: Sequence[Row]) -> str:
    table = [list(_TITLES), *map(_cells, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(_TITLES))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i in _TEXT else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def _markdown(rows: Sequence[Row]) -> str:
    rule = ["---" if i in _TEXT else "---:" for i in range(len(_TITLES))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(_TITLES), rule, *map(_cells, rows)])


if __name__ == "__main__":
    sys.exit(main())
