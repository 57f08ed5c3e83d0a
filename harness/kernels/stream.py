"""STREAM-style memory bandwidth: the cost of walking arrays that no cache holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, cache_bytes, require_memory, rotation, sum_error

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.model import Device

_PART = 1 << 16  # elements judged at a time: what they take stays in a cache
# Arrays walked, elements moved and operations for each index; the counts of STREAM, since GPUs read nothing to write a full line.
_COUNTS = {
    "triad": (3, 3, 2),
    "copy": (2, 2, 0),
    "scale": (2, 2, 1),
    "add": (3, 3, 1),
    "dot": (2, 2, 2),
    "nstream": (3, 4, 3),
}


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


def nstream(lane, first, count, step, s, a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = c + (a + s b)."""
    for k in range(count):
        i = first + k * step
        c[i] = c[i] + (a[i] + s * b[i])


def nstream_back(lane, first, count, step, s, a, b, c):  # type: ignore[no-untyped-def]
    """Compute c = c - (a + s b), the step back: the same traffic and as many operations."""
    for k in range(count):
        i = first + k * step
        c[i] = c[i] - (a[i] + s * b[i])


_KERNELS = {"triad": triad, "copy": copy, "scale": scale, "add": add, "dot": dot, "nstream": nstream}


def _elements(device: Device, least_bytes: int) -> int:
    """Return a power of two: a float32 copy walks this many bytes, a float64 triad no more than 40 % of the memory."""
    n = 1 << (least_bytes // 8 - 1).bit_length()
    while device.memory_bytes and 24 * n > 0.4 * device.memory_bytes:
        n //= 2
    return n


def _on_cpu(device: Device) -> int:
    """4 caches or 128 MiB."""
    return _elements(device, max(1 << 27, 4 * cache_bytes(device)))


def _on_cuda(device: Device) -> int:
    """16 caches or 1 GiB."""
    return _elements(device, max(1 << 30, 16 * cache_bytes(device)))


def _parts(n: int) -> Iterator[slice]:
    """Cut n elements into parts small enough that judging them takes next to no memory."""
    return (slice(at, at + _PART) for at in range(0, n, _PART))


@benchmark(
    version=1,
    metric="bandwidth",
    quick={"op": ("triad", "copy")},
    sustained=True,
    op=("triad", "copy", "scale", "add", "dot", "nstream"),
    dtype=("float64", "float32"),
    n=Sized(check=1 << 12, cpu=_on_cpu, cuda=_on_cuda),
)
def stream(backend: Backend, seed: int, *, op: str, dtype: str, n: int) -> Case:
    """Memory bandwidth of copy, scale, add, triad, dot and nstream; bytes read plus bytes written."""
    xp, kind = backend.xp, np.dtype(dtype)
    require_memory(backend, 4 * n * kind.itemsize)
    rng = backend.rng(seed)
    s = kind.type(0.4)  # typed: an untyped 0.4 would turn the float32 kernels into float64 arithmetic
    a, b = rng.uniform(n, dtype), rng.uniform(n, dtype)
    c = a.copy() if op == "nstream" else xp.zeros(backend.lanes(n) if op == "dot" else n, dtype=kind)
    launch = backend.compile(_KERNELS[op], reorder=op == "dot")
    back = backend.compile(nstream_back)
    runs = 0

    def run() -> Array:
        launch(n, s, a, b, c)
        return c.sum(keepdims=True) if op == "dot" else c

    def run_to_and_fro() -> tuple[Array, int]:
        # Forward and back in turn, so that c stays bounded. Nor does rounding add up: (x + d) - d, once rounded, reproduces itself
        # however often d is added and taken off again (Knuth, The Art of Computer Programming, 4.2.2, theorem D).
        nonlocal runs
        runs += 1
        (launch if runs % 2 else back)(n, s, a, b, c)
        return c, runs

    def truth(a: Array, b: Array, done: int) -> Array:
        match op:
            case "copy":
                return a
            case "scale":
                return s * a
            case "add":
                return a + b
            case "triad":
                return a + s * b
        return a + (a + s * b) if done % 2 else a

    def check(answer: Array | tuple[Array, int]) -> bool:
        got, done = answer if isinstance(answer, tuple) else (answer, 1)
        if op == "dot":
            exact = math.fsum(float((a[p].astype(xp.float64) * b[p]).sum()) for p in _parts(n))
            return bool(abs(float(got[0]) - exact) <= sum_error(n, backend.lanes(n), float(np.finfo(kind).eps)) * exact)
        # A fused multiply-add rounds once where NumPy rounds twice: one unit in the last place of a sum below 2. nstream's sums stay
        # below 4, so each of its three roundings may be off by one eps, and one more back and forth.
        allowed = {"triad": 1, "nstream": 4}.get(op, 0) * np.finfo(kind).eps
        return all(bool((xp.abs(got[p] - truth(a[p], b[p], done)) <= allowed).all()) for p in _parts(n))

    arrays, moved, flops = _COUNTS[op]
    footprint = arrays * n * kind.itemsize
    return Case(
        run=run_to_and_fro if op == "nstream" else run,
        work=Work(
            flops=flops * n,
            bytes_moved=moved * n * kind.itemsize,
            counting="read + written" if op != "dot" else "read; the sums of the lanes are not counted",
            nominal=op == "dot",
        ),
        check=check,
        cache="cold" if rotation(backend, footprint) == 1 else "hot",
        footprint_bytes=footprint,
        inputs=(a, b),
        distribution="uniform in [0, 1)",
    )
