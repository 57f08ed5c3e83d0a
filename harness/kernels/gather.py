"""Random gather: independent loads from anywhere in a table, as in embeddings, hash joins and sparse matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend


def pick(lane, first, count, step, table, index, out):  # type: ignore[no-untyped-def]
    """Copy table[index[i]] to out[i]."""
    for k in range(count):
        i = first + k * step
        out[i] = table[index[i]]


@benchmark(version=1, metric="throughput", quick=False, n=Sized(check=1 << 12, cpu=1 << 24, cuda=1 << 27))
def gather(backend: Backend, seed: int, *, n: int) -> Case:
    """Rate of independent 4-byte loads at random places of a table of n elements, a power of two."""
    require_memory(backend, 4 * 4 * n)
    xp = backend.xp
    rng = backend.rng(seed)
    table, index = rng.words(n), rng.words(n) & np.uint32(n - 1)
    out = xp.zeros(n, dtype=np.uint32)
    launch = backend.compile(pick)

    def run() -> Array:
        launch(n, table, index, out)
        return out

    def check(answer: Array) -> bool:
        return bool((answer == xp.take(table, index)).all())  # the array module's own gather

    # Useful bytes: the index, the element and the result. What the memory moves is whole lines, and more.
    return Case(run=run, work=Work(items=n, item="load", bytes_moved=12 * n), check=check)
