"""Inclusive prefix sum: each result depends on all elements before it, which parallel code pays for by reading them twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, require_memory, rotation

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_THREADS = 256
_CHUNK = 4 * _THREADS  # words that a block of the GPU handles at once
_TILES = 4096  # at most: pieces with a start of their own

_TEXT = r"""
// The sums of the threads before this one, and in `all` that of the whole block. Shuffles within a warp, shared memory between them.
__device__ unsigned before(unsigned own, unsigned *warps, unsigned *all) {
    unsigned sum = own;
    for (unsigned near = 1; near < 32; near *= 2) {
        const unsigned other = __shfl_up_sync(0xffffffff, sum, near);
        if (threadIdx.x % 32 >= near) sum += other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 31) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    unsigned offset = 0, total = 0;
    for (unsigned w = 0; w < 8; ++w) {
        if (w < threadIdx.x / 32) offset += warps[w];
        total += warps[w];
    }
    *all = total;
    return offset + sum - own;
}

// First phase: the sum of each block's tile, of `chunks` times 1024 words.
extern "C" __global__ void totals(unsigned chunks, const uint4 *x, unsigned *sums) {
    __shared__ unsigned warps[8];
    const uint4 *tile = x + (unsigned long long)blockIdx.x * chunks * 256;
    unsigned sum = 0, all;
    #pragma unroll 4
    for (unsigned c = 0; c < chunks; ++c) {
        const uint4 v = tile[c * 256 + threadIdx.x];
        sum += v.x + v.y + v.z + v.w;
    }
    before(sum, warps, &all);
    if (threadIdx.x == 0) sums[blockIdx.x] = all;
}

// Second phase, one block: turn the sums of the tiles into their starts, in place.
extern "C" __global__ void starts(unsigned tiles, unsigned *sums) {
    __shared__ unsigned warps[8];
    unsigned carry = 0, all;
    for (unsigned first = 0; first < tiles; first += 256) {
        const unsigned at = first + threadIdx.x;
        const unsigned own = at < tiles ? sums[at] : 0;
        const unsigned start = carry + before(own, warps, &all);
        if (at < tiles) sums[at] = start;
        carry += all;
    }
}

// Third phase: the prefix sums of each tile, from its start on.
extern "C" __global__ void scan(unsigned chunks, const uint4 *x, const unsigned *sums, uint4 *out) {
    __shared__ unsigned warps[8], start;
    const unsigned long long tile = (unsigned long long)blockIdx.x * chunks * 256;
    if (threadIdx.x == 0) start = sums[blockIdx.x];
    __syncthreads();
    unsigned carry = start, all;
    for (unsigned c = 0; c < chunks; ++c) {
        uint4 v = x[tile + c * 256 + threadIdx.x];
        v.y += v.x; v.z += v.y; v.w += v.z;
        const unsigned offset = carry + before(v.w, warps, &all);
        v.x += offset; v.y += offset; v.z += offset; v.w += offset;
        out[tile + c * 256 + threadIdx.x] = v;
        carry += all;
    }
}
"""


def tile_totals(chunks, x, sums):  # type: ignore[no-untyped-def]
    """Put the sum of each tile into `sums`."""
    sums[:] = x.reshape(-1, int(chunks) * _CHUNK).sum(axis=1, dtype=np.uint32)


def tile_starts(tiles, sums):  # type: ignore[no-untyped-def]
    """Put the sum of all tiles before it in each one's place."""
    sums[:] = np.cumsum(sums, dtype=np.uint32) - sums


def tile_scans(chunks, x, sums, out):  # type: ignore[no-untyped-def]
    """Put the prefix sums of each tile, from its start on, into `out`."""
    tiles = x.reshape(-1, int(chunks) * _CHUNK)
    out[:] = (np.cumsum(tiles, axis=1, dtype=np.uint32) + sums[:, None]).ravel()


TOTALS = CudaSource(name="totals", text=_TEXT, twin=tile_totals)
STARTS = CudaSource(name="starts", text=_TEXT, twin=tile_starts)
SCAN = CudaSource(name="scan", text=_TEXT, twin=tile_scans)


def piece_totals(lane, first, count, step, x, sums):  # type: ignore[no-untyped-def]
    """Add up the words of one lane's piece."""
    total = np.uint32(0)
    for k in range(count):
        total = np.uint32(total + x[first + k * step])
    sums[lane] = total


def piece_scans(lane, first, count, step, x, sums, out):  # type: ignore[no-untyped-def]
    """Write the prefix sums of one lane's piece, which on a CPU is contiguous, from the sum of the pieces before it on."""
    total = np.uint32(0)
    for before in range(lane):
        total = np.uint32(total + sums[before])
    for k in range(count):
        i = first + k * step
        total = np.uint32(total + x[i])
        out[i] = total


@benchmark(version=1, metric="bandwidth", quick=False, n=Sized(check=1 << 13, cpu=1 << 24, cuda=1 << 28))
def scan(backend: Backend, seed: int, *, n: int) -> Case:
    """Inclusive prefix sum of n 32-bit words, a power of two, modulo 2^32; each is read twice and written once."""
    require_memory(backend, 4 * 4 * n)
    xp = backend.xp
    x, out = backend.rng(seed).words(n), xp.zeros(n, dtype=np.uint32)
    on_gpu = backend.device.kind == "cuda"
    parts = min(_TILES, n // _CHUNK) if on_gpu else backend.lanes(n)
    sums = xp.zeros(parts, dtype=np.uint32)
    add = backend.load(TOTALS) if on_gpu else backend.compile(piece_totals)
    start = backend.load(STARTS)  # needed on a GPU alone, whose parts are too many for each to add up those before it
    finish = backend.load(SCAN) if on_gpu else backend.compile(piece_scans)
    chunks = np.uint32(n // parts // _CHUNK)

    def run_on_gpu() -> Array:
        add(parts, _THREADS, chunks, x, sums)
        start(1, _THREADS, np.uint32(parts), sums)
        finish(parts, _THREADS, chunks, x, sums, out)
        return out

    def run_on_cpu() -> Array:
        add(n, x, sums)
        finish(n, x, sums, out)
        return out

    def check(answer: Array) -> bool:
        return bool((answer == xp.cumsum(x, dtype=np.uint32)).all())

    # Of the parts' sums a GPU writes and reads each, then writes and reads its start.
    return Case(
        run=run_on_gpu if on_gpu else run_on_cpu,
        work=Work(bytes_moved=4 * (3 * n + 4 * parts), counting="read twice, written once; the sums of the parts too"),
        check=check,
        cache="cold" if rotation(backend, 8 * n) == 1 else "hot",
        footprint_bytes=8 * n,
        inputs=(x,),
        distribution="uniform 32-bit words",
    )
