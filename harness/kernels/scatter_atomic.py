"""Atomic scatter: a histogram, in which threads that meet at one place have to wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource
from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_THREADS = 256


def count_up(n, mask, keys, counts):  # type: ignore[no-untyped-def]
    """Add one to `counts` at the masked bits of each key, modulo 2^32."""
    counts += np.bincount(keys & mask, minlength=counts.size).astype(np.uint32)


COUNT = CudaSource(
    name="count_up",
    text=r"""
extern "C" __global__ void count_up(unsigned long long n, unsigned mask, const unsigned *keys, unsigned *counts) {
    const unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(counts + (keys[i] & mask), 1u);
}
""",
    twin=count_up,
)


def count_apart(lane, first, count, step, mask, keys, counts):  # type: ignore[no-untyped-def]
    """Count the keys of one lane in a histogram of its own; for a CPU, whose few lanes have room for one each."""
    base = lane * (np.uint64(mask) + np.uint64(1))
    for k in range(count):
        counts[base + (keys[first + k * step] & mask)] += np.uint32(1)


@benchmark(
    version=1,
    metric="throughput",
    quick=False,
    counters=("many", "few"),
    n=Sized(check=1 << 12, cpu=1 << 24, cuda=1 << 27),
)
def scatter_atomic(backend: Backend, seed: int, *, counters: str, n: int) -> Case:
    """Rate of adding one to random counters, n / 64 or 16 of them; atomic on a GPU, a histogram a thread on a CPU."""
    bins = n // 64 if counters == "many" else 16
    on_gpu = backend.device.kind == "cuda"
    copies = 1 if on_gpu else backend.lanes(n)
    require_memory(backend, 3 * 4 * n + 4 * copies * bins)
    xp = backend.xp
    keys, mask = backend.rng(seed).words(n), np.uint32(bins - 1)
    counts = xp.zeros(copies * bins, dtype=np.uint32)
    launch = backend.load(COUNT) if on_gpu else backend.compile(count_apart)
    head = (-(-n // _THREADS), _THREADS, np.uint64(n)) if on_gpu else (n,)
    runs = 0

    def run() -> tuple[Array, int]:
        # Each run counts on from the one before: nothing has to be set to zero, and the last answer judges all runs.
        nonlocal runs
        runs += 1
        launch(*head, mask, keys, counts)
        return (counts if on_gpu else counts.reshape(copies, bins).sum(axis=0, dtype=np.uint32)), runs

    def check(answer: tuple[Array, int]) -> bool:
        got, done = answer
        once = xp.bincount(keys & mask, minlength=bins).astype(np.uint32)
        return bool((got == once * np.uint32(done % 2**32)).all())

    return Case(
        run=run,
        work=Work(
            items=n, item="update", bytes_moved=4 * n, counting="keys read; the counters' own traffic is not counted"
        ),
        check=check,
        cache="hot",  # the counters, which is where the time goes
        footprint_bytes=4 * copies * bins,
        inputs=(keys,),
        distribution="uniform 32-bit words",
    )
