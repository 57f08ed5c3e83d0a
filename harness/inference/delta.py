"""Gated delta networks, as Qwen3.5 has them in three of four layers: a state that decays, and is corrected where it predicts wrongly.

With state S (key dimensions, value dimensions), decay e^g and rate b, a token does
    S <- e^g S;   S <- S + k (b (v - k S));   out = q S.
A single token does just that. Several go by chunks: within a chunk the corrections depend on each other linearly, so that a triangular
system gives them all at once, and only the state passes from chunk to chunk. Source: Yang et al., Gated Delta Networks (2412.06464), and
the definition in transformers `qwen3_5_moe`. All of it is in float32, but for the products with the layer's matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        heads = batch, tokens, net.key_heads
        each = net.value_heads // net.key_heads
        q, k = (
            _unit(ops.xp, mixed[..., first : first + net.keys].reshape(*heads, net.key_dim)) for first in (0, net.keys)
        )
        q *= net.key_dim**-0.5
        v = mixed[..., 2 * net.keys :].reshape(*heads, each, net.value_dim)
        rate, decay = (a.reshape(*heads, each) for a in gates)
        if tokens == 1:
            out = recurrent(ops.xp, q[:, 0], k[:, 0], v[:, 0], rate[:, 0], decay[:, 0], state.recurrent)
        else:
            out = chunked(ops, q, k, v, rate, decay, state.recurrent)
        return out.reshape(batch, tokens, net.value_heads, net.value_dim)


def _unit(xp: Any, x: Array) -> Array:
    scale = xp.square(x).sum(axis=-1, keepdims=True)
    scale += _EPS
    return x / xp.sqrt(scale)


def recurrent(xp: Any, q: Array, k: Array, v: Array, rate: Array, decay: Array, s: Array) -> Array:  # noqa: PLR0913 - the rule's symbols
    """Take one token into the state, in place.

    Args:
        xp: the array module.
        q: scaled queries, (batch, key heads, key dimensions).
        k: keys of unit length, as `q`.
        v: values, (batch, key heads, value heads of each, value dimensions); the result is of this shape.
        rate: b, (batch, key heads, value heads of each).
        decay: g, as `rate`.
        s: the state, (batch, key heads, key dimensions, value heads of each, value dimensions).
    """
    s *= xp.exp(decay)[:, :, None, :, None]
    flat = s.reshape(*k.shape, -1)
    wrong = v - (k[:, :, None] @ flat).reshape(v.shape)
    wrong *= rate[..., None]
    s += k[..., None, None] * wrong[:, :, None]
    return (q[:, :, None] @ flat).reshape(v.shape)


def chunked(ops: Ops, q: Array, k: Array, v: Array, rate: Array, decay: Array, s: Array) -> Array:  # noqa: PLR0913 - the rule's symbols
    """Take many tokens into the state, in place; arguments as of `recurrent`, each with a second axis of tokens."""
    tokens = v.shape[1]
    size = min(_CHUNK, 1 << (tokens - 1).bit_length())
    states = v.shape[0] * v.shape[2] * v.shape[3]
    at_once = size * max(1, ops.block_values // (states * size * max(size, v.shape[-1])))
    out = ops.xp.empty(v.shape, dtype=v.dtype)
    for first in range(0, tokens, at_once):
        last = min(first + at_once, tokens)
        cut = [_cut(ops.xp, a[:, first:last], size) for a in (q, k, v, rate, decay)]
        for number, done in enumerate(_chunks(ops.xp, cut, s)):
            start = first + number * size
            out[:, start : start + size] = done[:, : last - start]
    return out


def _cut(xp: Any, x: Array, size: int) -> Array:
    """Cut (batch, tokens, key heads, ...) into (chunks, batch, key heads, size, ...); zeros fill the last chunk."""
    batch, tokens, *rest = x.shape
    lack = -tokens % size
    if lack:
        x = xp.concatenate([x, xp.zeros((batch, lack, *rest), dtype=x.dtype)], axis=1)
    return xp.moveaxis(x.reshape(batch, -1, size, *rest), (1, 3), (0, 2))


def _chunks(xp: Any, cut: list[Array], s: Array) -> Iterator[Array]:
    """Take chunks of q, k, v, rate and decay into the state, in place; yields each one's results, (batch, size, key heads, heads, values).

    Axes are (chunks, batch, key heads, tokens, value heads of each, ...), or with these two exchanged. Products are batched without
    broadcasting, which cuBLAS would be told of by pointers made for each: what value heads share stands beside them in a row.
    """
    q, k, v, rate, decay = cut
    total = xp.cumsum(decay, axis=3)  # log of what is left of the chunk's first state after each token
    inverse, within = _within(xp, q, k, rate, total)
    left = xp.exp(total)[..., None]
    expected = left * rate[..., None]
    wanted = v * rate[..., None]
    fade = xp.exp(total[..., -1:, :] - total)[..., None]
    for i in range(len(v)):
        flat = s.reshape(*s.shape[:3], -1)
        error = wanted[i] - expected[i] * (k[i] @ flat).reshape(v.shape[1:])
        new = inverse[i] @ error.swapaxes(2, 3)
        out = left[i] * (q[i] @ flat).reshape(v.shape[1:])
        out += (within[i] @ new).swapaxes(2, 3)
        s *= left[i, :, :, -1:]
        written = (fade[i] * new.swapaxes(2, 3)).reshape(*v.shape[1:4], -1)
        s += (k[i].swapaxes(2, 3) @ written).reshape(s.shape)
        yield out.swapaxes(1, 2)


def _within(xp: Any, q: Array, k: Array, rate: Array, total: Array) -> tuple[Array, Array]:
    """Return how a chunk's corrections depend on each other, solved, and how its results depend on them.

    Both are (chunks, batch, key heads, value heads of each, tokens, tokens).
    """
    by_head = total.swapaxes(3, 4)
    between = by_head[..., :, None] - by_head[..., None, :]
    between = xp.exp(
        xp.where(xp.tri(between.shape[-1], dtype=bool), between, -xp.inf)
    )  # what is left at token i of what token j wrote
    transposed = k.swapaxes(3, 4)
    system = (k @ transposed)[:, :, :, None] * between
    system *= rate.swapaxes(3, 4)[..., None]
    return unit_lower_inverse(xp, system), (q @ transposed)[:, :, :, None] * between


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
