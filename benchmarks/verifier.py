"""Measure what it costs to check a proof of work, beside the work itself: time, memory, and how both grow.

    uv run python benchmarks/verifier.py [--n 4096 16384 65536] [--markdown]

Nobody does n^3 operations here to have something to check: of one step, the opened rows alone are computed, the tree holds random digests in the other rows'
places, and the rows to open are given instead of drawn. The verifier does all that it ever does, on all processors that it may use, and must accept.

The time of a check is that of `harness.proof.verifier.faults_of` in a process of its own, the wall's, with the compiled loop loaded. The whole command is
`harness check` in another one, from its start to its end. Memory is the peak of that process, libraries and all, above that of a Python that
does nothing; a process that it starts would count, too, the larger of the two. Compiling the loop, once on a machine, is done and told before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness.device import philox
from harness.device.cpu import CpuDevice
from harness.model import Device, Transcript
from harness.proof import bundle, chain, challenge, hashing, loops, merkle, verifier
from harness.proof.generator import random_bytes
from harness.proof.projection import Projection
from harness.proof.task import Task, task_of
from harness.proof.transcript import open_file, write

__all__ = ["Cost", "main"]

_OPENINGS = 128
_STEPS = 8  # of the work that the ratio is to; what is checked is one of them
_PIECE = 256  # rows of B
_WARM = 2048  # n of a check that loads the compiled loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one check took."""

    n: int
    openings: int
    seconds: float
    cpu_seconds: float  # of all threads together
    opened_bytes: int
    command_seconds: float = 0.0
    above_bare_bytes: int = 0

    @property
    def work(self) -> float:
        """Operations of the prover."""
        return 2.0 * self.n**3 * _STEPS

    @property
    def check(self) -> float:
        """Multiply-adds of the verifier, twice: B and two vectors, and three products with them a row."""
        return 2.0 * (2 * self.n**2 + 4 * self.openings * self.n)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what it costs to check a proof of work.")
    parser.add_argument("--n", type=int, nargs="+", default=[4096, 16384, 65536], help="sizes, multiples of 16")
    parser.add_argument("--openings", type=int, default=_OPENINGS, help="rows that are opened")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(asdict(_checked(Path(args.child)))))
    else:
        began = time.perf_counter()
        loops.loop("project_integers")
        print(f"the compiled loop took {time.perf_counter() - began:.2f} s to be had", file=sys.stderr)
        bare = int(subprocess.check_output([sys.executable, "-c", _PEAK], text=True))
        costs = [_cost(n, args.openings, bare) for n in args.n]
        print((_markdown if args.markdown else _aligned)(_cells(costs)))


# The peak of this process or of a child, whichever is larger, in bytes. A process that has just been forked counts as large as who forked it.
_PEAK = """
import resource
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024)
"""


def _cost(n: int, openings: int, bare_bytes: int) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transcript"
        print(f"making something to check at n = {n} ...", file=sys.stderr)
        _make(path, n, openings)
        done = subprocess.check_output([sys.executable, __file__, "--child", str(path)], text=True)
        began = time.perf_counter()
        told = subprocess.check_output([sys.executable, "-c", _COMMAND, str(path)], text=True)
        seconds = time.perf_counter() - began
    above = int(told.splitlines()[-1]) - bare_bytes
    return replace(Cost(**json.loads(done)), command_seconds=seconds, above_bare_bytes=above)


# `harness check FILE`, but for the rows that are opened, and then how much memory that took.
_COMMAND = f"""
import sys
from harness.cli import main
from harness.proof import bundle
bundle.cells = lambda task, *_: tuple((0, i * task.n // task.openings) for i in range(task.openings))
sys.argv = ["harness", "check", sys.argv[1]]
try:
    main()
except SystemExit as end:
    if end.code:
        raise
{_PEAK}"""


def _rows(task: Task) -> tuple[bundle.Cell, ...]:
    """Return the rows that are opened: spread evenly."""
    return tuple((0, i * task.n // task.openings) for i in range(task.openings))


def _checked(path: Path) -> Cost:
    """Check the file in this process."""
    bundle.cells = lambda task, *_: _rows(task)  # type: ignore[assignment]
    Projection("int8", _WARM, bytes(32), b"")
    with path.open("rb") as file:
        began, spent = time.perf_counter(), time.process_time()
        transcript, openings = open_file(file)
        faults = verifier.faults_of(transcript, openings)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - spent
    if faults:
        raise SystemExit(str(faults))
    task = task_of(transcript.challenge.params)
    return Cost(
        n=task.n,
        openings=task.openings,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        opened_bytes=sum(bundle.sizes(task, _rows(task), ())),
    )


def _make(path: Path, n: int, openings: int) -> None:
    """Write a transcript whose opened rows are true."""
    params = {"mode": "int8", "n": n, "steps": 1, "openings": openings, "scans": 0, "scan_openings": 0}
    asked = challenge.issue(provider="p", device_uuid="CPU-0", epoch=0, params=params, now=datetime.now(UTC))
    task, seed = task_of(params), challenge.seed(asked)
    rows = [row for _, row in _rows(task)]
    codes = np.stack([random_bytes(seed, "X", row * n // 16, n // 16) for row in rows])
    sums = _sums(codes, seed, n)
    after = [chain.advance("int8", own, seed, 1, row) for row, own in zip(rows, sums, strict=True)]
    leaves = np.random.default_rng(0).integers(0, 256, (n, 32), dtype=np.uint8)
    for row, state in zip(rows, after, strict=True):
        digest = hashing.row_digest(hashing.LEAF, 1, row, state.tobytes(), seed)
        leaves[row] = np.frombuffer(digest, dtype=np.uint8)
    tree = merkle.levels(hashing.Hasher(_CPU, seed), hashing.NODE, leaves)
    opened = b"".join(codes[i].tobytes() + sums[i].tobytes() + merkle.path(tree, row) for i, row in enumerate(rows))
    transcript = Transcript(
        schema="harness.transcript/2",
        challenge=asked,
        commitment=tree[-1].tobytes().hex(),
        scan_key=None,
        scan_roots=(),
        asked=None,
        openings_digest=hashlib.sha256(opened).hexdigest(),
        elapsed_s=0.0,
        public_key=None,
        signature=None,
    )
    write(path, transcript, opened)


_CPU = CpuDevice(Device(uuid="CPU-0", name="CPU", kind="cpu", selector="cpu", sensors={}))


def _sums(codes: Any, seed: bytes, n: int) -> Any:
    """Return the products of some rows with B, of which a piece at a time exists."""
    key, lane = map(np.uint64, challenge.stream(seed, "B"))
    fill, words = _CPU.compile(philox.words), np.empty(_PIECE * n // 4, dtype=np.uint32)
    x, found = codes.view(np.int8).astype(np.float32), np.zeros(codes.shape, dtype=np.int32)
    for top in range(0, n, _PIECE):
        rows = min(_PIECE, n - top)
        fill(rows * n // 16, key, lane, np.uint64(top * n // 16), words)
        b = words.view(np.int8)[: rows * n].reshape(rows, n).astype(np.float32)
        found += (x[:, top : top + rows] @ b).astype(np.int32)  # exact: sums of 256 products of 15 bits
    return found


def _cells(costs: list[Cost]) -> list[list[str]]:
    titles = [
        "n",
        "rows opened",
        "prover",
        "verifier",
        "ratio",
        "check",
        "CPU time",
        "per n^2",
        "whole command",
        "memory above Python",
        "openings",
    ]
    first = costs[0].cpu_seconds / costs[0].n ** 2
    return [
        titles,
        *(
            [
                f"{c.n:,}",
                f"{c.openings}",
                f"{c.work / 1e12:.4g} TOP",
                f"{c.check / 1e9:.3g} GOP",
                f"{c.work / c.check:,.0f}",
                f"{c.seconds:.3f} s",
                f"{c.cpu_seconds:.3f} s",
                f"x {c.cpu_seconds / c.n**2 / first:.2f}",
                f"{c.command_seconds:.3f} s",
                f"{c.above_bare_bytes / 1e6:.1f} MB",
                f"{c.opened_bytes / 1e6:.1f} MB",
            ]
            for c in costs
        ),
    ]


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---:|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
