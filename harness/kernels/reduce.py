"""Reduction: one sum of many numbers, in an order that is fixed, so that the last bit is too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, cache_bytes, require_memory, rotation, sum_error

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.model import Device

_THREADS = 256
_VECTOR = 4  # elements that a thread of the GPU loads at once
_BLOCKS = 2048  # at most, and on every GPU alike: another number would round in another order
_PART = 1 << 16  # elements judged at a time: what they take stays in a cache

_TEXT = r"""
struct alignas(16) Vector { Number a, b, c, d; };

// Add up n vectors into one sum a block: each thread its own in order, a warp by shuffles, the warps by the first one.
extern "C" __global__ void reduce(unsigned long long n, const Vector *x, Number *out) {
    __shared__ Number warps[8];
    Number sum = 0;
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    #pragma unroll 4
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const Vector v = x[i];
        sum += (v.a + v.b) + (v.c + v.d);
    }
    for (int far = 16; far; far /= 2) sum += __shfl_down_sync(0xffffffff, sum, far);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    sum = threadIdx.x < 8 ? warps[threadIdx.x] : Number(0);
    for (int far = 4; far; far /= 2) sum += __shfl_down_sync(0xffffffff, sum, far);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}
"""
_TYPES = {"float32": "float", "float64": "double", "uint32": "unsigned"}


def add_up(n, x, out):  # type: ignore[no-untyped-def]
    """Put the sum of x in the first element of `out`; a CPU has one block."""
    out[0] = x.sum(dtype=x.dtype)


REDUCE = {
    dtype: CudaSource(name="reduce", text=_TEXT, twin=add_up, options=("--std=c++17", f"-DNumber={c_type}"))
    for dtype, c_type in _TYPES.items()
}


def add_piece(lane, first, count, step, zero, x, out):  # type: ignore[no-untyped-def]
    """Add up the elements of one lane."""
    total = zero
    for k in range(count):
        total += x[first + k * step]
    out[lane] = total


def _on_cpu(device: Device) -> int:
    """5 caches or 256 MiB."""
    return 1 << (max(1 << 28, 5 * cache_bytes(device)) - 1).bit_length()


@benchmark(
    version=1,
    metric="bandwidth",
    quick=False,
    dtype=("float32", "float64", "uint32"),
    size_bytes=Sized(check=1 << 15, cpu=_on_cpu, cuda=1 << 30),
)
def reduce(backend: Backend, seed: int, *, dtype: str, size_bytes: int) -> Case:
    """Sum of numbers that take size_bytes, a power of two; bytes read, those of the partial sums included."""
    require_memory(backend, 4 * size_bytes)
    xp, kind = backend.xp, np.dtype(dtype)
    n, rng = size_bytes // kind.itemsize, backend.rng(seed)
    x = rng.words(n) if dtype == "uint32" else rng.uniform(n, dtype)
    on_gpu = backend.device.kind == "cuda"
    parts = min(_BLOCKS, n // (_VECTOR * _THREADS)) if on_gpu else backend.lanes(n)
    partial, total = xp.zeros(parts, dtype=kind), xp.zeros(1, dtype=kind)
    launch = backend.load(REDUCE[dtype]) if on_gpu else backend.compile(add_piece, reorder=True)

    def run_on_gpu() -> Array:
        launch(parts, _THREADS, np.uint64(n // _VECTOR), x, partial)
        launch(1, _THREADS, np.uint64(parts // _VECTOR), partial, total)
        return total

    def run_on_cpu() -> Array:
        launch(n, kind.type(0), x, partial)
        return partial.sum(keepdims=True, dtype=kind)

    def check(answer: Array) -> bool:
        if dtype == "uint32":
            return int(answer[0]) == int(x.sum(dtype=np.uint64)) % 2**32
        exact = math.fsum(float(x[at : at + _PART].sum(dtype=np.float64)) for at in range(0, n, _PART))
        lanes = parts * _THREADS if on_gpu else parts
        return bool(abs(float(answer[0]) - exact) <= sum_error(n, lanes, float(np.finfo(kind).eps)) * exact)

    return Case(
        run=run_on_gpu if on_gpu else run_on_cpu,
        work=Work(
            bytes_moved=size_bytes + (2 * parts + 1) * kind.itemsize,
            counting="read once; the partial sums written and read",
        ),
        check=check,
        cache="cold" if rotation(backend, size_bytes) == 1 else "hot",
        footprint_bytes=size_bytes,
        inputs=(x,),
        distribution="uniform 32-bit words" if dtype == "uint32" else "uniform in [0, 1)",
    )
