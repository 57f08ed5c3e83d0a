"""Gated delta networks, as Qwen3.5 has them in three of four layers: a state that decays, and is corrected where it predicts wrongly.

With state S (key dimensions, value dimensions), decay e^g and rate b, a token does
    S <- e^g S;   S <- S + k (b (v - k S));   out = q S.
A single token does just that. Several go by chunks: within a chunk the corrections depend on each other linearly, so that a triangular
system gives them all at once, and only the state passes from chunk to chunk. Source: Yang et al., Gated Delta Networks (2412.06464), and
the definition in transformers `qwen3_5_moe`. All of it is in float32, but for the products with the layer's matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.cache import DeltaState
    from harness.inference.matrix import Matrix
    from harness.inference.ops import Ops
    from harness.inference.shapes import DeltaNet, ModelSpec
    from harness.inference.step import Step

__all__ = ["DeltaMixer", "chunked", "recurrent", "unit_lower_inverse"]

_CHUNK = 64
_EPS = 1e-6  # of the norm of queries and keys, whatever the model's


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaMixer:
    """One layer's weights, as prepared at load.

    `inward` is the matrix of queries, keys and values, then of the output's gate, of the rates, of the decays. `kernel` is (conv, channels).
    `speed` is -exp(A_log).
    """

    inward: Matrix
    outward: Matrix
    kernel: Array
    speed: Array
    dt_bias: Array
    norm: Array

    def __call__(self, spec: ModelSpec, ops: Ops, x: Array, state: DeltaState, step: Step) -> Array:
        """Mix tokens, x of shape (batch * tokens, hidden), normalised; the state takes them in."""
        net = spec.delta
        assert net is not None  # noqa: S101 - ModelSpec has checked it
        batch, tokens = step.batch, step.tokens
        projected = ops.widened(ops.linear(x, self.inward.array())).reshape(batch, tokens, -1)
        ends = net.channels, net.channels + net.values, net.channels + net.values + net.value_heads
        mixed = self._convolved(ops, projected[..., : ends[0]], state, step)
        rate = ops.sigmoid(projected[..., ends[1] : ends[2]])
        decay = ops.xp.logaddexp(projected[..., ends[2] :] + self.dt_bias, ops.wide.type(0))
        decay *= self.speed
        if step.valid is not None:  # padding changes nothing: no decay, no correction
            rate *= step.valid[..., None]
            decay *= step.valid[..., None]
        out = self._ruled(net, ops, mixed, (rate, decay), state)
        out = ops.norm(out, self.norm, spec.norm_eps)
        out *= ops.silu(projected[..., ends[0] : ends[1]]).reshape(out.shape)
        return ops.linear(out.reshape(batch * tokens, -1), self.outward.array())

    def _convolved(self, ops: Ops, x: Array, state: DeltaState, step: Step) -> Array:
        """Return silu of the causal convolution of each channel with the tokens before; the tail moves on."""
        taps, tokens = len(self.kernel), step.tokens
        seen = ops.xp.concatenate([state.tail, x], axis=1)
        out = seen[:, :tokens] * self.kernel[0]
        for tap in range(1, taps):
            out += seen[:, tap : tap + tokens] * self.kernel[tap]
        state.tail[...] = step.tail(seen, taps - 1)
        return ops.silu(out)

    def _ruled(self, net: DeltaNet, ops: Ops, mixed: Array, gates: tuple[Array, Array], state: DeltaState) -> Array:
        """Apply the rule with the gates' rates and decays; returns (batch, tokens, value heads, value dimensions)."""
        batch, tokens = mixed.shape[:2]
        each = net.value_heads // net.key_heads
        q, k = (
            _unit(ops.xp, mixed[..., first : first + net.keys].reshape(batch, tokens, net.key_heads, 1, net.key_dim))
            for first in (0, net.keys)
        )
        q *= net.key_dim**-0.5
        v = mixed[..., 2 * net.keys :].reshape(batch, tokens, net.key_heads, each, net.value_dim)
        rate, decay = (a.reshape(batch, tokens, net.key_heads, each) for a in gates)
        s = state.recurrent.reshape(batch, net.key_heads, each, net.key_dim, net.value_dim)
        if tokens == 1:
            out = recurrent(ops.xp, q[:, 0], k[:, 0], v[:, 0], rate[:, 0], decay[:, 0], s)[:, None]
        else:
            out = chunked(ops, q, k, v, rate, decay, s)
        return out.reshape(batch, tokens, net.value_heads, net.value_dim)


def _unit(xp: Any, x: Array) -> Array:
    scale = xp.square(x).sum(axis=-1, keepdims=True)
    scale += _EPS
    return x / xp.sqrt(scale)


def recurrent(xp: Any, q: Array, k: Array, v: Array, rate: Array, decay: Array, s: Array) -> Array:  # noqa: PLR0913 - the rule's symbols
    """Take one token into the state, in place.

    Args:
        xp: the array module.
        q: scaled queries, (batch, key heads, 1, key dimensions).
        k: keys of unit length, as `q`.
        v: values, (batch, key heads, value heads of each, value dimensions); the result is of this shape.
        rate: b, (batch, key heads, value heads of each).
        decay: g, as `rate`.
        s: the state, (batch, key heads, value heads of each, key dimensions, value dimensions).
    """
    s *= xp.exp(decay)[..., None, None]
    wrong = v - (k[..., None, :] @ s)[..., 0, :]
    wrong *= rate[..., None]
    s += k[..., None] * wrong[..., None, :]
    return (q[..., None, :] @ s)[..., 0, :]


def chunked(ops: Ops, q: Array, k: Array, v: Array, rate: Array, decay: Array, s: Array) -> Array:  # noqa: PLR0913 - the rule's symbols
    """Take many tokens into the state, in place; arguments as of `recurrent`, each with a second axis of tokens."""
    xp, tokens = ops.xp, v.shape[1]
    size = min(_CHUNK, 1 << (tokens - 1).bit_length())
    states = math.prod(s.shape[:3])
    at_once = size * max(1, ops.block_values // (states * size * max(size, s.shape[-1])))
    out = xp.empty(v.shape, dtype=v.dtype)
    for first in range(0, tokens, at_once):
        part = slice(first, min(first + at_once, tokens))
        cut = [_cut(xp, a[:, part], size) for a in (q, k, v, rate[..., None], decay[..., None])]
        done = _chunks(xp, cut, s)
        out[:, part] = done[:, : part.stop - first]
    return out


def _cut(xp: Any, x: Array, size: int) -> Array:
    """Cut (batch, tokens, key heads, heads, dims) into (batch, key heads, heads, chunks, size, dims); zeros fill the last chunk."""
    batch, tokens, *rest = x.shape
    lack = -tokens % size
    if lack:
        x = xp.concatenate([x, xp.zeros((batch, lack, *rest), dtype=x.dtype)], axis=1)
    return xp.moveaxis(x.reshape(batch, -1, size, *rest), (3, 4), (1, 2))


def _chunks(xp: Any, cut: list[Array], s: Array) -> Array:
    """Take whole chunks of q, k, v, rate and decay into the state, in place; returns (batch, tokens, key heads, heads, value dimensions)."""
    q, k, v, rate, decay = cut
    size = v.shape[-2]
    total = xp.cumsum(decay, axis=-2)  # log of what is left of the chunk's first state after each token
    between = total - total.swapaxes(-1, -2)
    between = xp.exp(xp.where(xp.tri(size, dtype=bool), between, -xp.inf))  # of what token j wrote, at token i
    transposed = k.swapaxes(-1, -2)
    within = (q @ transposed) * between
    system = (k @ transposed) * between
    system *= rate
    inverse = unit_lower_inverse(xp, system)
    left = xp.exp(total)
    written = inverse @ (v * rate)
    read = inverse @ (k * (rate * left))  # what the corrections take from the chunk's first state
    queries, keys = q * left, k * xp.exp(total[..., -1:, :] - total)
    kept = left[..., -1:, :]
    out = xp.empty(v.shape, dtype=v.dtype)
    for i in range(v.shape[-3]):
        new = written[..., i, :, :] - read[..., i, :, :] @ s
        out[..., i, :, :] = queries[..., i, :, :] @ s + within[..., i, :, :] @ new
        s *= kept[..., i, :, :]
        s += keys[..., i, :, :].swapaxes(-1, -2) @ new
    batch, key_heads, heads, _, _, dims = out.shape
    return xp.moveaxis(out, (1, 2), (3, 4)).reshape(batch, -1, key_heads, heads, dims)


def unit_lower_inverse(xp: Any, system: Array) -> Array:
    """Return the inverse of I + L, L being what is below the diagonal of (..., size, size); size is a power of two.

    By halves: the inverse of [[A, 0], [C, B]] is [[A', 0], [-B' C A', B']]. Unlike the sum of L's powers, which grow without bound where keys
    are alike, this is as stable as substitution.
    """
    size = system.shape[-1]
    flat = system.reshape(-1, size, size)
    done = xp.ones((size, len(flat), 1, 1), dtype=system.dtype)
    half = 1
    while half < size:
        pairs = xp.arange(size // (2 * half))
        blocks = flat.reshape(-1, len(pairs), 2 * half, len(pairs), 2 * half)
        corner = blocks[:, pairs, half:, pairs, :half]  # (pairs, matrices, half, half)
        upper, lower = done[::2], done[1::2]
        done = xp.zeros((len(pairs), len(flat), 2 * half, 2 * half), dtype=system.dtype)
        done[..., :half, :half] = upper
        done[..., half:, half:] = lower
        done[..., half:, :half] = -(lower @ (corner @ upper))
        half *= 2
    return done[0].reshape(system.shape)
