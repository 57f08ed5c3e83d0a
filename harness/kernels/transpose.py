"""Matrix transposition: every element is read and written once, and a tile in fast memory turns the grain in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, require_memory, rotation

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_TILE = 32  # rows and columns
_THREADS = 256

TRANSPOSE = CudaSource(
    name="transpose",
    text=r"""
// One block turns one tile of 32 x 32. The extra column keeps a column's elements in different banks of shared memory.
extern "C" __global__ void transpose(unsigned long long n, const float *a, float *out) {
    __shared__ float tile[32][33];
    const unsigned long long tiles = n / 32;
    const unsigned long long row = blockIdx.x / tiles * 32, column = blockIdx.x % tiles * 32;
    const unsigned x = threadIdx.x % 32, y = threadIdx.x / 32;
    for (unsigned j = y; j < 32; j += 8) tile[j][x] = a[(row + j) * n + column + x];
    __syncthreads();
    for (unsigned j = y; j < 32; j += 8) out[(column + j) * n + row + x] = tile[x][j];
}
""",
    twin=lambda n, a, out: np.copyto(out, a.T),  # noqa: ARG005 - the kernel's own arguments
)


def turn(lane, first, count, step, n, a, out):  # type: ignore[no-untyped-def]
    """Transpose the tiles of these indices, each through a scratch array; for a CPU, since a GPU's lane has no such array."""
    scratch = np.empty((_TILE, _TILE + 1), dtype=np.float32)  # rows of a power of two would share one set of the cache
    tiles = n // np.uint64(_TILE)
    for k in range(count):
        at = first + k * step
        row, column = at // tiles * np.uint64(_TILE), at % tiles * np.uint64(_TILE)
        for j in range(_TILE):
            for i in range(_TILE):
                scratch[j, i] = a[row + np.uint64(j), column + np.uint64(i)]
        for j in range(_TILE):
            for i in range(_TILE):
                out[column + np.uint64(j), row + np.uint64(i)] = scratch[i, j]


@benchmark(version=2, metric="bandwidth", quick=False, n=Sized(check=64, cpu=6144, cuda=16384))
def transpose(backend: Backend, seed: int, *, n: int) -> Case:
    """Transposed copy of a square float32 matrix, n a multiple of 32; bytes read plus bytes written."""
    require_memory(backend, 3 * 4 * n * n)
    a = backend.rng(seed).uniform((n, n))
    out = backend.xp.zeros((n, n), dtype=np.float32)
    tiles = (n // _TILE) ** 2
    on_gpu = backend.device.kind == "cuda"
    launch = backend.load(TRANSPOSE) if on_gpu else backend.compile(turn)
    grid = (tiles, _THREADS) if on_gpu else (tiles,)

    def run() -> Array:
        launch(*grid, np.uint64(n), a, out)
        return out

    def check(answer: Array) -> bool:
        rows = range(0, n, _TILE)  # in strips: NumPy walks a whole transposed matrix against its grain
        return all(bool((answer[i : i + _TILE] == a[:, i : i + _TILE].T).all()) for i in rows)

    moved = 2 * 4 * n * n
    return Case(
        run=run,
        work=Work(bytes_moved=moved, counting="read + written"),
        check=check,
        cache="cold" if rotation(backend, moved) == 1 else "hot",
        footprint_bytes=moved,
        inputs=(a,),
        distribution="uniform in [0, 1)",
    )
