"""Dense matrix multiplication by the vendor's library: what most paid work is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Skip, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend


@benchmark(
    version=1,
    metric="compute",
    dtype=("float32", "float64", "float16"),
    n=Sized(check=128, cpu=2048, cuda=8192),
)
def gemm(backend: Backend, seed: int, *, dtype: str, n: int) -> Case:
    """Square matrix product through cuBLAS or NumPy's BLAS; 2n^3 operations, inputs of mean 0 and variance 1."""
    if dtype == "float16" and backend.device.kind == "cpu":
        reason = "NumPy multiplies float16 matrices without BLAS: its rate would say nothing about this CPU"
        raise Skip(reason)
    xp, kind = backend.xp, np.dtype(dtype)
    require_memory(backend, 3 * n * n * kind.itemsize + 4 * n * n * 8)
    rng = backend.rng(seed)
    a, b = rng.bell((n, n), dtype), rng.bell((n, n), dtype)
    c = xp.empty((n, n), dtype=kind)
    # Freivalds' probe: random signs with magnitudes in [0.5, 1.5), so that no column's error is weighed with almost nothing.
    signs = 1 - 2 * (rng.words(n) & np.uint32(1)).astype(xp.float64)
    probe = signs * (0.5 + rng.uniform(n, "float64"))

    def run() -> Array:
        return xp.matmul(a, b, out=c)

    def check(answer: Array) -> bool:
        wide = xp.float64
        residual = answer.astype(wide) @ probe - a.astype(wide) @ (b.astype(wide) @ probe)
        # Rounding of the sums grows as sqrt(n) of an element's size, itself sqrt(n); a row adds n of them at random signs.
        # float16 sums in float32 and rounds once at the end. 16 standard deviations are beyond chance.
        accumulated = n**0.5 * float(np.finfo(np.result_type(kind, np.float32)).eps)
        allowed = 16 * n * (accumulated + (float(np.finfo(kind).eps) if dtype == "float16" else 0.0))
        return bool((xp.abs(residual) <= allowed).all())

    return Case(run=run, work=Work(flops=2 * n**3, bytes_moved=3 * n * n * kind.itemsize), check=check)
