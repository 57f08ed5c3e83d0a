"""Merkle trees over rows of digests: made on the device level by level, climbed on a CPU by hashlib.

A node's digest covers its level, its number and the challenge's seed. The last node of a level with no neighbour moves up as it is; how many
leaves there are is always known to who climbs, so that no two trees share a root by that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.proof.hashing import Hasher, row_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.device.backend import Array, Backend

__all__ = ["climb", "levels", "path", "path_length", "root"]

DIGEST_BYTES = 32


def levels(hasher: Hasher, kind: int, leaves: Array) -> list[Array]:
    """Return all levels of a tree, leaves of shape (m, 32) first; the last holds the root alone."""
    found = [leaves]
    while len(found[-1]) > 1:
        below = found[-1]
        pairs = len(below) // 2
        above = hasher.rows(kind, len(found), below[: 2 * pairs].reshape(pairs, 2 * DIGEST_BYTES))
        if len(below) % 2:
            above = _joined(above, below[2 * pairs :])
        found.append(above)
    return found


def _joined(above: Array, last: Array) -> Array:
    both = type(above)((len(above) + 1, DIGEST_BYTES), dtype=np.uint8)  # an array of the same module, whichever that is
    both[:-1], both[-1:] = above, last
    return both


def root(backend: Backend, tree: Sequence[Array]) -> bytes:
    """Return a tree's root."""
    return backend.to_host(tree[-1]).tobytes()


def path(tree: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], index: int) -> bytes:
    """Return the neighbours on the way up from a leaf, 32 bytes each, of a tree that is on the host."""
    found = []
    for level in tree[:-1]:
        if index ^ 1 < len(level):
            found.append(level[index ^ 1].tobytes())
        index >>= 1
    return b"".join(found)


def path_length(index: int, count: int) -> int:
    """Return how many neighbours there are on the way up from a leaf among so many."""
    length = 0
    while count > 1:
        length += index ^ 1 < count
        index, count = index >> 1, (count + 1) >> 1
    return length


def climb(kind: int, leaf: bytes, at: tuple[int, int], way: bytes, seed: bytes) -> bytes:
    """Return the root that a leaf and its path lead to; `at` is its index and how many leaves there are, `way` has `path_length` of them digests."""
    (index, count), begin, level = at, 0, 1
    while count > 1:
        if index ^ 1 < count:
            neighbour = way[begin : begin + DIGEST_BYTES]
            begin += DIGEST_BYTES
            pair = neighbour + leaf if index & 1 else leaf + neighbour
            leaf = row_digest(kind, level, index >> 1, pair, seed)
        index, count, level = index >> 1, (count + 1) >> 1, level + 1
    return leaf
