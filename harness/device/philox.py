"""Philox4x32-10, the counter-based generator, as a range kernel: the same bits on a CPU and on a GPU, any slice on its own.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11; the tests hold its published vectors.
The counter is (index, stream), 64 bits each, low word first; the key is the seed. Integers only: no compiler can change a bit.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["bells", "units32", "units64", "words"]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FOUR = np.uint64(4)
_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)

_EIGHT = np.uint32(8)
_SIXTEEN = np.uint32(16)
_HALFWORD = np.uint32(0xFFFF)
_ELEVEN = np.uint64(11)
_UNIT32 = np.float32(2.0**-24)
_UNIT64 = np.float64(2.0**-53)
_BELL_MEAN = np.int64(4 * 65535)
_BELL_SCALE = np.float32(math.sqrt(12 / 8) / 65536)  # a sum of eight 16-bit uniforms has variance 8/12 * 65536**2


def words(lane, first, count, step, seed, stream, start, out):  # type: ignore[no-untyped-def]
    """Write the four 32-bit words of counters start, start + 1, ... to `out`, which holds four a counter."""
    for k in range(count):
        i = first + k * step
        c0 = (start + i) & _LOW
        c1 = (start + i) >> _HALF
        c2 = stream & _LOW
        c3 = stream >> _HALF
        k0 = seed & _LOW
        k1 = seed >> _HALF
        for _ in range(10):
            p0 = _M0 * c0
            p1 = _M1 * c2
            c0 = (p1 >> _HALF) ^ c1 ^ k0
            c1 = p1 & _LOW
            c2 = (p0 >> _HALF) ^ c3 ^ k1
            c3 = p0 & _LOW
            k0 = (k0 + _W0) & _LOW
            k1 = (k1 + _W1) & _LOW
        at = _FOUR * i
        out[at] = c0
        out[at + np.uint64(1)] = c1
        out[at + np.uint64(2)] = c2
        out[at + np.uint64(3)] = c3


def units32(lane, first, count, step, bits, out):  # type: ignore[no-untyped-def]
    """Turn 32-bit words into float32 in [0, 1), 24 bits each; `out` may be a view of `bits`."""
    for k in range(count):
        i = first + k * step
        out[i] = np.float32(bits[i] >> _EIGHT) * _UNIT32


def units64(lane, first, count, step, bits, out):  # type: ignore[no-untyped-def]
    """Turn 64-bit words into float64 in [0, 1), 53 bits each; `out` may be a view of `bits`."""
    for k in range(count):
        i = first + k * step
        out[i] = np.float64(bits[i] >> _ELEVEN) * _UNIT64


def bells(lane, first, count, step, bits, out):  # type: ignore[no-untyped-def]
    """Turn four 32-bit words each into the scaled sum of their eight halves, less its mean."""
    for k in range(count):
        i = first + k * step
        total = np.int64(0)
        for j in range(4):
            word = bits[_FOUR * i + np.uint64(j)]
            total += np.int64(word & _HALFWORD) + np.int64(word >> _SIXTEEN)
        out[i] = np.float32(total - _BELL_MEAN) * _BELL_SCALE
