"""SHA-256 of many rows at once, on the device that holds them: CUDA C++ with a twin by hashlib.

Every digest here is of a 64-byte prefix and a row. The prefix names what the row is (a state's row, a node of a tree, sums of a scan), where it
stands, how long it is, and the seed of its challenge. So no digest of one kind, place or challenge can pass for another.
Source: FIPS 180-4; a row's length is a multiple of 4 bytes.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import TYPE_CHECKING

import numpy as np

from harness.device.backend import CudaSource

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

__all__ = ["HASH", "LEAF", "NODE", "SCAN", "SCAN_NODE", "SUMS", "TOP", "Hasher", "row_digest"]

# What a digest is of: the first word of its prefix.
LEAF, SUMS, NODE, TOP, SCAN, SCAN_NODE = (
    int.from_bytes(name, "big") for name in (b"leaf", b"sums", b"node", b"top.", b"read", b"scan")
)

_THREADS = 128
_PRIMES = [p for p in range(2, 312) if all(p % q for q in range(2, p))]


def _cube_root(n: int) -> int:
    root = 1 << -(-n.bit_length() // 3)
    while root**3 > n:
        root = (2 * root + n // root**2) // 3
    return root


# Fractional parts of the cube roots of the first 64 primes, and of the square roots of the first 8.
_K = ",".join(f"{_cube_root(p << 96) & 0xFFFFFFFF:#x}u" for p in _PRIMES)
_H = ",".join(f"{math.isqrt(p << 64) & 0xFFFFFFFF:#x}u" for p in _PRIMES[:8])


def _prefix(kind: int, place: int, number: int, row_bytes: int, seed: bytes) -> bytes:
    return struct.pack(">4I16x32s", kind, place, number, row_bytes, seed)


def row_digest(kind: int, place: int, number: int, row: bytes, seed: bytes) -> bytes:
    """Return the digest of one row, 32 bytes; `seed` has 32, the numbers 32 bits each."""
    return hashlib.sha256(_prefix(kind, place, number, len(row), seed) + row).digest()


def _digests(count: int, words: int, head: Array, rows: Array, out: Array) -> None:
    begin, size = head.astype(">u4").tobytes(), 4 * int(words)
    data, digests = rows.tobytes(), out.view(np.uint8).reshape(-1)
    for i in range(int(count)):
        state = hashlib.sha256(begin[:8] + i.to_bytes(4, "big") + begin[12:])
        state.update(data[i * size : (i + 1) * size])
        digests[32 * i : 32 * i + 32] = np.frombuffer(state.digest(), dtype=np.uint8)


HASH = CudaSource(
    name="digests",
    twin=_digests,
    text=rf"""
__constant__ unsigned K[64] = {{{_K}}};

__device__ __forceinline__ unsigned turn(unsigned x, int n) {{ return __funnelshift_r(x, x, n); }}
__device__ __forceinline__ unsigned swap(unsigned x) {{ return __byte_perm(x, 0, 0x0123); }}

__device__ void compress(unsigned* s, unsigned* w) {{
  unsigned a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
  #pragma unroll
  for (int t = 0; t < 64; ++t) {{
    if (t >= 16) {{
      const unsigned x = w[(t + 1) & 15], y = w[(t + 14) & 15];
      w[t & 15] += (turn(x, 7) ^ turn(x, 18) ^ (x >> 3)) + w[(t + 9) & 15] + (turn(y, 17) ^ turn(y, 19) ^ (y >> 10));
    }}
    const unsigned t1 = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[t] + w[t & 15];
    const unsigned t2 = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g; g = f; f = e; e = d + t1; d = c; c = b; b = a; a = t1 + t2;
  }}
  s[0] += a; s[1] += b; s[2] += c; s[3] += d; s[4] += e; s[5] += f; s[6] += g; s[7] += h;
}}

extern "C" __global__ void digests(unsigned count, unsigned words, const unsigned* head, const unsigned* rows, unsigned* out) {{
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  unsigned s[8] = {{{_H}}}, w[16];
  #pragma unroll
  for (int j = 0; j < 16; ++j) w[j] = j == 2 ? i : head[j];
  compress(s, w);
  const unsigned* row = rows + (unsigned long long)i * words;
  unsigned at = 0;
  for (; at + 16 <= words; at += 16) {{
    #pragma unroll
    for (int j = 0; j < 16; ++j) w[j] = swap(row[at + j]);
    compress(s, w);
  }}
  const unsigned left = words - at;
  #pragma unroll
  for (int j = 0; j < 16; ++j) w[j] = j < left ? swap(row[at + j]) : j == left ? 0x80000000u : 0u;
  if (left > 13) {{  // no room for the length
    compress(s, w);
    #pragma unroll
    for (int j = 0; j < 16; ++j) w[j] = 0u;
  }}
  w[14] = words >> 27;
  w[15] = (words + 16) << 5;
  compress(s, w);
  #pragma unroll
  for (int j = 0; j < 8; ++j) out[8ull * i + j] = swap(s[j]);
}}
""",
)


class Hasher:
    """Digests of rows of one challenge, on one device."""

    def __init__(self, backend: Backend, seed: bytes) -> None:
        self._xp = backend.xp
        self._launch = backend.load(HASH)
        self._seed = seed

    def rows(self, kind: int, place: int, rows: Array, *, seed: bytes | None = None) -> Array:
        """Return the digests of rows, shape (m, k) of any type, as bytes: uint8 of shape (m, 32)."""
        count, row_bytes = len(rows), rows.nbytes // len(rows)
        head = np.frombuffer(_prefix(kind, place, 0, row_bytes, seed or self._seed), dtype=">u4").astype(np.uint32)
        out = self._xp.empty((count, 8), dtype=np.uint32)
        words = rows.reshape(-1).view(np.uint32)
        sizes = np.uint32(count), np.uint32(row_bytes // 4)
        self._launch(-(-count // _THREADS), _THREADS, *sizes, self._xp.asarray(head), words, out)
        return out.view(np.uint8)
