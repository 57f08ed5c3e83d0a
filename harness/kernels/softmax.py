"""Softmax over rows: one read and one write of memory, with an exponential and two reductions in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, require_memory, rotation

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_THREADS = 256
_CHUNK = 1 << 16  # elements that the check takes at a time: few enough for a cache

# 2^f for |f| <= 1/2 by its Taylor series, to 1e-7. A call of the C library's exp would not be turned into vector code.
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (
    np.float32(c) for c in (1, 0.69314718, 0.24022651, 0.05550411, 0.00961813, 0.00133336, 0.00015404)
)
_LOG2E, _LEAST, _BIAS, _FRACTION_BITS = np.float32(1.44269504), np.float32(-126), np.int32(127), np.int32(23)


def rows_on_cpu(lane, first, count, step, cols, one, x, y):  # type: ignore[no-untyped-def]
    """Write the softmax of rows of x to y."""
    for k in range(count):
        i = first + k * step
        row, out = x[i], y[i]
        top = row[0]
        for j in range(cols):
            top = max(top, row[j])
        total = one - one
        for j in range(cols):
            t = max((row[j] - top) * _LOG2E, _LEAST)
            whole = np.float32(np.rint(t))
            f = t - whole
            power = _C0 + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
            scale = np.int32((np.int32(whole) + _BIAS) << _FRACTION_BITS).view(np.float32)
            out[j] = scale * power
            total += scale * power
        share = one / total
        for j in range(cols):
            out[j] *= share


def _twin(x: Array, y: Array, quads: int) -> None:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    y[:] = e / e.sum(axis=1, keepdims=True)


# A block takes a row and keeps it in shared memory, so that each element is read once and written once.
SOURCE = CudaSource(
    name="softmax",
    twin=_twin,
    text=r"""
template <class Op> __device__ float across(float v, Op op) {
    __shared__ float part[8];
    for (int d = 16; d; d /= 2) v = op(v, __shfl_xor_sync(0xffffffff, v, d));
    __syncthreads();  // the last call's parts have been read
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int i = 1; i < 8; i++) v = op(v, part[i]);
    return v;
}

extern "C" __global__ void __launch_bounds__(256) softmax(const float4* x, float4* y, unsigned quads) {
    extern __shared__ float4 row[];  // each thread reads back only what it has put there
    const size_t start = (size_t)blockIdx.x * quads;
    float top = -3e38f, total = 0;
    for (unsigned j = threadIdx.x; j < quads; j += 256) {
        const float4 v = row[j] = x[start + j];
        top = fmaxf(top, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
    }
    top = across(top, [](float a, float b) { return fmaxf(a, b); });
    for (unsigned j = threadIdx.x; j < quads; j += 256) {
        float4 v = row[j];
        row[j] = v = {expf(v.x - top), expf(v.y - top), expf(v.z - top), expf(v.w - top)};
        total += v.x + v.y + (v.z + v.w);
    }
    const float share = 1 / across(total, [](float a, float b) { return a + b; });
    for (unsigned j = threadIdx.x; j < quads; j += 256) {
        const float4 v = row[j];
        y[start + j] = {v.x * share, v.y * share, v.z * share, v.w * share};
    }
}
""",
)


@benchmark(
    version=1,
    metric="bandwidth",
    quick=False,
    rows=Sized(check=16, cpu=1024, cuda=1 << 16),
    cols=Sized(check=512, cpu=4096, cuda=4096),
)
def softmax(backend: Backend, seed: int, *, rows: int, cols: int) -> Case:
    """Softmax of float32 rows, each element read once and written once; cols is a multiple of 4 up to 12,288."""
    xp, rng, size = backend.xp, backend.rng(seed), 4 * rows * cols
    sets = rotation(backend, 2 * size)
    require_memory(backend, 2 * sets * size + 40 * _CHUNK)
    inputs = tuple(rng.uniform((rows, cols)) * np.float32(8) - np.float32(4) for _ in range(sets))
    outputs = tuple(xp.zeros((rows, cols), dtype=np.float32) for _ in range(sets))
    on_cpu = backend.device.kind == "cpu"
    launch = backend.compile(rows_on_cpu, reorder=True, fuse=True) if on_cpu else backend.load(SOURCE)
    runs = 0

    def run() -> tuple[Array, int]:
        nonlocal runs
        turn = runs % sets
        runs += 1
        x, y = inputs[turn], outputs[turn]
        if on_cpu:
            launch(rows, np.uint64(cols), np.float32(1), x, y)
        else:
            launch(rows, _THREADS, x, y, np.uint32(cols // 4), shared_bytes=4 * cols)
        return y, turn

    def check(answer: tuple[Array, int]) -> bool:
        got, turn = answer
        # A sum of `cols` positive terms is off by half an eps each at worst; 16 more for the exponential and the division.
        allowed = (cols / 2 + 16) * float(np.finfo(np.float32).eps)
        height = max(1, _CHUNK // cols)
        for i in range(0, rows, height):
            x = inputs[turn][i : i + height].astype(xp.float64)
            truth = xp.empty_like(x)
            SOURCE.twin(x, truth, cols // 4)
            if not bool((xp.abs(got[i : i + height] - truth) <= allowed * truth).all()):
                return False
        return True

    return Case(
        run=run,
        work=Work(bytes_moved=2 * size, counting="read + written"),
        check=check,
        cache="cold",
        footprint_bytes=2 * sets * size,
        inputs=inputs,
        distribution="uniform in [-4, 4)",
    )
