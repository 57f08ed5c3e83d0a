"""Random gather: independent loads from anywhere in a table, as in embeddings, hash joins and sparse matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, cache_bytes, require_memory, rotation

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.model import Device

_SHARE = 16  # elements of the table for one load: a run need not be as long as the table is large


def pick(lane, first, count, step, table, index, out):  # type: ignore[no-untyped-def]
    """Copy table[index[i]] to out[i]."""
    for k in range(count):
        i = first + k * step
        out[i] = table[index[i]]


# Operands in turn would not make this cold: within one run, each line of a small table is met again before it leaves the cache.
def _on_cpu(device: Device) -> int:
    """5 caches or 128 MiB."""
    return _elements(max(1 << 27, 5 * cache_bytes(device)))


def _on_cuda(device: Device) -> int:
    """16 caches or 1 GiB."""
    return _elements(max(1 << 30, 16 * cache_bytes(device)))


def _elements(least_bytes: int) -> int:
    return 1 << (least_bytes // 4 - 1).bit_length()


@benchmark(version=2, metric="throughput", quick=False, n=Sized(check=1 << 12, cpu=_on_cpu, cuda=_on_cuda))
def gather(backend: Backend, seed: int, *, n: int) -> Case:
    """Rate of independent 4-byte loads, n / 16 of them, at random places of a table of n elements, a power of two."""
    loads = n // _SHARE
    require_memory(backend, 4 * n + 4 * 4 * loads)
    xp = backend.xp
    rng = backend.rng(seed)
    table, index = rng.words(n), rng.words(loads) & np.uint32(n - 1)
    out = xp.zeros(loads, dtype=np.uint32)
    launch = backend.compile(pick)

    def run() -> Array:
        launch(loads, table, index, out)
        return out

    def check(answer: Array) -> bool:
        return bool((answer == xp.take(table, index)).all())  # the array module's own gather

    return Case(
        run=run,
        work=Work(
            items=loads,
            item="load",
            bytes_moved=12 * loads,
            counting="useful bytes: the index and the element read, the element written; memory moves whole lines",
        ),
        check=check,
        cache="cold" if rotation(backend, 4 * n) == 1 else "hot",
        footprint_bytes=4 * n,
        inputs=(table, index),
        distribution="uniform 32-bit words, uniform places",
    )
