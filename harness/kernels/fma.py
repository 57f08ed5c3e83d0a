"""Fused multiply-add chains: the arithmetic peak outside tensor cores, with next to no memory traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, require_capability

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_CHAINS = 8  # independent, so that the latency of one hides behind the others
_STEPS = 1024
_ADDS = 2 * (_CHAINS - 1)  # an element: they part the chains before the steps and join them afterwards
_TILE = 64  # elements a CPU takes at once: enough vectors in flight to hide the latency of each
_TURN = 8  # steps a CPU makes before it goes on to the next vector; the loop writes them out
_M, _C = -0.999, 0.125  # contracts slowly: after all the steps a third of x is left to check


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


def vector_chains(lane, first, count, step, m, c, x, out):  # type: ignore[no-untyped-def]
    """Do what `chains` does, a tile of elements at a time, so that the innermost loop fills a CPU's vectors."""
    a = np.empty((_CHAINS, _TILE), dtype=x.dtype)
    flat = a.reshape(_CHAINS * _TILE)
    for start in range(first, first + count, _TILE):
        width = min(np.uint64(_TILE), first + count - start)
        for i in range(width):
            a[0, i] = x[start + i]
            for j in range(1, _CHAINS):
                a[j, i] = a[j - 1, i] + c
        for _ in range(_STEPS // _TURN):
            for i in range(_CHAINS * _TILE):
                b = m * flat[i] + c  # written out, as Numba makes vectors of innermost loops only
                b = m * b + c
                b = m * b + c
                b = m * b + c
                b = m * b + c
                b = m * b + c
                b = m * b + c
                flat[i] = m * b + c
        for i in range(width):
            low = (a[0, i] + a[1, i]) + (a[2, i] + a[3, i])
            out[start + i] = low + ((a[4, i] + a[5, i]) + (a[6, i] + a[7, i]))


def half_chains(pairs: int, m: float, c: float, x: Array, out: Array) -> None:
    """Do what the float16 kernel does, bit for bit: float64 holds m a + c exactly, so each step rounds once."""
    kind = np.float16
    a = [x.astype(kind)]
    while len(a) < _CHAINS:
        a.append(a[-1] + kind(c))
    b = np.stack(a)
    for _ in range(_STEPS):
        b = (float(kind(m)) * b.astype(np.float64) + float(kind(c))).astype(kind)
    out[:] = ((b[0] + b[1]) + (b[2] + b[3])) + ((b[4] + b[5]) + (b[6] + b[7]))


HALF = CudaSource(
    name="half_chains",
    twin=half_chains,
    text=rf"""
#include <cuda_fp16.h>
extern "C" __global__ void half_chains(unsigned pairs, float fm, float fc, const __half2* x, __half2* out) {{
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= pairs) return;
  const __half2 m = __float2half2_rn(fm), c = __float2half2_rn(fc);
  __half2 a[{_CHAINS}] = {{x[i]}};
  #pragma unroll
  for (int j = 1; j < {_CHAINS}; ++j) a[j] = __hadd2_rn(a[j - 1], c);
  for (int s = 0; s < {_STEPS}; ++s) {{
    #pragma unroll
    for (int j = 0; j < {_CHAINS}; ++j) a[j] = __hfma2(m, a[j], c);
  }}
  const __half2 low = __hadd2_rn(__hadd2_rn(a[0], a[1]), __hadd2_rn(a[2], a[3]));
  out[i] = __hadd2_rn(low, __hadd2_rn(__hadd2_rn(a[4], a[5]), __hadd2_rn(a[6], a[7])));
}}
""",
)


@benchmark(
    version=2,
    metric="compute",
    quick=False,
    dtype=("float32", "float64", "float16"),
    n=Sized(check=1 << 8, cpu=1 << 16, cuda=1 << 21),
)
def fma(backend: Backend, seed: int, *, dtype: str, n: int) -> Case:
    """Rate of fused multiply-adds in registers: eight chains an element; float16 in pairs, on GPUs alone."""
    if dtype == "float16":
        require_capability(backend, "7.5", "float16 arithmetic that Numba can reach")
    xp, kind = backend.xp, np.dtype(dtype)
    x = backend.rng(seed).uniform(n, dtype)
    out = xp.zeros(n, dtype=kind)
    launch = _launcher(backend, x, out)

    def run() -> Array:
        launch()
        return out

    def check(answer: Array) -> bool:
        if dtype == "float16":
            return _same_halves(backend.to_host(x), backend.to_host(answer))
        # The chain in closed form: a_s = m^s (a_0 - f) + f with the fixed point f = c / (1 - m).
        m, c = float(kind.type(_M)), float(kind.type(_C))
        fixed = c / (1 - m)
        truth = sum(m**_STEPS * (x.astype(xp.float64) + j * c - fixed) + fixed for j in range(_CHAINS))
        allowed = _CHAINS * _STEPS * float(np.finfo(kind).eps)
        return bool((xp.abs(answer - truth) <= allowed).all())

    return Case(
        run=run,
        check=check,
        work=Work(
            flops=(2 * _CHAINS * _STEPS + _ADDS) * n,
            bytes_moved=2 * n * kind.itemsize,
            counting="2 per multiply-add, and 14 additions an element; read + written",
        ),
        inputs=(x,),
        distribution="uniform in [0, 1)",
    )


def _launcher(backend: Backend, x: Array, out: Array) -> Callable[[], None]:
    """Return what fills `out`, by the kernel that suits the device and the type."""
    kind, n = x.dtype.type, x.size
    if kind is np.float16:
        pairs = n // 2
        half = backend.load(HALF)
        return lambda: half(-(-pairs // 256), 256, np.uint32(pairs), np.float32(_M), np.float32(_C), x, out)
    launch = backend.compile(chains if backend.device.kind == "cuda" else vector_chains, fuse=True)
    return lambda: launch(n, kind(_M), kind(_C), x, out)


def _same_halves(x: np.ndarray, answer: np.ndarray) -> bool:
    """Compare with the twin on each of the few values that a float16 in [0, 1] can have."""
    values, place = np.unique(x, return_inverse=True)
    truth = np.empty_like(values)
    half_chains(0, _M, _C, values, truth)
    return bool((answer == truth[place]).all())
