"""One step of a model: which tokens of which rows come in, where they go in the cache, and which keys each may see.

Made on the host once a step, used by every layer. Rows of one length take slices and masks of a few numbers; ragged ones take index
arrays, which are copied to the device at the start.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import MisuseError

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.cache import Cache
    from harness.inference.ops import Ops

__all__ = ["Step", "Tile"]

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Tile:
    """Some queries and the keys that any of them sees: tokens `first` to `last` of the step, keys `low` to `high` of the cache.

    Each mask is added to the scores of its keys: (key from, key to, numbers of shape (rows or 1, 1, 1, tokens, keys)).
    """

    first: int
    last: int
    low: int
    high: int
    masks: tuple[tuple[int, int, Array], ...]


class Step:
    """`tokens` new tokens in each row, of which the first `counts` are valid; the rest is padding whose results mean nothing.

    Raises:
        MisuseError: counts do not fit, or a row has no room left.
    """

    def __init__(self, ops: Ops, cache: Cache, tokens: int, counts: Sequence[int] | Host | None) -> None:
        self.ops, self.cache, self.tokens = ops, cache, tokens
        self.counts = _counts(cache, tokens, counts)
        self.starts = cache.lengths
        self.uniform = bool((self.counts == tokens).all() and (self.starts == self.starts[0]).all())
        self.padded = bool((self.counts < tokens).any())
        self._tiled: dict[tuple[int | None, int], tuple[Tile, ...]] = {}

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.cache.batch

    @functools.cached_property
    def _positions(self) -> Host:
        """Where each token stands in its row, (batch, tokens); padding where the last valid one does, so that it too sees some key."""
        last = np.maximum(self.counts - 1, 0)[:, None]
        where: Host = self.starts[:, None] + np.minimum(np.arange(self.tokens), last)
        return where

    @functools.cached_property
    def _places(self) -> tuple[Array, Array, Array]:
        """Row, token and position of each valid token."""
        rows, tokens = np.nonzero(np.arange(self.tokens) < self.counts[:, None])
        positions = self._positions[rows, tokens]
        return self.ops.to_device(rows), self.ops.to_device(tokens), self.ops.to_device(positions)

    @functools.cached_property
    def angles(self) -> tuple[Array, Array]:
        """Cosine and sine of each token's angles, (tokens, rotary), or (batch, 1, tokens, rotary) where rows differ."""
        cos, sin = self.cache.cos, self.cache.sin
        if self.uniform:
            seen = slice(int(self.starts[0]), int(self.starts[0]) + self.tokens)
            return cos[seen], sin[seen]
        where = self.ops.to_device(np.minimum(self._positions, self.cache.capacity - 1))  # a full row may sit idle
        return cos[where][:, None], sin[where][:, None]

    @functools.cached_property
    def valid(self) -> Array | None:
        """Ones for tokens and zeros for padding, (batch, tokens) float32; None where there is no padding."""
        if not self.padded:
            return None
        return self.ops.to_device((np.arange(self.tokens) < self.counts[:, None]).astype(self.ops.wide))

    @functools.cached_property
    def _last(self) -> tuple[Array, Array]:
        rows, last = np.arange(self.batch), np.maximum(self.counts - 1, 0)
        return self.ops.to_device(rows), self.ops.to_device(last)

    def last(self, x: Array) -> Array:
        """Take each row's last valid token of (batch, tokens, ...)."""
        return x[self._last] if self.padded else x[:, -1]

    def tail(self, x: Array, length: int) -> Array:
        """Take what ends with each row's last valid token: x is (batch, length + tokens, ...), the first `length` being older."""
        if not self.padded:
            return x[:, self.tokens :]
        rows, places = np.arange(self.batch)[:, None], self.counts[:, None] + np.arange(length)
        return x[self.ops.to_device(rows), self.ops.to_device(places)]

    def store(self, memory: Array, new: Array) -> None:
        """Write the valid tokens of `new`, (batch, heads, tokens, dimensions), into keys or values."""
        if self.uniform:
            start = int(self.starts[0])
            memory[:, :, start : start + self.tokens] = new
            return
        rows, tokens, positions = self._places
        memory[rows, :, positions] = new[rows, :, tokens].astype(memory.dtype, copy=False)

    def tiles(self, window: int | None, heads: int) -> tuple[Tile, ...]:
        """Cut the queries into blocks whose scores, of `heads` heads, stay small; a sliding layer's `window` bounds its keys."""
        if (window, heads) not in self._tiled:
            self._tiled[window, heads] = tuple(self._tiles(window, heads))
        return self._tiled[window, heads]

    def _tiles(self, window: int | None, heads: int) -> Iterator[Tile]:
        low, high = int(self.starts.min()), int((self.starts + self.counts).max())
        size = max(16, self.ops.block_values // max(self.batch * heads * min(high, (window or high) + 64), 1))
        size = -(-self.tokens // -(-self.tokens // size))  # of equal parts
        return (self._tile(first, size, low, high, window) for first in range(0, self.tokens, size))

    def _tile(self, first: int, size: int, low: int, high: int, window: int | None) -> Tile:
        last = min(first + size, self.tokens)
        start = 0 if window is None else max(0, low + first - window + 1)
        end = max(min(high, int(self.starts.max()) + last), start + 1)
        seen_by_all = low + first + 1  # keys below are no query's future
        masks = [(max(seen_by_all, start), end)]
        if window is not None:
            latest = int(self.starts.max()) + last - 1
            masks = [(start, min(latest - window + 1, seen_by_all)), *masks]
        return Tile(first, last, start, end, tuple(self._mask(first, last, a, b, window) for a, b in masks if a < b))

    def _mask(self, first: int, last: int, low: int, high: int, window: int | None) -> tuple[int, int, Array]:
        keys = np.arange(low, high)
        rows = self._positions[:1, first:last] if self.uniform else self._positions[:, first:last]
        positions = rows[:, None, None, :, None]
        hidden = keys > positions
        if window is not None:
            hidden = hidden | (keys <= positions - window)
        return low, high, self.ops.to_device(np.where(hidden, -np.inf, 0).astype(self.ops.wide))


def _counts(cache: Cache, tokens: int, counts: Sequence[int] | Host | None) -> Host:
    given: Host = np.full(cache.batch, tokens) if counts is None else np.asarray(counts, dtype=np.int64)
    if given.shape != (cache.batch,) or (given < 0).any() or (given > tokens).any():
        msg = f"counts are {given.tolist()}; they must be {cache.batch} numbers from 0 to {tokens}"
        raise MisuseError(msg)
    over = cache.lengths + given > cache.capacity
    if over.any():
        row = int(over.argmax())
        msg = f"row {row} holds {int(cache.lengths[row])} of {cache.capacity} tokens; {int(given[row])} more do not fit"
        raise MisuseError(msg)
    return given
