"""Attention with grouped queries over the cache: full, sliding, with sinks, with an output gate.

Queries are taken in blocks, so that no score of more than a block is ever in memory; keys and values are read where they lie. (CuPy's
batched product copies the part of the cache that it reads; the fused path has kernels of its own.) Products are in the cache's dtype, softmax in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.inference.rope import rotate

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.cache import KeyValues
    from harness.inference.matrix import Matrix
    from harness.inference.ops import Ops
    from harness.inference.shapes import ModelSpec
    from harness.inference.step import Step, Tile

__all__ = ["Attention"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One layer's weights, as prepared at load.

    `inward` is the matrix of queries, keys, values and, where the model has one, the output gate, one below the other. `head_norm` is
    (heads + kv heads, 1, dimensions). `sinks` is (kv heads, heads of a group, 1, 1).
    """

    inward: Matrix
    inward_bias: Array | None
    outward: Matrix
    outward_bias: Array | None
    head_norm: Array | None
    sinks: Array | None
    window: int | None

    def __call__(self, spec: ModelSpec, ops: Ops, x: Array, memory: KeyValues, step: Step) -> Array:
        """Mix tokens, x of shape (batch * tokens, hidden), normalised; their keys and values are added to the memory."""
        heads, kv_heads, dims = spec.heads, spec.kv_heads, spec.head_dim
        batch, tokens = step.batch, step.tokens
        projected = ops.linear(x, self.inward.array(), self.inward_bias)
        projected = projected.reshape(batch, tokens, -1, dims).swapaxes(1, 2)
        turned = ops.widened(projected[:, : heads + kv_heads])
        if self.head_norm is not None:
            turned = ops.norm(turned, self.head_norm, spec.norm_eps)
        turned = rotate(ops.xp, turned, *step.angles)
        step.store(memory.keys, turned[:, heads:])
        step.store(memory.values, projected[:, heads + kv_heads : heads + 2 * kv_heads])
        queries = turned[:, :heads]
        queries *= dims**-0.5
        mixed = self._mixed(ops, queries.astype(memory.keys.dtype, copy=False), memory, step)
        if spec.output_gate:
            mixed *= ops.sigmoid(projected[:, heads + 2 * kv_heads :]).swapaxes(1, 2)
        return ops.linear(mixed.reshape(batch * tokens, -1), self.outward.array(), self.outward_bias)

    def _mixed(self, ops: Ops, queries: Array, memory: KeyValues, step: Step) -> Array:
        """Return the mean of the values that each query asks for, (batch, tokens, heads, dimensions) float32."""
        batch, heads, tokens, dims = queries.shape
        grouped = queries.reshape(batch, memory.keys.shape[1], -1, tokens, dims)
        out = ops.xp.empty((batch, tokens, heads, dims), dtype=ops.wide)
        for tile in step.tiles(self.window, heads):
            block = self._block(ops, grouped[:, :, :, tile.first : tile.last], memory, tile)
            out[:, tile.first : tile.last] = block.reshape(batch, heads, -1, dims).swapaxes(1, 2)
        return out

    def _block(self, ops: Ops, queries: Array, memory: KeyValues, tile: Tile) -> Array:
        """Return the means that a block of queries asks for, of their shape (batch, kv heads, heads of a group, tokens, dimensions)."""
        xp, shape = ops.xp, queries.shape
        keys = memory.keys[:, :, tile.low : tile.high]
        values = memory.values[:, :, tile.low : tile.high]
        rows = queries.reshape(
            *shape[:2], -1, shape[4]
        )  # a group's heads one below the other: one product with their keys
        scores = ops.widened(rows @ keys.swapaxes(2, 3)).reshape(*shape[:4], -1)
        for low, high, mask in tile.masks:
            scores[..., low - tile.low : high - tile.low] += mask
        top = scores.max(axis=-1, keepdims=True)
        if self.sinks is not None:
            top = xp.maximum(top, self.sinks)
        scores -= top
        xp.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        if self.sinks is not None:
            total += xp.exp(self.sinks - top)
        weights = scores.reshape(*rows.shape[:3], -1).astype(values.dtype, copy=False)
        mixed = ops.widened(weights @ values).reshape(shape)
        mixed /= total
        return mixed
