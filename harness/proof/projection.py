"""Freivalds' check, row by row: Y r = X (B r), with vectors r that nobody knew before Y was fixed.

Mode int8: two vectors of uniform 36-bit numbers, all modulo 2^64. A wrong row of 32-bit sums passes one of them with probability at most 2^-33: let 2^v
be the largest power of two that divides all its errors, v <= 31. Of the coordinate whose error that is, given all others, the values that pass lie
2^(64 - v) >= 2^33 apart: at most 8 of 2^36. Both vectors: 2^-66.
Float modes: four vectors of random signs in float64. z = |Y r - X (B r)| / (|X| sqrt(n)) is the error of an element in units of |X|; `tolerance` says
what an honest device may show. A wrong row whose error has a size s passes with probability about (2 tolerance / (s sqrt(2 pi)))^4.
"""

from __future__ import annotations

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from harness.proof import loops
from harness.proof.chain import numbers
from harness.proof.challenge import framed, stream
from harness.proof.generator import random_bytes

__all__ = ["Projection", "prepare", "tolerance"]

Host = np.ndarray[Any, Any]

_VECTORS = b"harness.proof/1 vectors"
_SHORT = 3e-6
_EXACT_VECTORS, _SIGN_VECTORS = 2, 4
_VECTOR_BITS = 36  # so that float64 holds sums of products with a strip of B exactly
_SMALL = 1024  # n up to which NumPy is fast enough, so that nothing need be compiled
_PIECE = 256  # rows
_LOOPS, _FLOATS = {"int8": "project_integers"}, "project_floats"


def tolerance(mode: str, n: int) -> float:
    """Return the largest z that an honest device may show; 0 in mode int8.

    Three times what was seen at its worst in 16 rows of n = 256, 2,048 and 8,192, in NumPy, of honest models: for 16-bit operands a sum that is cut to 24
    bits after every 16 products, as tensor cores do (3e-9 n); for float32 one rounded after each product (4e-8 sqrt(n)). Cheaper ways lie
    above: sums of 14 bits or in float16, operands of 8 bits, TF32 for float32, float32 for float64. No GPU was measured.
    In a short sum single roundings show, which are rare in 16 rows: 3e-6 at least, nearly three times the worst of hundreds to thousands of rows of n = 16 to 256 with BLAS.
    """
    if mode in {"int8", "float64"}:
        return 0.0 if mode == "int8" else 1e-12
    return max(_SHORT, 1.2e-7 * math.sqrt(n) if mode == "float32" else 1e-8 * n)


def prepare(mode: str, n: int) -> None:
    """Have the compiled loop at hand where checks of this size use it: the first one on a machine waits for seconds until it is made."""
    if n > _SMALL:
        loops.loop(_LOOPS.get(mode, _FLOATS))


class Projection:
    """The vectors of one check and B times each of them."""

    def __init__(self, mode: str, n: int, seed: bytes, secret: bytes, *, compiled: bool | None = None) -> None:
        """Draw the vectors from a secret, and B from the challenge's seed. `compiled` overrides the choice by size."""
        self._mode, self._n = mode, n
        exact = mode == "int8"
        self._vectors = _integers(secret, n) if exact else _signs(secret, n)
        self._projected = np.zeros_like(self._vectors)
        if n > _SMALL if compiled is None else compiled:
            _in_threads(mode, n, stream(seed, "B"), self._vectors, self._projected)
        else:
            _in_numpy(mode, n, seed, self._vectors, self._projected)

    def residual(self, codes: Host, sums: Host) -> float:
        """Return how far a row of sums, shape (n,), is from the row of a state, codes of shape (n,), times B.

        In mode int8 this is 0 or infinite; in the others the largest z.
        """
        x = numbers(self._mode)[codes]
        if self._mode == "int8":
            apart = self._vectors @ sums.astype(np.int64) - self._projected @ x
            return np.inf if apart.any() else 0.0
        apart = self._vectors @ sums.astype(np.float64) - self._projected @ x
        return float(np.abs(apart).max() / (np.linalg.norm(x) * np.sqrt(self._n)))


def _integers(secret: bytes, n: int) -> Host:
    source = hashlib.shake_256(framed((_VECTORS, secret))).digest(8 * n * _EXACT_VECTORS)
    return (
        (np.frombuffer(source, dtype="<i8") >> np.int64(64 - _VECTOR_BITS)).astype(np.int64).reshape(_EXACT_VECTORS, n)
    )


def _signs(secret: bytes, n: int) -> Host:
    source = hashlib.shake_256(framed((_VECTORS, secret))).digest(n * _SIGN_VECTORS // 8)
    bits = np.unpackbits(np.frombuffer(source, dtype=np.uint8)).reshape(_SIGN_VECTORS, n)
    return 1.0 - 2.0 * bits.astype(np.float64)


def _in_numpy(mode: str, n: int, seed: bytes, vectors: Host, out: Host) -> None:
    for top in range(0, n, _PIECE):
        rows = min(_PIECE, n - top)
        drawn = random_bytes(seed, "B", top * n // 16, rows * n // 16).reshape(rows, n)
        out[:, top : top + rows] = vectors @ numbers(mode)[drawn].T


def _in_threads(mode: str, n: int, generator: tuple[int, int], vectors: Host, out: Host) -> None:
    loop = loops.loop(_LOOPS.get(mode, _FLOATS))
    shuffled = _by_words(vectors.astype(np.float64), n, loops.STRIP).reshape(-1)
    tables = () if mode == "int8" else (numbers(mode),)

    def share(begin: int, end: int) -> None:
        words = np.empty(loops.STRIP // 4, dtype=np.uint32)
        codes = words.view(np.int8 if mode == "int8" else np.uint8)
        loop(*generator, n, begin, end, shuffled, out.reshape(-1), words, codes, *tables)

    threads = len(os.sched_getaffinity(0))
    edges = list(pairwise(n * i // threads for i in range(threads + 1)))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, *zip(*edges, strict=True)))


def _by_words(vectors: Host, n: int, strip: int) -> Host:
    """Return the vectors in the order in which the loops keep a strip: all first words of its blocks of 16 bytes, all second ones, ..."""
    parts = []
    for left in range(0, n, strip):
        part = vectors[:, left : left + strip]
        parts.append(part.reshape(len(part), -1, 4, 4).transpose(0, 2, 1, 3).reshape(len(part), -1))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
