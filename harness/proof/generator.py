"""The same random bytes as the prover's, on a verifier's CPU without Numba: Philox4x32-10 over NumPy arrays, for rows and for small matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.proof.challenge import stream

__all__ = ["drawn_bytes", "random_bytes"]

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def random_bytes(seed: bytes, label: str, first: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return 16 bytes each of `count` counters from `first` on, of a seed's generator for one purpose."""
    return drawn_bytes(stream(seed, label), first, count)


def drawn_bytes(source: tuple[int, int], first: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return 16 bytes each of `count` counters from `first` on, of the generator with this key and stream."""
    key, lane = source
    counters = np.arange(first, first + count, dtype=np.uint64)
    c0, c1 = counters & _LOW, counters >> _HALF
    c2, c3 = np.full(count, lane & 0xFFFFFFFF, dtype=np.uint64), np.full(count, lane >> 32, dtype=np.uint64)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype("<u4").view(np.uint8).reshape(-1)
