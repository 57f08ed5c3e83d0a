"""Seeded inputs: arrays of random numbers that are bit for bit the same on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.device import philox

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

__all__ = ["Rng"]


class Rng:
    """Philox streams of one seed. Each call takes the next stream, so the order of calls matters and their sizes do not."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self._backend = backend
        self._seed = np.uint64(seed)
        self._stream = 0
        self._fill = backend.compile(philox.words)

    def words(self, n: int, *, start: int = 0) -> Array:
        """Return uint32 words of the next stream, shape (n,), beginning with those of counter `start`."""
        blocks = -(-n // 4)
        out = self._backend.xp.empty(4 * blocks, dtype=np.uint32)
        stream, self._stream = self._stream, self._stream + 1
        self._fill(blocks, self._seed, np.uint64(stream), np.uint64(start), out)
        return out[:n]

    def uniform(self, shape: int | Sequence[int], dtype: str = "float32") -> Array:
        """Return numbers in [0, 1): 24 random bits each in float32 and float16's source, 53 in float64."""
        n = math.prod(shape) if isinstance(shape, Sequence) else shape
        wide = dtype == "float64"
        bits = self.words(2 * n).view(np.uint64) if wide else self.words(n)
        numbers = bits.view(np.float64 if wide else np.float32)  # in place: no second array is ever held
        self._backend.compile(philox.units64 if wide else philox.units32)(n, bits, numbers)
        return numbers.astype(dtype, copy=False).reshape(shape)

    def bell(self, shape: int | Sequence[int], dtype: str = "float32") -> Array:
        """Return numbers of mean 0 and variance 1 with a bell-shaped density.

        Each is a sum of eight uniforms (Irwin-Hall), not a Box-Muller normal: logarithms and sines differ between devices in
        the last bit, integer sums do not. Excess kurtosis is -0.15, the range is +-4.9.
        """
        n = math.prod(shape) if isinstance(shape, Sequence) else shape
        numbers = self._backend.xp.empty(n, dtype=np.float32)
        self._backend.compile(philox.bells)(n, self.words(4 * n), numbers)
        return numbers.astype(dtype, copy=False).reshape(shape)

    def order(self, n: int) -> Array:
        """Return a random permutation of 0 to n - 1 as int64, on the host: sort 64 random bits an element."""
        bits = self._backend.to_host(self.words(2 * n)).view(np.uint64)
        return np.argsort(bits, kind="stable")
