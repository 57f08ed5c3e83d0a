"""STREAM-style memory bandwidth: the cost of walking arrays that no cache holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

# Bytes moved and operations per element; the naive counts of STREAM, since GPUs read nothing to write a full line.
_COUNTS = {"triad": (3, 2), "copy": (2, 0), "scale": (2, 1), "add": (3, 1), "dot": (2, 2)}


def copy(lane, first, count, step, s, a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = a."""
    for k in range(count):
        i = first + k * step
        c[i] = a[i]


def scale(lane, first, count, step, s, a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = s a."""
    for k in range(count):
        i = first + k * step
        c[i] = s * a[i]


def add(lane, first, count, step, s, a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = a + b."""
    for k in range(count):
        i = first + k * step
        c[i] = a[i] + b[i]


def triad(lane, first, count, step, s, a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = a + s b."""
    for k in range(count):
        i = first + k * step
        c[i] = a[i] + s * b[i]


def dot(lane, first, count, step, s, a, b, c):  # type: ignore[no-untyped-def]
    """Add up a[i] b[i] into one sum a lane."""
    total = s - s  # a zero of the arrays' type
    for k in range(count):
        i = first + k * step
        total += a[i] * b[i]
    c[lane] = total


_KERNELS = {"triad": triad, "copy": copy, "scale": scale, "add": add, "dot": dot}


@benchmark(
    version=1,
    metric="bandwidth",
    quick={"op": ("triad", "copy")},
    op=("triad", "copy", "scale", "add", "dot"),
    dtype=("float64", "float32"),
    n=Sized(check=1 << 12, cpu=1 << 25, cuda=1 << 27),
)
def stream(backend: Backend, seed: int, *, op: str, dtype: str, n: int) -> Case:
    """Memory bandwidth of copy, scale, add, triad and dot; bytes read plus bytes written."""
    xp, kind = backend.xp, np.dtype(dtype)
    require_memory(backend, 3 * n * kind.itemsize)
    rng = backend.rng(seed)
    s = kind.type(0.4)  # typed: an untyped 0.4 would turn the float32 kernels into float64 arithmetic
    a, b = rng.uniform(n, dtype), rng.uniform(n, dtype)
    c = xp.zeros(backend.lanes(n) if op == "dot" else n, dtype=kind)
    launch = backend.compile(_KERNELS[op], reorder=op == "dot")

    def run() -> Array:
        launch(n, s, a, b, c)
        return c.sum(keepdims=True) if op == "dot" else c

    def check(answer: Array) -> bool:
        if op == "dot":
            truth = float((a.astype(xp.float64) * b).sum())
            return bool(abs(float(answer[0]) - truth) <= n**0.5 * np.finfo(kind).eps * truth)
        truth = {"copy": lambda: a, "scale": lambda: s * a, "add": lambda: a + b, "triad": lambda: a + s * b}[op]()
        # A fused multiply-add rounds once where NumPy rounds twice: one unit in the last place of a sum below 2.
        return bool((xp.abs(answer - truth) <= np.finfo(kind).eps * (op == "triad")).all())

    moved, flops = _COUNTS[op]
    return Case(run=run, work=Work(flops=flops * n, bytes_moved=moved * n * kind.itemsize), check=check)
