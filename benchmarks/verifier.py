"""Measure what it costs to check a proof of work, beside the work itself: time, memory, and how both grow.

    uv run python benchmarks/verifier.py [--n 4096 16384 65536] [--markdown]

Each size is checked by `harness.proof.verifier.faults_of` in a process of its own, on all processors that it may use, and must be accepted. Nobody does n^3
operations here to have something to check: of one step, the opened rows alone are computed, the tree holds random digests in the other rows'
places, and the rows to open are given instead of drawn. The verifier does all that it ever does. Time is the wall's, with the compiled loop loaded;
memory is the process's peak above what it held, libraries and all, before the check.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness.device import philox
from harness.device.cpu import CpuDevice
from harness.model import Device, Transcript
from harness.proof import bundle, chain, challenge, hashing, merkle, verifier
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
    peak_bytes: int
    opened_bytes: int

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
        return
    costs = [_cost(n, args.openings) for n in args.n]
    print((_markdown if args.markdown else _aligned)(_cells(costs)))


def _cost(n: int, openings: int) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transcript"
        print(f"making something to check at n = {n} ...", file=sys.stderr)
        _make(path, n, openings)
        done = subprocess.run(
            [sys.executable, __file__, "--child", str(path)], capture_output=True, text=True, check=True
        )
    return Cost(**json.loads(done.stdout))


def _rows(task: Task) -> tuple[bundle.Cell, ...]:
    """Return the rows that are opened: spread evenly."""
    return tuple((0, i * task.n // task.openings) for i in range(task.openings))


def _checked(path: Path) -> Cost:
    """Check the file in this process."""
    bundle.cells = lambda task, *_: _rows(task)  # type: ignore[assignment]
    Projection("int8", _WARM, bytes(32), b"")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, which loading libraries made, is forgotten
    held = _status_bytes("VmRSS")
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
        peak_bytes=_status_bytes("VmHWM") - held,
        opened_bytes=sum(bundle.sizes(task, _rows(task), ())),
    )


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _make(path: Path, n: int, openings: int) -> None:
    """Write a transcript whose opened rows are true."""
    params = {"mode": "int8", "n": n, "steps": 1, "openings": openings, "scans": 0, "scan_openings": 0}
    asked = challenge.issue(provider="p", device_uuid="CPU-0", epoch=0, params=params, now=datetime.now(UTC))
    task, seed = task_of(params), challenge.seed(asked)
    rows = [row for _, row in _rows(task)]
    codes = np.stack([random_bytes(seed, "X", row * n // 16, n // 16) for row in rows])
    sums = _sums(codes, seed, n)
    after = chain.advance("int8", n, sums)
    leaves = np.random.default_rng(0).integers(0, 256, (n, 32), dtype=np.uint8)
    for row, state in zip(rows, after, strict=True):
        digest = hashing.row_digest(hashing.LEAF, 1, row, state.tobytes(), seed)
        leaves[row] = np.frombuffer(digest, dtype=np.uint8)
    tree = merkle.levels(hashing.Hasher(_CPU, seed), hashing.NODE, leaves)
    opened = b"".join(codes[i].tobytes() + sums[i].tobytes() + merkle.path(tree, row) for i, row in enumerate(rows))
    transcript = Transcript(
        schema="harness.transcript/1",
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
        "peak memory",
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
                f"{c.peak_bytes / 2**20:.1f} MiB",
                f"{c.opened_bytes / 2**20:.1f} MiB",
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
