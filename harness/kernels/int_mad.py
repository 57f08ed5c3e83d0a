"""Integer arithmetic in registers: what hashing, addressing, random numbers and quantised networks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_CHAINS = 8
_STEPS = 1024
_M, _C = np.uint32(1664525), np.uint32(1013904223)  # a full-period generator of Knuth's and Lewis's
_WEYL = 0x9E3779B9  # odd, so that its multiples take every value
_OPERATIONS = {"mad": 2, "dp4a": 8}


def mads(lane, first, count, step, m, c, x, out):  # type: ignore[no-untyped-def]
    """Apply a -> m a + c modulo 2^32 to eight chains that begin at x, x + 1, ..., and combine them.

    The coefficients are arguments: of constants a compiler makes eight steps one, and does an eighth of the work.
    """
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
            a0 = np.uint32(m * a0 + c)
            a1 = np.uint32(m * a1 + c)
            a2 = np.uint32(m * a2 + c)
            a3 = np.uint32(m * a3 + c)
            a4 = np.uint32(m * a4 + c)
            a5 = np.uint32(m * a5 + c)
            a6 = np.uint32(m * a6 + c)
            a7 = np.uint32(m * a7 + c)
        out[i] = a0 ^ a1 ^ a2 ^ a3 ^ a4 ^ a5 ^ a6 ^ a7


def sums_of_mads(n: int, x: Array, out: Array) -> None:
    """Give what `mads` gives, all steps at once: a -> m^s a + c (m^s - 1) / (m - 1), composed so that nothing is divided."""
    m, c = _power(int(_M), int(_C), _STEPS)
    out[:] = 0
    for j in range(_CHAINS):
        out ^= ((x.astype(np.uint64) + j) * m + c).astype(np.uint32)


def dots(lane, first, count, step, x, out):  # type: ignore[no-untyped-def]
    """Do what the dp4a kernel does with the shifts and products that a CPU has."""
    for k in range(count):
        i = first + k * step
        total = np.uint32(0)
        for j in range(_CHAINS):
            w = np.uint32(x[i] + np.uint32(j))
            w0, w1 = np.int32(np.int8(w)), np.int32(np.int8(w >> 8))
            w2, w3 = np.int32(np.int8(w >> 16)), np.int32(np.int8(w >> 24))
            a = np.int32(w)
            for s in range(_STEPS):
                # Cut to 32 bits at each step: Numba's integers are of 64, and half as many fit a vector.
                v = np.int32(np.uint32(np.uint32(s + 1) * np.uint32(_WEYL)))
                p0, p1 = np.int32(w0 * np.int32(np.int8(v))), np.int32(w1 * np.int32(np.int8(v >> 8)))
                p2, p3 = np.int32(w2 * np.int32(np.int8(v >> 16))), np.int32(w3 * np.int32(v >> 24))
                a = np.int32(a + np.int32(p0 + p1 + p2 + p3))
            total ^= np.uint32(a)
        out[i] = total


def sums_of_dots(n: int, x: Array, out: Array) -> None:
    """Give what the dp4a kernel gives, without its steps: the sum of products with v is one with the sum of the v."""
    v = (np.arange(1, _STEPS + 1, dtype=np.uint64) * _WEYL).astype(np.uint32)
    sums = [int(s) for s in v.view(np.int8).reshape(_STEPS, 4).sum(axis=0, dtype=np.int64)]
    out[:] = 0
    for j in range(_CHAINS):
        w = x + np.uint32(j)
        octets = w.view(np.int8).reshape(x.size, 4)
        out ^= w + sum(octets[:, k].astype(np.int32) * np.int32(sums[k]) for k in range(4)).view(np.uint32)


DP4A = CudaSource(
    name="dots",
    twin=sums_of_dots,
    text=rf"""
extern "C" __global__ void dots(unsigned n, const unsigned* x, unsigned* out) {{
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int w[{_CHAINS}], a[{_CHAINS}];
  #pragma unroll
  for (int j = 0; j < {_CHAINS}; ++j) a[j] = w[j] = (int)(x[i] + j);
  unsigned v = 0;
  for (int s = 0; s < {_STEPS}; ++s) {{
    v += {_WEYL}u;
    #pragma unroll
    for (int j = 0; j < {_CHAINS}; ++j) a[j] = __dp4a(w[j], (int)v, a[j]);
  }}
  unsigned total = 0;
  #pragma unroll
  for (int j = 0; j < {_CHAINS}; ++j) total ^= (unsigned)a[j];
  out[i] = total;
}}
""",
)


@benchmark(
    version=2,
    metric="throughput",
    quick=False,
    op=("mad", "dp4a"),
    n=Sized(check=1 << 8, cpu=1 << 14, cuda=1 << 20),
)
def int_mad(backend: Backend, seed: int, *, op: str, n: int) -> Case:
    """Rate of 32-bit multiply-adds (2 operations) or of dot products of four 8-bit numbers (8 operations).

    A GPU has an instruction for either. On a CPU, dp4a stands for the many instructions that do the same.
    """
    xp = backend.xp
    x = backend.rng(seed).words(n)
    out = xp.zeros(n, dtype=np.uint32)
    launch = _launcher(backend, op, x, out)

    def run() -> Array:
        launch()
        return out

    def check(answer: Array) -> bool:
        truth = xp.empty(n, dtype=np.uint32)
        (sums_of_mads if op == "mad" else sums_of_dots)(n, x, truth)
        return bool((answer == truth).all())

    counting = f"{_OPERATIONS[op]} operations per {op}; read + written"
    work = Work(items=_OPERATIONS[op] * _CHAINS * _STEPS * n, item="OP", bytes_moved=8 * n, counting=counting)
    return Case(run=run, work=work, check=check, inputs=(x,), distribution="uniform 32-bit words")


def _launcher(backend: Backend, op: str, x: Array, out: Array) -> Callable[[], None]:
    """Return what fills `out`, by the instruction itself where the device has it."""
    n = x.size
    if op == "dp4a" and backend.device.kind == "cuda":
        dp4a = backend.load(DP4A)
        return lambda: dp4a(-(-n // 256), 256, np.uint32(n), x, out)
    launch = backend.compile(mads if op == "mad" else dots)
    coefficients = (_M, _C) if op == "mad" else ()
    return lambda: launch(n, *coefficients, x, out)


def _power(m: int, c: int, steps: int) -> tuple[int, int]:
    """Return the map a -> m a + c modulo 2^32 composed with itself, as its two coefficients."""
    total = (1, 0)
    while steps:
        if steps & 1:
            total = (m * total[0] % 2**32, (m * total[1] + c) % 2**32)
        m, c, steps = m * m % 2**32, (m * c + c) % 2**32, steps >> 1
    return total
