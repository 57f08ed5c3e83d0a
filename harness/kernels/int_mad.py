"""32-bit integer multiply-adds: what hashing, addressing and generators of random numbers are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_CHAINS = 8
_STEPS = 1024
_M, _C = np.uint32(1664525), np.uint32(1013904223)  # a full-period generator of Knuth's and Lewis's


def mads(lane, first, count, step, x, out):  # type: ignore[no-untyped-def]
    """Apply a -> m a + c modulo 2^32 to eight chains that begin at x, x + 1, ..., and combine them."""
    one = np.uint32(1)
    for k in range(count):
        i = first + k * step
        a0 = x[i]
        a1 = np.uint32(a0 + one)
        a2 = np.uint32(a1 + one)
        a3 = np.uint32(a2 + one)
        a4 = np.uint32(a3 + one)
        a5 = np.uint32(a4 + one)
        a6 = np.uint32(a5 + one)
        a7 = np.uint32(a6 + one)
        for _ in range(_STEPS):
            a0 = np.uint32(_M * a0 + _C)
            a1 = np.uint32(_M * a1 + _C)
            a2 = np.uint32(_M * a2 + _C)
            a3 = np.uint32(_M * a3 + _C)
            a4 = np.uint32(_M * a4 + _C)
            a5 = np.uint32(_M * a5 + _C)
            a6 = np.uint32(_M * a6 + _C)
            a7 = np.uint32(_M * a7 + _C)
        out[i] = a0 ^ a1 ^ a2 ^ a3 ^ a4 ^ a5 ^ a6 ^ a7


@benchmark(version=1, metric="throughput", quick=False, n=Sized(check=1 << 8, cpu=1 << 14, cuda=1 << 20))
def int_mad(backend: Backend, seed: int, *, n: int) -> Case:
    """Rate of 32-bit integer multiply-adds in registers, each counted as two operations."""
    xp = backend.xp
    x = backend.rng(seed).words(n)
    out = xp.zeros(n, dtype=np.uint32)
    launch = backend.compile(mads)

    def run() -> Array:
        launch(n, x, out)
        return out

    def check(answer: Array) -> bool:
        # All the steps at once: a -> m^s a + c (m^s - 1) / (m - 1), composed by doubling so that nothing is divided.
        m, c = _power(int(_M), int(_C), _STEPS)
        truth = xp.zeros(n, dtype=np.uint32)
        for j in range(_CHAINS):
            truth ^= ((x.astype(np.uint64) + j) * m + c).astype(np.uint32)
        return bool((answer == truth).all())

    return Case(run=run, work=Work(items=2 * _CHAINS * _STEPS * n, item="OP", bytes_moved=8 * n), check=check)


def _power(m: int, c: int, steps: int) -> tuple[int, int]:
    """Return the map a -> m a + c modulo 2^32 composed with itself, as its two coefficients."""
    total = (1, 0)
    while steps:
        if steps & 1:
            total = (m * total[0] % 2**32, (m * total[1] + c) % 2**32)
        m, c, steps = m * m % 2**32, (m * c + c) % 2**32, steps >> 1
    return total
