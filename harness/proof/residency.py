"""Scans of memory: sums over every row of every state, keyed, each scan's key the root of the one before.

A row's sum is linear in the row's 8-byte words, modulo 2^64, and its key is not known before the scan begins: to give it, every byte must be read
again, or made again, which takes 2 n operations a byte. State 0 is left out: it can be drawn as fast as read.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.device.backend import CudaSource
from harness.proof import hashing, merkle
from harness.proof.bundle import GROUP
from harness.proof.challenge import framed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.device.backend import Array, Backend
    from harness.proof.hashing import Hasher

__all__ = ["SUMS", "Scan", "key_words", "row_sum", "scan"]

_KEY = b"harness.proof/1 scan key"
_WARPS, _ROWS = (
    8,
    4,
)  # of a block; rows a warp takes at once, so that each word of the key is loaded once for all of them


def _summed(rows: int, words: int, key: Any, state: Any, out: Any) -> None:
    np.dot(state.view(np.uint64).reshape(int(rows), int(words)), key, out=out)


SUMS = CudaSource(
    name="sums",
    twin=_summed,
    text=rf"""
extern "C" __global__ void sums(unsigned rows, unsigned words, const unsigned long long* key,
                                const unsigned long long* state, unsigned long long* out) {{
  const unsigned lane = threadIdx.x & 31, first = {_ROWS} * ((blockIdx.x * blockDim.x + threadIdx.x) >> 5);
  if (first >= rows) return;  // a whole warp
  unsigned long long total[{_ROWS}] = {{0}};
  for (unsigned w = lane; w < words; w += 32) {{
    const unsigned long long k = key[w];
    #pragma unroll
    for (int r = 0; r < {_ROWS}; ++r) total[r] += k * state[(unsigned long long)(first + r) * words + w];
  }}
  #pragma unroll
  for (int r = 0; r < {_ROWS}; ++r) {{
    for (int by = 16; by; by >>= 1) total[r] += __shfl_down_sync(0xffffffffu, total[r], by);
    if (lane == 0) out[first + r] = total[r];
  }}
}}
""",
)


class Scan:
    """One scan that was done: its tree, on the host, and the sums under it."""

    def __init__(self, tree: list[Any], sums: Any) -> None:
        self.tree, self.sums = tree, sums

    def opening(self, number: int) -> bytes:
        """Return the sums of a row's group and their path; rows are numbered through all states."""
        group = number // GROUP
        sums: bytes = self.sums[group * GROUP : (group + 1) * GROUP].tobytes()
        return sums + merkle.path(self.tree, group)


def key_words(key: str, n: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the key's n / 8 numbers."""
    source = hashlib.shake_256(framed((_KEY, bytes.fromhex(key)))).digest(n)
    return np.frombuffer(source, dtype="<u8").astype(np.uint64)


def row_sum(key: np.ndarray[Any, np.dtype[np.uint64]], row: bytes) -> int:
    """Return the sum of one row."""
    return int(np.dot(np.frombuffer(row, dtype="<u8"), key))


def scan(backend: Backend, hasher: Hasher, states: Sequence[Array], key: str) -> tuple[str, Scan]:
    """Read all states once and return the root of their sums, with what is needed to open it."""
    xp, n = backend.xp, states[0].shape[1]
    launch, words = backend.load(SUMS), xp.asarray(key_words(key, n))
    sums = xp.empty(len(states) * n, dtype=np.uint64)
    blocks = -(-n // (_ROWS * _WARPS))
    for at, state in enumerate(states):
        sizes = np.uint32(n), np.uint32(n // 8)
        launch(blocks, 32 * _WARPS, *sizes, words, state.reshape(-1).view(np.uint64), sums[at * n : (at + 1) * n])
    leaves = hasher.rows(hashing.SCAN, 0, sums.reshape(-1, GROUP), seed=bytes.fromhex(key))
    tree = [backend.to_host(level) for level in merkle.levels(hasher, hashing.SCAN_NODE, leaves)]
    return tree[-1].tobytes().hex(), Scan(tree, backend.to_host(sums))
