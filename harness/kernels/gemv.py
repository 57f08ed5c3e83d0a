"""Matrix times vector: each element of the matrix is used once, as in decoding one token at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.model import Device
from harness.registry import Case, Sized, Work, benchmark, cache_bytes, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_ROWS = 1024  # checked at a time, in float64


def _cpu(device: Device) -> int:
    """5 caches of float32 or 4096."""
    return max(4096, _uncached(device))


def _gpu(device: Device) -> int:
    """5 caches of float32 or 16384."""
    return max(16384, _uncached(device))


def _uncached(device: Device) -> int:
    """Return the least multiple of 1024 whose square in float32 takes five caches: then one matrix is enough to stay cold."""
    return -(-math.isqrt(5 * cache_bytes(device) // 4) // 1024) * 1024


@benchmark(
    version=2,
    metric="bandwidth",
    quick=False,
    dtype=("float32", "float64"),
    n=Sized(check=256, cpu=_cpu, cuda=_gpu),
)
def gemv(backend: Backend, seed: int, *, dtype: str, n: int) -> Case:
    """Square matrix times vector through cuBLAS or NumPy's BLAS; bytes of the matrix and both vectors."""
    xp, kind = backend.xp, np.dtype(dtype)
    require_memory(backend, n * n * (kind.itemsize + 16) + _ROWS * n * 8)
    rng = backend.rng(seed)
    a, x = rng.uniform((n, n), dtype), rng.uniform(n, dtype)
    a -= kind.type(0.5)
    x -= kind.type(0.5)

    def run() -> Array:
        return xp.matmul(a, x)

    def check(answer: Array) -> bool:
        wide = x.astype(xp.float64)
        allowed = 4 * n * float(np.finfo(kind).eps)
        return all(
            bool((xp.abs(answer[at : at + _ROWS] - a[at : at + _ROWS].astype(xp.float64) @ wide) <= allowed).all())
            for at in range(0, n, _ROWS)
        )

    moved = (n * n + 2 * n) * kind.itemsize
    return Case(
        run=run,
        check=check,
        work=Work(flops=2 * n * n, bytes_moved=moved, counting="read + written; 2 per multiply-add"),
        cache="cold",
        footprint_bytes=moved,
        inputs=(a, x),
        distribution="uniform in [-0.5, 0.5)",
    )
