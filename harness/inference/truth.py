"""The same answer by another way: what every timed run of a model is judged by.

The weights are made again from the seed, layer by layer, and the whole sequence is taken in by matrix products in as wide a type as
time allows, float64 for small work. So a spoiled weight, a skipped layer, a wrong place in the cache and a faulty fast kernel all
show. One layer is held at a time, which fits beside a model that fills the memory.

Limit: of a large batch eight rows are judged, and of many tokens five hundred; of the rest, that they are tokens and numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.inference import ledger
from harness.inference.model import Model
from harness.inference.ops import matmul
from harness.inference.quant import quantisable, quantise
from harness.inference.subject import places_of

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.subject import Subject

__all__ = ["Truth"]

_WIDE_FLOPS = {"cpu": (4e10, 1e12), "cuda": (2e12, 4e14)}  # that a truth may cost in float64, and in float32
_PIECE = 2048  # tokens that a truth takes in at a time
_ROWS = 1 << 14  # of a table that are made at a time
_JUDGED_ROWS = 8  # of a batch
_JUDGED_PLACES = 512  # of the tokens that were picked
# The most that a logit may be off, in standard deviations of the truth's, by the type that was computed in. Seen in small models on a
# CPU: 1e-6 in float32, 1.7e-3 in float16, 2e-2 where weights of 8 bits stood in for float16. A mixture's near ties go either way in
# float16, and each that does moves all that follows.
_OFF = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2}
_OFF_MIXTURE = {**_OFF, "float16": 0.3}


class Truth:
    """The last states of a sequence, computed by the other way, for the last `kept` tokens of some of a batch's rows."""

    def __init__(self, of: Subject, *, length: int, kept: int) -> None:
        """Compute them.

        Args:
            of: the model and its tokens.
            length: tokens of each row to take in.
            kept: how many of the last of them are to be judged.
        """
        self._of, self._kept = of, kept
        batch = len(of.tokens)
        step = max(1, batch // _JUDGED_ROWS)
        self.rows = list(range(0, batch, step))[:_JUDGED_ROWS] if batch > _JUDGED_ROWS else list(range(batch))
        self._length = length
        self.dtype = self._widest()
        self._hidden = self._normed(self._states())

    def _widest(self) -> str:
        spec = self._of.chosen.spec
        cost = ledger.prefill(spec, batch=len(self.rows), length=self._length, weights=self._of.chosen.weights)
        for dtype, most in zip(("float64", "float32"), _WIDE_FLOPS[self._of.backend.device.kind], strict=True):
            layer = max(map(math.prod, spec.layer_tensors(spec.layers - 1).values())) * np.dtype(dtype).itemsize
            if cost.flops <= most and 4 * layer <= self._of.backend.free_bytes():
                return dtype
        return self._of.dtype

    def _states(self) -> Array:
        """Take the sequence through one layer after another; returns (rows, kept, hidden)."""
        of, xp = self._of, self._of.backend.xp
        hidden = self._embedded()
        for index in range(of.chosen.spec.layers):
            model = Model(
                of.chosen.spec,
                of.weights,
                xp,
                dtype=self.dtype,
                layers=[index],
                keep_packed=of.chosen.weights.bits is not None,
                linear=of.route,
            )
            cache = model.cache(len(self.rows), self._length)
            for first, last in self._pieces():
                if of.route is not None:
                    of.route.expect(xp.asarray(places_of(of.tokens, self.rows, first, last)), [index])
                hidden[:, first:last] = model.layer(index, hidden[:, first:last], cache)
                cache.advance([last - first] * len(self.rows))
        return hidden[:, self._length - self._kept :]

    def _pieces(self) -> list[tuple[int, int]]:
        """Cut the sequence, the last token by itself: whoever took it in at once is held to another cut."""
        edges = [*range(0, self._length - 1, _PIECE), self._length - 1, self._length]
        return [(a, b) for a, b in pairwise(edges) if a < b]

    def _embedded(self) -> Array:
        of, xp = self._of, self._of.backend.xp
        tokens = xp.asarray(of.tokens[self.rows, : self._length])
        hidden = xp.empty(
            (*tokens.shape, of.chosen.spec.hidden), dtype=self.dtype if self.dtype == "float64" else "float32"
        )
        for first, table in self._table("model.embed_tokens.weight"):
            here = (tokens >= first) & (tokens < first + len(table))
            hidden[here] = table[tokens[here] - first]
        return hidden

    def _table(self, name: str) -> Iterator[tuple[int, Array]]:
        """Yield a table some rows at a time, as it is stored: (first row, numbers in float32)."""
        of, xp = self._of, self._of.backend.xp
        rows, width = of.weights.shapes[name]
        bits = of.chosen.weights.bits if quantisable(name, (rows, width)) else None
        for first in range(0, rows, _ROWS):
            count = min(_ROWS, rows - first)
            piece = xp.empty(count * width, dtype=np.float32)
            of.weights.fill(name, piece, start=first * width)
            piece = piece.reshape(count, width)
            if bits is not None:
                yield first, quantise(piece, bits=bits, xp=xp).dequantised(xp)
            else:
                yield first, piece.astype(of.chosen.weights.dtype).astype(np.float32, copy=False)

    def _normed(self, hidden: Array) -> Array:
        spec, weights, xp = self._of.chosen.spec, self._of.weights, self._of.backend.xp
        factors: Array = weights["model.norm.weight"]  # a vector, which is never quantised
        factors = factors.astype(hidden.dtype) + (1 if spec.zero_centred_norms else 0)
        return hidden / xp.sqrt((hidden * hidden).mean(axis=-1, keepdims=True) + spec.norm_eps) * factors

    def logits(self, hidden: Array) -> Array:
        """Return the logits of normed states, (n, hidden) -> (n, vocab)."""
        spec, xp = self._of.chosen.spec, self._of.backend.xp
        out = xp.empty((len(hidden), spec.vocab), dtype=hidden.dtype)
        name = "model.embed_tokens.weight" if spec.tied else "lm_head.weight"
        for first, table in self._table(name):
            out[:, first : first + len(table)] = matmul(hidden, table.astype(hidden.dtype, copy=False))
        return out

    def confirms(self, logits: Array, picks: Array) -> bool:
        """Judge an answer.

        Args:
            logits: of the last token, (batch, vocab).
            picks: the likeliest token after each of the kept ones, (batch, kept).
        """
        of, xp = self._of, self._of.backend.xp
        spec = of.chosen.spec
        shapes = (len(of.tokens), spec.vocab), (len(of.tokens), self._kept)
        if (logits.shape, picks.shape) != shapes or not bool(xp.isfinite(logits).all()):
            return False
        if not bool(((picks >= 0) & (picks < spec.vocab)).all()) or not bool(
            (picks[:, -1] == logits.argmax(axis=-1)).all()
        ):
            return False
        true = self.logits(self._hidden[:, -1])
        limit = (_OFF_MIXTURE if spec.experts else _OFF)[of.dtype]
        if not bool((xp.abs(logits[self.rows] - true) <= limit * true.std(axis=-1, keepdims=True)).all()):
            return False
        return self._likeliest(picks[self.rows].reshape(-1), limit)

    def _likeliest(self, picks: Array, limit: float) -> bool:
        """Tell whether what was picked is as likely as anything, but for rounding; of many places some are looked at."""
        states = self._hidden.reshape(-1, self._hidden.shape[-1])
        some = slice(None, None, -(-len(states) // _JUDGED_PLACES))
        true = self.logits(states[some])
        chosen = self._of.backend.xp.take_along_axis(true, picks[some][:, None], axis=-1)
        return bool((true.max(axis=-1, keepdims=True) - chosen <= 2 * limit * true.std(axis=-1, keepdims=True)).all())
