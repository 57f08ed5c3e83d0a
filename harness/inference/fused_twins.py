"""What the kernels of the fused path do, on NumPy arrays: each takes its kernel's own arguments, without the grid.

A table of experts is a sequence of arrays here, of pointers on a GPU. What a kernel needs to get its work done (counters, partial
results) is left alone.
"""

# ruff: noqa: PLR0913 - a twin takes what its kernel takes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.device.backend import Array
from harness.inference.quant import GROUP, Quantised

__all__ = ["STREAMING", "attend", "decoded", "delta"]

Table = Sequence[Array]


def decoded(values: Array, scales: Array) -> Array:
    """Return weights as float32, shape (rows, width), whatever their kind; `scales` is unused where they are numbers."""
    if values.dtype in (np.int8, np.uint32):
        bits = 8 if values.dtype == np.int8 else 4
        shape = (*scales.shape[:-1], scales.shape[-1] * GROUP)
        return Quantised(values=values, scales=scales, bits=bits, group=GROUP, shape=shape).dequantised(np)
    if values.dtype == np.uint16:  # the upper halves of float32
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def _normalised(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32) + np.float32(eps)) * weight


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _activated(gate: Array, up: Array, limit: float, alpha: float) -> Array:
    if not limit:
        return gate * _sigmoid(gate) * up
    gate, up = np.minimum(gate, np.float32(limit)), np.clip(up, -np.float32(limit), np.float32(limit))
    return gate * _sigmoid(np.float32(alpha) * gate) * (up + 1)


# -- kernels that stream weights


def _embed(weights: Array, scales: Array, state: Array, hidden: Array, width: int) -> None:  # noqa: ARG001
    token = int(state[0])
    hidden[:] = decoded(weights[token : token + 1], scales[token : token + 1])[0]


def _inward(
    a: Array, a_scales: Array, b: Array, b_scales: Array, c: Array, c_scales: Array, d: Array, d_scales: Array,
    bias: Array, hidden: Array, norm: Array, tail: Array, kernel: Array, out: Array,
    width: int, a_end: int, b_end: int, c_end: int, d_end: int, taps: int, channels: int, eps: float,  # noqa: ARG001
) -> None:  # fmt: skip
    ends = (0, a_end, b_end, c_end, d_end)
    x = _normalised(hidden, norm, eps)
    for i, (values, scales) in enumerate(((a, a_scales), (b, b_scales), (c, c_scales), (d, d_scales))):
        if ends[i] < ends[i + 1]:
            out[ends[i] : ends[i + 1]] = decoded(values, scales)[: ends[i + 1] - ends[i]] @ x
    out[:d_end] += bias[:d_end]
    if taps:
        seen = np.concatenate([tail, out[None, :channels]])
        tail[:] = seen[1:]
        mixed = (seen * kernel).sum(axis=0)
        out[:channels] = mixed * _sigmoid(mixed)


def _outward(weights: Array, scales: Array, bias: Array, inputs: Array, hidden: Array, width: int, rows: int) -> None:
    hidden[:rows] += decoded(weights, scales) @ inputs[:width] + bias[:rows]


def _gate_up(
    gate: Array, gate_scales: Array, up: Array, up_scales: Array, bias: Array, hidden: Array, norm: Array, out: Array,
    width: int, rows: int, eps: float,  # noqa: ARG001
) -> None:  # fmt: skip
    x = _normalised(hidden, norm, eps)
    gates = decoded(gate, gate_scales)[:rows] @ x + bias[:rows]
    ups = decoded(up, up_scales)[:rows] @ x + bias[rows : 2 * rows]
    out[:rows] = _activated(gates, ups, 0.0, 0.0)


def _route(
    weights: Array, bias: Array, shared_gate: Array, hidden: Array, norm: Array,
    scores: Array, counter: Array, chosen: Array, shares: Array,  # noqa: ARG001
    width: int, experts: int, top_k: int, over_all: int, shared: int, eps: float,  # noqa: ARG001
) -> None:  # fmt: skip
    x = _normalised(hidden, norm, eps)
    scores[:experts] = weights @ x + bias[:experts]
    chosen[:top_k] = np.argsort(-scores[:experts], kind="stable")[:top_k]
    powers = np.exp(scores[:experts] - scores[:experts].max())
    best = powers[chosen[:top_k]]
    shares[:top_k] = best / (powers if over_all else best).sum(dtype=np.float32)
    if shared:
        scores[experts] = shared_gate.reshape(-1) @ x
        chosen[top_k], shares[top_k] = experts, _sigmoid(scores[experts])


def _expert_gate_up(
    gate: Table, gate_scales: Table, up: Table, up_scales: Table, bias: Array, chosen: Array, shares: Array,
    hidden: Array, norm: Array, out: Array,
    width: int, rows: int, top_k: int, shared_rows: int, biased: int, limit: float, alpha: float, eps: float,  # noqa: ARG001
) -> None:  # fmt: skip
    x = _normalised(hidden, norm, eps)
    for slot in range(int(top_k) + bool(shared_rows)):
        e, many, first = int(chosen[slot]), rows if slot < top_k else shared_rows, slot * rows
        gates, ups = decoded(gate[e], gate_scales[e])[:many] @ x, decoded(up[e], up_scales[e])[:many] @ x
        if biased:
            gates, ups = gates + bias[e, :rows], ups + bias[e, rows:]
        out[first : first + many] = shares[slot] * _activated(gates, ups, limit, alpha)


def _expert_outward(
    down: Table, down_scales: Table, bias: Array, chosen: Array, shares: Array, inputs: Array, hidden: Array,
    width: int, rows: int, top_k: int, shared_width: int, biased: int,
) -> None:  # fmt: skip
    for slot in range(int(top_k) + bool(shared_width)):
        e, many, first = int(chosen[slot]), width if slot < top_k else shared_width, slot * width
        hidden[:rows] += decoded(down[e], down_scales[e]) @ inputs[first : first + many]
        if biased:
            hidden[:rows] += shares[slot] * bias[e]


def _head(
    weights: Array, scales: Array, hidden: Array, norm: Array, logits: Array,
    best_of_blocks: Array, row_of_blocks: Array, counter: Array, state: Array, forced: Array, likeliest: Array,  # noqa: ARG001
    width: int, rows: int, eps: float,  # noqa: ARG001
) -> None:  # fmt: skip
    logits[:] = decoded(weights, scales) @ _normalised(hidden, norm, eps)
    _, position, step = map(int, state)
    found, following = int(np.argmax(logits)), int(forced[step])
    likeliest[step] = found
    state[:] = (found if following < 0 else following, position + 1, step + 1)


STREAMING: Mapping[str, Callable[..., None]] = {
    "embed": _embed,
    "inward": _inward,
    "outward": _outward,
    "gate_up": _gate_up,
    "route": _route,
    "expert_gate_up": _expert_gate_up,
    "expert_outward": _expert_outward,
    "head": _head,
}


# -- kernels that mix tokens


def _rotated(x: Array, cosines: Array, sines: Array, rotated: int) -> Array:
    """Rotate the first `rotated` dimensions of vectors, shape (heads, dim), in halves."""
    half = rotated // 2
    low, high, rest = x[:, :half], x[:, half:rotated], x[:, rotated:]
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines, rest], axis=1)


def attend(
    projected: Array, head_norm: Array, cosines: Array, sines: Array, sinks: Array, state: Array, keys: Array, values: Array,
    parts: Array, tops: Array, totals: Array, counters: Array, out: Array,  # noqa: ARG001
    kv_heads: int, group: int, dim: int, rotated: int, splits: int, capacity: int, window: int,  # noqa: ARG001
    normed: int, gated: int, eps: float, scale: float,
) -> None:  # fmt: skip
    """Mix the tokens seen, as the kernel of `fused_attention` does."""
    position, heads = int(state[1]), int(kv_heads * group)
    q, k, v, gate = np.split(projected.reshape(-1, dim), [heads, heads + kv_heads, heads + 2 * kv_heads])
    if normed:
        q, k = _normalised(q, head_norm[:heads], eps), _normalised(k, head_norm[heads:], eps)
    q, k = (_rotated(x, cosines[position], sines[position], rotated) for x in (q, k))
    keys[:, position], values[:, position] = k, v
    seen = slice(max(0, position + 1 - int(window)) if window else 0, position + 1)
    scores = np.einsum("kgd,ksd->kgs", q.reshape(kv_heads, group, dim), keys[:, seen].astype(np.float32))
    scores *= np.float32(scale)
    sink = sinks.reshape(kv_heads, group, 1)
    top = np.maximum(scores.max(axis=-1, keepdims=True), sink)
    weights = np.exp(scores - top)
    weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sink - top)
    mixed = np.einsum("kgs,ksd->kgd", weights, values[:, seen].astype(np.float32)).reshape(heads, dim)
    out[:] = (mixed * _sigmoid(gate) if gated else mixed).reshape(-1)


def delta(
    projected: Array, speed: Array, dt_bias: Array, norm: Array, memory: Array,
    raw: Array, counters: Array, out: Array,  # noqa: ARG001
    key_heads: int, value_heads: int, key_dim: int, value_dim: int, eps: float,
) -> None:  # fmt: skip
    """Take one token into the state of a gated delta layer, as the kernel of `fused_delta` does."""
    each, width = int(value_heads // key_heads), int(value_heads * value_dim)
    q, k, v, z, rates = np.split(projected, np.cumsum([key_heads * key_dim] * 2 + [width] * 2))
    q, k = (x.reshape(key_heads, key_dim).repeat(each, axis=0) for x in (q, k))
    q, k = (x / np.sqrt((x * x).sum(axis=1, keepdims=True) + np.float32(1e-6)) for x in (q, k))
    rate, decay = _sigmoid(rates[:value_heads]), np.logaddexp(rates[value_heads:] + dt_bias, np.float32(0)) * speed
    state = memory.reshape(key_heads, key_dim, each, value_dim).swapaxes(1, 2)  # by value head, as the rest is
    state *= np.exp(decay).reshape(key_heads, each, 1, 1)
    grouped = (key_heads, each, -1)
    k, q = k.reshape(grouped), q.reshape(grouped) * np.float32(key_dim**-0.5)
    wrong = (v.reshape(grouped) - np.einsum("hek,hekv->hev", k, state)) * rate.reshape(grouped)
    state += k[..., None] * wrong[:, :, None, :]
    mixed = np.einsum("hek,hekv->hev", q, state).reshape(value_heads, value_dim)
    mixed = _normalised(mixed, norm, eps).reshape(-1)
    out[:] = mixed * z * _sigmoid(z)
