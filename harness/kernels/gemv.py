"""Matrix times vector: each element of the matrix is used once, as in decoding one token at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_ROWS = 1024  # checked at a time, in float64


@benchmark(
    version=1,
    metric="bandwidth",
    quick=False,
    dtype=("float32", "float64"),
    n=Sized(check=256, cpu=8192, cuda=16384),
)
def gemv(backend: Backend, seed: int, *, dtype: str, n: int) -> Case:
    """Square matrix times vector through cuBLAS or NumPy's BLAS; bytes of the matrix and both vectors."""
    xp, kind = backend.xp, np.dtype(dtype)
    require_memory(backend, n * n * (kind.itemsize + 16) + _ROWS * n * 8)
    rng = backend.rng(seed)
    a, x = rng.bell((n, n), dtype), rng.bell(n, dtype)

    def run() -> Array:
        return xp.matmul(a, x)

    def check(answer: Array) -> bool:
        wide = x.astype(xp.float64)
        allowed = 4 * n * float(np.finfo(kind).eps)
        return all(
            bool((xp.abs(answer[at : at + _ROWS] - a[at : at + _ROWS].astype(xp.float64) @ wide) <= allowed).all())
            for at in range(0, n, _ROWS)
        )

    return Case(run=run, work=Work(flops=2 * n * n, bytes_moved=(n * n + 2 * n) * kind.itemsize), check=check)
