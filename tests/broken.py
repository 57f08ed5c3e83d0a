"""Kernels with one fault each. What is never seen to fail proves nothing: each check of the CUDA code must refuse one of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from harness.device.backend import Array, Backend, CudaSource
from harness.registry import Case, Work

_N = 256


def _no_twin(*args: object) -> None:
    raise NotImplementedError


def untyped(lane: Any, first: Any, count: Any, step: Any, a: Any, out: Any) -> None:
    """Scale float32 numbers by a literal that is float64 to Numba, and so is the product."""
    for k in range(count):
        i = first + k * step
        out[i] = 0.4 * a[i]


def merged(lane: Any, first: Any, count: Any, step: Any, x: Any, out: Any) -> None:
    """Repeat a multiply-add by constants, which the compiler takes four steps at a time."""
    m, c = np.uint32(1664525), np.uint32(1013904223)
    for k in range(count):
        i = first + k * step
        a = x[i]
        for _ in range(256):
            a = np.uint32(m * a + c)
            a = np.uint32(m * a + c)
            a = np.uint32(m * a + c)
            a = np.uint32(m * a + c)
        out[i] = a


SPILLED = CudaSource(
    name="spilled",
    text="""
extern "C" __global__ void spilled(float *a, int steps) {
    float x[64];
    for (int i = 0; i < 64; ++i) x[i] = a[i * blockDim.x + threadIdx.x];
    for (int s = 0; s < steps; ++s)
        for (int i = 0; i < 64; ++i) x[i] = x[i] * x[(i + 1) % 64] + 1.0f;
    for (int i = 0; i < 64; ++i) a[i * blockDim.x + threadIdx.x] = x[i];
}
""",
    twin=_no_twin,
    options=("--std=c++17", "--maxrregcount=32"),
)

DOUBLED = CudaSource(
    name="doubled",
    text="""
extern "C" __global__ void doubled(float *a) { a[threadIdx.x] = a[threadIdx.x] * 0.4 + 1.0; }
""",
    twin=_no_twin,
)

DEAD = CudaSource(
    name="dead",
    text="""
extern "C" __global__ void dead(const float *x, float *out) {
    float a = x[threadIdx.x];
    for (int s = 0; s < 1024; ++s) a = a * 0.5f + 1.0f;  // for nothing: the next line forgets it
    out[threadIdx.x] = x[threadIdx.x];
}
""",
    twin=_no_twin,
)

SCALAR = CudaSource(
    name="scalar",
    text="""
#include <mma.h>
extern "C" __global__ void scalar(const float *x, float *out) { out[threadIdx.x] = x[threadIdx.x] * x[0]; }
""",
    twin=_no_twin,
)

_UNORDERED = CudaSource(
    name="unordered",
    text="""
extern "C" __global__ void unordered(const unsigned *x, unsigned *out) {
    __shared__ unsigned part[256];
    part[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    for (unsigned half = 128; half; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];  // the barrier that belongs here is missing
    }
    __syncthreads();
    if (threadIdx.x == 0) *out = part[0];
}
""",
    twin=_no_twin,
)

_LOST = CudaSource(
    name="lost",
    text="""
extern "C" __global__ void lost(unsigned *out) {
    unsigned seen = *(volatile unsigned *)out;
    __syncthreads();
    *out = seen + 1;
}
""",
    twin=_no_twin,
)

_OVERRUN = CudaSource(
    name="overrun",
    text="""
extern "C" __global__ void overrun(const unsigned *x, unsigned *out) { out[threadIdx.x] = x[threadIdx.x + 1]; }
""",
    twin=_no_twin,
)

_COPY = CudaSource(
    name="copy",
    text="""
extern "C" __global__ void copy(const unsigned *x, unsigned *out) {
    out[threadIdx.x] = x[threadIdx.x];
}
""",
    twin=_no_twin,
)


def missing_barrier(backend: Backend, seed: int) -> Case:
    """Add up words in a tree whose threads do not wait for each other."""
    x, out = backend.rng(seed).words(_N), backend.xp.zeros(1, dtype=np.uint32)
    launch = backend.load(_UNORDERED)

    def run() -> Array:
        launch(1, _N, x, out)
        return out

    return Case(run=run, work=Work(), check=lambda answer: bool(answer[0] == x.sum(dtype=np.uint32)))


def lost_update(backend: Backend, seed: int) -> Case:
    """Count threads without atomics."""
    out = backend.xp.zeros(1, dtype=np.uint32)
    launch = backend.load(_LOST)

    def run() -> Array:
        out.fill(0)
        launch(1, _N, out)
        return out

    return Case(run=run, work=Work(), check=lambda answer: int(answer[0]) == _N)


def early_read(backend: Backend, seed: int) -> Case:
    """Write in one stream and read in another that does not wait."""
    x, out = backend.rng(seed).words(_N), backend.xp.zeros(_N, dtype=np.uint32)
    backend.synchronize()
    launch, stream = backend.load(_COPY), backend.xp.cuda.Stream(non_blocking=True)

    def run() -> Array:
        with stream:
            launch(1, _N, x, out)
        return out.copy()

    return Case(run=run, work=Work(), check=lambda answer: bool((answer == x).all()))


def overrun(backend: Backend, seed: int) -> Case:
    """Read one word behind the end of an array, and ignore it."""
    backend.xp.get_default_memory_pool().free_all_blocks()
    backend.xp.empty(
        1 << 20, dtype=np.uint8
    )  # given back at once: what follows is cut from it, and a pool's memory goes on behind it
    x, out = backend.rng(seed).words(_N), backend.xp.zeros(_N, dtype=np.uint32)
    launch = backend.load(_OVERRUN)

    def run() -> Array:
        launch(1, _N, x, out)
        return out[:-1]

    return Case(run=run, work=Work(), check=lambda answer: bool((answer == x[1:]).all()))


def dead_loop(backend: Backend, seed: int) -> Case:
    """Declare the work of a loop that the compiler leaves out."""
    x, out = backend.rng(seed).uniform(_N), backend.xp.zeros(_N, dtype=np.float32)
    launch = backend.load(DEAD)

    def run() -> Array:
        launch(1, _N, x, out)
        return out

    return Case(run=run, work=Work(flops=2 * 1024 * _N, bytes_moved=8 * _N), check=lambda answer: True)


def merged_steps(backend: Backend, seed: int) -> Case:
    """Declare all the steps of a chain by constants, of which the compiler takes several at a time."""
    x, out = backend.rng(seed).words(_N), backend.xp.zeros(_N, dtype=np.uint32)
    launch = backend.compile(merged)

    def run() -> Array:
        launch(_N, x, out)
        return out

    return Case(run=run, work=Work(items=2 * 1024 * _N, item="OP"), check=lambda answer: True)


def wrong_bytes(backend: Backend, seed: int) -> Case:
    """Declare a copy's bytes one way only."""
    x, out = backend.rng(seed).words(_N), backend.xp.zeros(_N, dtype=np.uint32)
    launch = backend.load(_COPY)

    def run() -> Array:
        launch(1, _N, x, out)
        return out

    return Case(run=run, work=Work(bytes_moved=4 * _N), check=lambda answer: bool((answer == x).all()))


Body = Callable[[Backend, int], Case]
UNSAFE: dict[str, Body] = {body.__name__: body for body in (missing_barrier, lost_update, early_read, overrun)}
MISDECLARED: dict[str, Body] = {body.__name__: body for body in (dead_loop, wrong_bytes)}
