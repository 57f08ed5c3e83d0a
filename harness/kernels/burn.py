"""Sustained load with a witness: large products in turn, each compared bit for bit with the first of its operands.

A card that computes right when it is cool and wrong when it is hot is caught here, and by no benchmark that checks one answer.
Limit: a fault that is the same each time is seen by the check of the last product alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Skip, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_SETS = 4  # of operands, so that power and data change from one product to the next


@benchmark(
    version=1,
    metric="compute",
    quick=False,
    sustained=True,
    dtype=("float32", "float16"),
    n=Sized(check=64, cpu=1024, cuda=4096),
)
def burn(backend: Backend, seed: int, *, dtype: str, n: int) -> Case:
    """Four n x n products in turn, each compared bit for bit with its first; any difference fails the check."""
    if dtype == "float16" and backend.device.kind == "cpu":
        reason = "NumPy multiplies float16 matrices without BLAS: its rate would say nothing about this CPU"
        raise Skip(reason)
    xp, kind = backend.xp, np.dtype(dtype)
    require_memory(backend, (3 * _SETS + 1) * n * n * kind.itemsize + 4 * n * n * 8)
    rng = backend.rng(seed)
    operands = [(rng.bell((n, n), dtype), rng.bell((n, n), dtype)) for _ in range(_SETS)]
    firsts = [xp.matmul(a, b) for a, b in operands]
    c, differs = xp.empty((n, n), dtype=kind), xp.empty((n, n), dtype=bool)
    errors = xp.zeros(_SETS, dtype=np.int64)
    words = rng.words(n)
    probe = (1 - 2 * (words & np.uint32(1)).astype(xp.float64)) * (0.5 + (words >> np.uint32(22)) / 1024)

    def run() -> tuple[Array, Array]:
        for i, (a, b) in enumerate(operands):
            xp.matmul(a, b, out=c)
            xp.not_equal(c, firsts[i], out=differs)  # also where either is not a number
            errors[i] += differs.sum()
        return c, errors

    def check(answer: tuple[Array, Array]) -> bool:
        product, found = answer
        a, b = (m.astype(xp.float64) for m in operands[-1])
        residual = product.astype(xp.float64) @ probe - a @ (b @ probe)
        # As in any product of n terms of variance 1: sums of size sqrt(n) rounded n times, n of them at random signs.
        rounded = float(np.finfo(np.float16).eps) if dtype == "float16" else 0.0
        allowed = 16 * n * (n**0.5 * float(np.finfo(np.float32).eps) + rounded)
        return bool((xp.abs(residual) <= allowed).all()) and not bool(found.any())

    return Case(
        run=run,
        check=check,
        work=Work(
            flops=2 * _SETS * n**3,
            bytes_moved=5 * _SETS * c.nbytes + 2 * _SETS * differs.nbytes,
            counting="2 per multiply-add; operands and products once, and the comparison, read + written",
        ),
        inputs=tuple(m for pair in operands for m in pair),
        distribution="bell, mean 0, variance 1",
    )
