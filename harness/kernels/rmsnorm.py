"""RMS normalisation over rows: the other memory-bound step of every transformer layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, require_memory, rotation

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_THREADS = 256
_GROUP = 32  # rows that share one read of the weights
_CHUNK = 1 << 16  # elements that the check takes at a time: few enough for a cache
_EPSILON = np.float32(1e-6)


def groups_on_cpu(lane, first, count, step, rows, hidden, one, x, weight, y):  # type: ignore[no-untyped-def]
    """Normalise the rows of a group."""
    for k in range(count):
        start = (first + k * step) * np.uint64(_GROUP)
        for i in range(start, min(start + np.uint64(_GROUP), rows)):
            row, out = x[i], y[i]
            total = one - one
            for j in range(hidden):
                total += row[j] * row[j]
            scale = one / np.float32(math.sqrt(total / np.float32(hidden) + _EPSILON))
            for j in range(hidden):
                out[j] = row[j] * scale * weight[j]


def _twin(x: Array, weight: Array, y: Array, rows: int, quads: int) -> None:
    y[:] = x * weight / np.sqrt((x * x).mean(axis=1, keepdims=True) + float(_EPSILON))


# A block takes a group of rows, one after the other, and keeps the weights and the row in shared memory.
SOURCE = CudaSource(
    name="rmsnorm",
    twin=_twin,
    text=r"""
__device__ float sum_across(float v) {
    __shared__ float part[8];
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
    __syncthreads();  // the last row's parts have been read
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int i = 1; i < 8; i++) v += part[i];
    return v;
}

extern "C" __global__ void __launch_bounds__(256)
rmsnorm(const float4* x, const float4* weight, float4* y, unsigned rows, unsigned quads) {
    extern __shared__ float4 kept[];  // each thread reads back only what it has put there
    float4* row = kept + quads;
    for (unsigned j = threadIdx.x; j < quads; j += 256) kept[j] = weight[j];
    const unsigned first = blockIdx.x * 32, last = min(first + 32, rows);
    for (unsigned i = first; i < last; i++) {
        const size_t start = (size_t)i * quads;
        float total = 0;
        for (unsigned j = threadIdx.x; j < quads; j += 256) {
            const float4 v = row[j] = x[start + j];
            total += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
        }
        const float scale = 1 / sqrtf(sum_across(total) / (4 * quads) + 1e-6f);
        for (unsigned j = threadIdx.x; j < quads; j += 256) {
            const float4 v = row[j], w = kept[j];
            y[start + j] = {v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w};
        }
    }
}
""",
)


@benchmark(
    version=1,
    metric="bandwidth",
    quick=False,
    rows=Sized(check=48, cpu=1024, cuda=1 << 16),
    hidden=Sized(check=512, cpu=4096, cuda=4096),
)
def rmsnorm(backend: Backend, seed: int, *, rows: int, hidden: int) -> Case:
    """RMS norm of float32 rows with weights, each element read once; hidden is a multiple of 4 up to 6,144."""
    xp, rng, size, groups = backend.xp, backend.rng(seed), 4 * rows * hidden, -(-rows // _GROUP)
    sets = rotation(backend, 2 * size)
    require_memory(backend, 2 * sets * size + 40 * _CHUNK)
    weight = rng.uniform(hidden) + np.float32(0.5)
    inputs = tuple(rng.uniform((rows, hidden)) * np.float32(2) - np.float32(1) for _ in range(sets))
    outputs = tuple(xp.zeros((rows, hidden), dtype=np.float32) for _ in range(sets))
    on_cpu = backend.device.kind == "cpu"
    launch = backend.compile(groups_on_cpu, reorder=True, fuse=True) if on_cpu else backend.load(SOURCE)
    runs = 0

    def run() -> tuple[Array, int]:
        nonlocal runs
        turn = runs % sets
        runs += 1
        x, y = inputs[turn], outputs[turn]
        if on_cpu:
            launch(groups, np.uint64(rows), np.uint64(hidden), np.float32(1), x, weight, y)
        else:
            launch(groups, _THREADS, x, weight, y, np.uint32(rows), np.uint32(hidden // 4), shared_bytes=8 * hidden)
        return y, turn

    def check(answer: tuple[Array, int]) -> bool:
        got, turn = answer
        # A sum of `hidden` squares is off by half an eps each at worst, its root by half of that; 8 more for the rest.
        allowed = (hidden / 4 + 8) * float(np.finfo(np.float32).eps)
        height = max(1, _CHUNK // hidden)
        for i in range(0, rows, height):
            x = inputs[turn][i : i + height].astype(xp.float64)
            truth = xp.empty_like(x)
            SOURCE.twin(x, weight, truth, len(x), hidden // 4)
            if not bool((xp.abs(got[i : i + height] - truth) <= allowed * xp.abs(truth)).all()):
                return False
        return True

    return Case(
        run=run,
        work=Work(
            bytes_moved=2 * size + 4 * hidden * groups, counting="read + written, and the weights once for 32 rows"
        ),
        check=check,
        cache="cold",
        footprint_bytes=2 * sets * size,
        inputs=(weight, *inputs),
        distribution="uniform: x in [-1, 1), weights in [0.5, 1.5)",
    )
