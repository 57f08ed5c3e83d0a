"""The roof over a pass through a model: what this device reads from memory and multiplies, measured beside the pass by the runner.

Reading alone, not copying: a pass reads its weights and writes next to nothing, and memories read faster than they copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from harness.registry import Roof, cache_bytes

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend
    from harness.inference.ledger import Cost

__all__ = ["roof", "roof_bytes"]

_READ_LEAST_BYTES = 1 << 28
_SIDE = {"cpu": 1024, "cuda": 4096}  # of the matrices that are multiplied


def fold(lane: Any, first: Any, count: Any, step: Any, zero: Any, x: Array, out: Array) -> None:  # noqa: PLR0913 - a range kernel
    """Read the words of one lane, and keep their parity so that none of the reads is left out."""
    total = zero
    for k in range(count):
        total ^= x[first + k * step]
    out[lane] = total


def _read_bytes(backend: Backend) -> int:
    return max(_READ_LEAST_BYTES, 5 * cache_bytes(backend.device)) // 8 * 8


def roof_bytes(backend: Backend) -> int:
    """Return the memory that a roof takes."""
    return _read_bytes(backend) + 3 * 4 * _SIDE[backend.device.kind] ** 2


def roof(backend: Backend, cost: Cost, dtype: str) -> Roof | None:
    """Return the roof over a pass of this cost whose products are in `dtype`; None where a cache may hold all it reads.

    A pass that small has no roof that memory could set: it is the cache that it would be held against.
    """
    if cost.bytes_moved <= 2 * cache_bytes(backend.device):
        return None
    xp, words = backend.xp, _read_bytes(backend) // 8
    x = backend.rng(0).words(2 * words).view(np.uint64)
    parts = xp.zeros(backend.lanes(words), dtype=np.uint64)
    launch = backend.compile(fold)
    side = _SIDE[backend.device.kind]
    a, b = (backend.rng(seed).bell((side, side), dtype) for seed in (1, 2))
    c = xp.empty((side, side), dtype=dtype)

    def read() -> Array:
        launch(words, np.uint64(0), x, parts)
        return parts

    return Roof(
        read=read,
        read_bytes=x.nbytes,
        multiply=lambda: xp.matmul(a, b, out=c),
        multiply_flops=2 * side**3,
        least_s=cost.least_s,
    )
