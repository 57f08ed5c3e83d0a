"""Fused multiply-add chains: the arithmetic peak of a GPU, with next to no memory traffic.

On a CPU the chains are scalar: its vector units stand idle, so its figure is no peak.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_CHAINS = 8  # independent, so that the latency of one hides behind the others
_STEPS = 1024


def chains(lane, first, count, step, m, c, x, out):  # type: ignore[no-untyped-def]
    """Apply a -> m a + c to eight chains that begin at x, x + c, ..., and add them up."""
    for k in range(count):
        i = first + k * step
        a0 = x[i]
        a1 = a0 + c
        a2 = a1 + c
        a3 = a2 + c
        a4 = a3 + c
        a5 = a4 + c
        a6 = a5 + c
        a7 = a6 + c
        for _ in range(_STEPS):
            a0 = m * a0 + c
            a1 = m * a1 + c
            a2 = m * a2 + c
            a3 = m * a3 + c
            a4 = m * a4 + c
            a5 = m * a5 + c
            a6 = m * a6 + c
            a7 = m * a7 + c
        out[i] = ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))


@benchmark(
    version=1,
    metric="compute",
    quick=False,
    dtype=("float32", "float64"),
    n=Sized(check=1 << 8, cpu=1 << 14, cuda=1 << 20),
)
def fma(backend: Backend, seed: int, *, dtype: str, n: int) -> Case:
    """Rate of fused multiply-adds in registers, eight chains a lane; a CPU's vector units are not used."""
    xp, kind = backend.xp, np.dtype(dtype)
    m, c = kind.type(-0.999), kind.type(0.125)  # contracts slowly: after all the steps a third of x is left to check
    x = backend.rng(seed).uniform(n, dtype)
    out = xp.zeros(n, dtype=kind)
    launch = backend.compile(chains, fuse=True)

    def run() -> Array:
        launch(n, m, c, x, out)
        return out

    def check(answer: Array) -> bool:
        # The chain in closed form: a_s = m^s (a_0 - f) + f with the fixed point f = c / (1 - m).
        wide_m, wide_c = float(m), float(c)
        fixed = wide_c / (1 - wide_m)
        truth = sum(wide_m**_STEPS * (x.astype(xp.float64) + j * wide_c - fixed) + fixed for j in range(_CHAINS))
        allowed = _CHAINS * _STEPS * float(np.finfo(kind).eps)
        return bool((xp.abs(answer - truth) <= allowed).all())

    return Case(run=run, work=Work(flops=2 * _CHAINS * _STEPS * n, bytes_moved=2 * n * kind.itemsize), check=check)
