"""Sorting: comparisons, data movement and branches, by the vendor's library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, require_memory, rotation

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_ODD = np.uint64(0x9E3779B97F4A7C15)


@benchmark(version=1, metric="throughput", quick=False, n=Sized(check=1 << 12, cpu=1 << 22, cuda=1 << 27))
def sort(backend: Backend, seed: int, *, n: int) -> Case:
    """Rate of sorting n random 32-bit keys through the array module."""
    require_memory(backend, 6 * 4 * n)
    xp = backend.xp
    keys = backend.rng(seed).words(n)

    def run() -> Array:
        return xp.sort(keys)

    def mixed(values: Array) -> int:
        """Add up a mixing of each key: equal for the same keys in any order, and for hardly any others."""
        x = values.astype(xp.uint64) * _ODD
        return int(((x ^ (x >> np.uint64(29))) * _ODD).sum(dtype=xp.uint64))

    def check(answer: Array) -> bool:
        return bool((answer[1:] >= answer[:-1]).all()) and mixed(answer) == mixed(keys)

    return Case(
        run=run,
        work=Work(
            items=n,
            item="key",
            bytes_moved=2 * 4 * n,
            counting="keys sorted; bytes as if each were read once and written once",
            nominal=True,
        ),
        check=check,
        cache="cold" if rotation(backend, 2 * 4 * n) == 1 else "hot",
        footprint_bytes=2 * 4 * n,
        inputs=(keys,),
        distribution="uniform 32-bit words",
    )
