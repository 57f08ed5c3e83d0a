"""Read bandwidth against the size of the working set: from the caches, through the last of them, to memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, cache_bytes, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_THREADS = 256
_BLOCKS_PER_SM = 8
_VECTOR = 4  # words in one load of the GPU


def add_up(n, passes, x, total):  # type: ignore[no-untyped-def]
    """Add to `total` the words of x as often as there are passes, modulo 2^32."""
    total += np.uint32(int(x.sum(dtype=np.uint64)) * int(passes) % 2**32)


SWEEP = CudaSource(
    name="sweep",
    text=r"""
// Read n vectors, a power of two, in passes that follow each other without a break. __ldcg passes by the first cache, of which each
// multiprocessor has its own: small working sets would never leave it. Integer atomics give one sum in any order.
extern "C" __global__ void sweep(unsigned n, unsigned passes, const uint4 *x, unsigned *total) {
    __shared__ unsigned block;
    if (threadIdx.x == 0) block = 0;
    __syncthreads();
    const unsigned step = gridDim.x * blockDim.x;
    unsigned sum = 0;
    #pragma unroll 4
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n * passes; i += step) {
        const uint4 v = __ldcg(x + (i & (n - 1)));
        sum += v.x + v.y + v.z + v.w;
    }
    atomicAdd(&block, sum);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(total, block);
}
""",
    twin=add_up,
)


def sweep(lane, first, count, step, passes, x, totals):  # type: ignore[no-untyped-def]
    """Add up the words of one lane's piece in each of the passes."""
    total = np.uint32(0)
    for _ in range(passes):
        for k in range(count):
            total = np.uint32(total + x[first + k * step])
    totals[lane] += total


@benchmark(
    version=1,
    metric="bandwidth",
    quick=False,
    size_bytes=(1 << 19, 1 << 21, 1 << 23, 1 << 25, 1 << 27, 1 << 29),
    least_bytes=Sized(check=1 << 19, cpu=1 << 28, cuda=1 << 32),
)
def l2_sweep(backend: Backend, seed: int, *, size_bytes: int, least_bytes: int) -> Case:
    """Read bandwidth of a working set of size_bytes, a power of two, read over and over for at least least_bytes."""
    require_memory(backend, size_bytes)
    xp, words = backend.xp, size_bytes // 4
    passes = 1 + least_bytes // size_bytes
    x = backend.rng(seed).words(words)
    on_gpu = backend.device.kind == "cuda"
    totals = xp.zeros(1 if on_gpu else backend.lanes(words), dtype=np.uint32)
    launch = backend.load(SWEEP) if on_gpu else backend.compile(sweep)
    blocks = min(_BLOCKS_PER_SM * (backend.device.sm_count or 1), -(-words // (_VECTOR * _THREADS)))
    head = (blocks, _THREADS, np.uint32(words // _VECTOR), np.uint32(passes)) if on_gpu else (words, np.uint64(passes))
    runs = 0

    def run() -> tuple[Array, int]:
        # Each run adds to the totals of the one before: nothing has to be set to zero, and the last answer judges all runs.
        nonlocal runs
        runs += 1
        launch(*head, x, totals)
        return (totals if on_gpu else totals.sum(keepdims=True, dtype=np.uint32)), runs

    def check(answer: tuple[Array, int]) -> bool:
        total, done = answer
        truth = xp.zeros(1, dtype=np.uint32)
        SWEEP.twin(words // _VECTOR, passes * done, x, truth)
        return bool((total == truth).all())

    return Case(
        run=run,
        work=Work(bytes_moved=passes * size_bytes, counting="bytes read, once in each pass"),
        check=check,
        cache="hot" if size_bytes <= 2 * cache_bytes(backend.device) else "cold",
        footprint_bytes=size_bytes,
        inputs=(x,),
        distribution="uniform 32-bit words",
    )
