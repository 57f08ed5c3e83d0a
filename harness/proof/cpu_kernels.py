"""B r, with B drawn on the way and kept nowhere: the verifier's one large loop, compiled by Numba.

A thread takes a share of B's rows, sixty-four at a time, and walks through them in strips of 1,024 columns, so that a strip of the vectors stays in
the first cache while all of those rows use it. The generator's words of a strip are kept by their place in a block of four, not in the order
of columns, so that both loops run in vectors; the vectors come in that order, too.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Numba types the arguments, and takes them one by one

from __future__ import annotations

import numpy as np
from numba import njit  # noqa: TID253 - to import this module is to want Numba loaded

__all__ = ["STRIP", "project_floats", "project_integers"]

STRIP = 1024  # columns

_ROWS = 64
_SUMS = {"reassoc", "nsz", "contract"}  # sums may be taken in vectors, products fused
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@njit(nogil=True, cache=True)
def _draw(key, lane, first, count, out):
    """Write the first words of `count` counters, then their second words, third and fourth."""
    lane_low, lane_high, key_low, key_high = lane & _LOW, lane >> _HALF, key & _LOW, key >> _HALF
    one, two, three = out[count : 2 * count], out[2 * count : 3 * count], out[3 * count :]
    for c in range(
        np.uint64(count)
    ):  # unsigned: for a signed index Numba looks whether it is negative, and LLVM gives up on vectors
        at = first + c
        c0, c1, c2, c3, k0, k1 = at & _LOW, at >> _HALF, lane_low, lane_high, key_low, key_high
        for _ in range(10):
            p0, p1 = _M0 * c0, _M1 * c2
            c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        out[c] = np.uint32(c0)
        one[c] = np.uint32(c1)
        two[c] = np.uint32(c2)
        three[c] = np.uint32(c3)


@njit(nogil=True, cache=True, fastmath=_SUMS)
def project_integers(key, lane, n, begin, end, first, second, out):
    """Add to out[:, k] the products of row k of B, signed bytes, with two vectors of whole numbers of 36 bits; for rows begin to end.

    In float64, which is exact: 1,024 products of 7 and 35 bits and their signs make 52. A CPU multiplies four of them at once, and of 64-bit
    integers not one.
    """
    words = np.empty(STRIP // 4, dtype=np.uint32)
    numbers = words.view(np.int8)
    for top in range(begin, end, _ROWS):
        for left in range(0, n, STRIP):
            width = min(STRIP, n - left)
            here, there = first[left : left + width], second[left : left + width]
            for k in range(top, min(top + _ROWS, end)):
                _draw(key, lane, np.uint64((k * n + left) // 16), width // 16, words)
                a = b = 0.0
                for j in range(np.uint64(width)):
                    number = np.float64(numbers[j])
                    a += number * here[j]
                    b += number * there[j]
                out[0, k] += np.int64(a)
                out[1, k] += np.int64(b)


@njit(nogil=True, cache=True, fastmath=_SUMS)
def project_floats(key, lane, n, begin, end, table, signs, out):
    """Add to out[:, k] the products of row k of B, numbers of a table, with four vectors of signs; for rows begin to end."""
    words = np.empty(STRIP // 4, dtype=np.uint32)
    codes = words.view(np.uint8)
    for top in range(begin, end, _ROWS):
        for left in range(0, n, STRIP):
            width = min(STRIP, n - left)
            s0, s1 = signs[0, left : left + width], signs[1, left : left + width]
            s2, s3 = signs[2, left : left + width], signs[3, left : left + width]
            for k in range(top, min(top + _ROWS, end)):
                _draw(key, lane, np.uint64((k * n + left) // 16), width // 16, words)
                a = b = c = d = 0.0
                for j in range(np.uint64(width)):
                    number = table[codes[j]]
                    a += number * s0[j]
                    b += number * s1[j]
                    c += number * s2[j]
                    d += number * s3[j]
                out[0, k] += a
                out[1, k] += b
                out[2, k] += c
                out[3, k] += d
