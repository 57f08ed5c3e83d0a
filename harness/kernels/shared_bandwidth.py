"""Shared memory: how fast the blocks of a GPU read the memory that each multiprocessor has of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Skip, Work, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.model import Device

_THREADS = 256  # a tile holds one vector of four words for each
_STEPS = 1000  # not a multiple of the tile's length: every thread adds up another selection


def window_sums(x, out):  # type: ignore[no-untyped-def]
    """Do what the kernel does: thread t of a block adds up the vectors t to t + steps - 1 of its tile, walked in a circle."""
    vectors = x.reshape(-1, _THREADS, 4).sum(axis=2, dtype=np.uint64)
    rounds, rest = divmod(_STEPS, _THREADS)
    twice = np.concatenate([np.zeros_like(vectors[:, :1]), vectors, vectors], axis=1).cumsum(axis=1)
    windows = twice[:, rest : rest + _THREADS] - twice[:, :_THREADS]
    out[:] = (rounds * vectors.sum(axis=1, keepdims=True) + windows).astype(np.uint32).ravel()


READ = CudaSource(
    name="read_shared",
    text=f"""
// Threads next to each other read vectors next to each other: no two of a phase meet in one bank.
extern "C" __global__ void read_shared(const uint4 *x, unsigned *out) {{
    __shared__ uint4 tile[{_THREADS}];
    const unsigned at = blockIdx.x * {_THREADS} + threadIdx.x;
    tile[threadIdx.x] = x[at];
    __syncthreads();
    unsigned sum = 0;
    #pragma unroll 8
    for (unsigned i = 0; i < {_STEPS}; ++i) {{
        const uint4 v = tile[(threadIdx.x + i) % {_THREADS}];
        sum += v.x + v.y + v.z + v.w;
    }}
    out[at] = sum;
}}
""",
    twin=window_sums,
)


def _blocks(device: Device) -> int:
    """64 blocks a multiprocessor."""
    return 64 * (device.sm_count or 1)


@benchmark(version=1, metric="bandwidth", quick=False, blocks=Sized(check=4, cpu=64, cuda=_blocks))
def shared_bandwidth(backend: Backend, seed: int, *, blocks: int) -> Case:
    """Bytes per second that blocks of 256 threads read from shared memory, 16 at a time and without bank conflicts."""
    if backend.device.kind == "cpu":
        reason = "a CPU has no shared memory; see l2_sweep at its smallest size"
        raise Skip(reason)
    threads = blocks * _THREADS
    x = backend.rng(seed).words(4 * threads)
    out = backend.xp.zeros(threads, dtype=np.uint32)
    launch = backend.load(READ)

    def run() -> Array:
        launch(blocks, _THREADS, x, out)
        return out

    def check(answer: Array) -> bool:
        truth = np.zeros(threads, dtype=np.uint32)
        READ.twin(backend.to_host(x), truth)
        return bool((backend.to_host(answer) == truth).all())

    # Each thread fills one vector of the tile and reads one a step.
    moved = 16 * threads * (1 + _STEPS)
    return Case(
        run=run,
        work=Work(bytes_moved=moved, counting="bytes written to and read from shared memory"),
        check=check,
        inputs=(x,),
        distribution="uniform 32-bit words",
    )
