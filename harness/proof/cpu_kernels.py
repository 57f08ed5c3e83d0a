"""B r, with B drawn on the way and kept nowhere: the verifier's one large loop, for Numba to compile.

A thread takes a share of B's rows, sixty-four at a time, and walks through them in strips of 1,024 columns, so that a strip of the vectors stays in
the first cache while all of those rows use it. The generator's words of a strip are kept by their place in a block of four, not in the order
of columns, so that both loops run in vectors; the vectors come in that order, too.

Nothing here allocates, slices or can raise, and every array is of one dimension: so it compiles for pointers as for arrays, and what comes out needs
neither Python nor Numba around it (`ahead`). `words` is room for a strip, and `numbers` or `codes` the same bytes by another name.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Numba types the arguments, and takes them one by one

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253 - to import this module is to want Numba loaded

from harness.proof.loops import STRIP

__all__ = ["OPTIONS", "project_floats", "project_integers"]

OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "nsz", "contract"}}  # sums in vectors, products fused

_ROWS = 64
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_TWO, _THREE, _BLOCK = np.uint64(2), np.uint64(3), np.uint64(16)


@njit(nogil=True)
def _draw(key, lane, first, count, out):
    """Write the first words of `count` counters, then their second words, third and fourth.

    All is unsigned: for a signed index Numba looks whether it is negative, and LLVM gives up on vectors.
    """
    lane_low, lane_high, key_low, key_high = lane & _LOW, lane >> _HALF, key & _LOW, key >> _HALF
    for c in range(count):
        at = first + c
        c0, c1, c2, c3, k0, k1 = at & _LOW, at >> _HALF, lane_low, lane_high, key_low, key_high
        for _ in range(10):
            p0, p1 = _M0 * c0, _M1 * c2
            c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        out[c] = np.uint32(c0)
        out[count + c] = np.uint32(c1)
        out[_TWO * count + c] = np.uint32(c2)
        out[_THREE * count + c] = np.uint32(c3)


def project_integers(key, lane, n, begin, end, vectors, out, words, numbers):
    """Add to out[k] and out[n + k] the products of row k of B, signed bytes, with two vectors of whole numbers of 36 bits; for rows begin to end.

    In float64, which is exact: 1,024 products of 7 and 35 bits and their signs make 52. A CPU multiplies four of them at once, and of 64-bit
    integers not one.
    """
    for top in range(begin, end, _ROWS):
        for left in range(0, n, STRIP):
            width = np.uint64(min(STRIP, n - left))
            here, there = np.uint64(left), np.uint64(n + left)
            for k in range(top, min(top + _ROWS, end)):
                _draw(key, lane, np.uint64(k * n + left) // _BLOCK, width // _BLOCK, words)
                a = b = 0.0
                for j in range(width):
                    number = np.float64(numbers[j])
                    a += number * vectors[here + j]
                    b += number * vectors[there + j]
                out[k] += np.int64(a)
                out[n + k] += np.int64(b)


def project_floats(key, lane, n, begin, end, vectors, out, words, codes, table):
    """Add to out[k], out[n + k], ... the products of row k of B, numbers of a table, with four vectors of signs; for rows begin to end."""
    for top in range(begin, end, _ROWS):
        for left in range(0, n, STRIP):
            width = np.uint64(min(STRIP, n - left))
            v0, v1 = np.uint64(left), np.uint64(n + left)
            v2, v3 = np.uint64(2 * n + left), np.uint64(3 * n + left)
            for k in range(top, min(top + _ROWS, end)):
                _draw(key, lane, np.uint64(k * n + left) // _BLOCK, width // _BLOCK, words)
                a = b = c = d = 0.0
                for j in range(width):
                    number = table[codes[j]]
                    a += number * vectors[v0 + j]
                    b += number * vectors[v1 + j]
                    c += number * vectors[v2 + j]
                    d += number * vectors[v3 + j]
                out[k] += a
                out[n + k] += b
                out[2 * n + k] += c
                out[3 * n + k] += d
