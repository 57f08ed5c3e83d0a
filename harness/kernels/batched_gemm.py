"""Many small matrix products at once: attention heads, finite elements, small networks.

Limit: NumPy gives them to its BLAS one by one, which uses one core for the smaller ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.model import Device
from harness.registry import Case, Sized, Skip, Work, benchmark, cache_bytes, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_CHUNK = 1 << 22  # elements checked at a time, in float64


def _cpu(device: Device) -> int:
    """Least power of 2 that fills 5 caches in float64."""
    return _filling(device, 8)


def _gpu(device: Device) -> int:
    """Least power of 2 that fills 5 caches in float16."""
    return _filling(device, 2)


def _filling(device: Device, itemsize: int) -> int:
    needed = 5 * cache_bytes(device) // (3 * itemsize)
    return 1 << max(needed.bit_length(), 15)


@benchmark(
    version=1,
    metric="compute",
    quick=False,
    dtype=("float32", "float64", "float16"),
    n=(64, 128),
    size=Sized(check=1 << 14, cpu=_cpu, cuda=_gpu),
)
def batched_gemm(backend: Backend, seed: int, *, dtype: str, n: int, size: int) -> Case:
    """Products of n x n matrices, size elements an operand, through cuBLAS or NumPy's BLAS."""
    if dtype == "float16" and backend.device.kind == "cpu":
        reason = "NumPy multiplies float16 matrices without BLAS: its rate would say nothing about this CPU"
        raise Skip(reason)
    xp, kind = backend.xp, np.dtype(dtype)
    require_memory(backend, 3 * size * kind.itemsize + size * 16 + 3 * _CHUNK * 8)
    rng, shape = backend.rng(seed), (size // n**2, n, n)
    a, b = rng.uniform(shape, dtype), rng.uniform(shape, dtype)
    a -= kind.type(0.5)
    b -= kind.type(0.5)
    c = xp.empty(shape, dtype=kind)
    words = rng.words(n)
    probe = (1 - 2 * (words & np.uint32(1)).astype(xp.float64)) * (0.5 + (words >> np.uint32(22)) / 1024)

    def run() -> Array:
        return xp.matmul(a, b, out=c)

    def check(answer: Array) -> bool:
        # Freivalds' test of each product. A sum of n products of variance 1/144 is rounded at most n times, and float16 sums in
        # float32 and rounds once at the end; the probe adds n such sums at random signs.
        wide, most = xp.float64, max(_CHUNK // n**2, 1)
        rounded = float(np.finfo(np.float16).eps) if dtype == "float16" else 0.0
        allowed = 2 * n * (n**0.5 * float(np.finfo(np.result_type(kind, np.float32)).eps) + rounded)
        for at in range(0, len(a), most):
            left, right, got = (m[at : at + most].astype(wide) for m in (a, b, answer))
            residual = (got * probe).sum(axis=2) - (left * (right * probe).sum(axis=2)[:, None]).sum(axis=2)
            if not bool((xp.abs(residual) <= allowed).all()):
                return False
        return True

    moved = 3 * a.nbytes
    return Case(
        run=run,
        check=check,
        work=Work(
            flops=2 * n * a.size, bytes_moved=moved, counting="2 per multiply-add; each matrix once, read + written"
        ),
        cache="cold",
        footprint_bytes=moved,
        inputs=(a, b),
        distribution="uniform in [-0.5, 0.5)",
    )
