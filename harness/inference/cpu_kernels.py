"""One layer of decoding on a CPU, compiled by Numba: matrices are streamed once from memory, and nothing else takes time.

A layer is one call on each thread. Threads share its rows and heads, and meet at a barrier between its parts, of which there are six:
handing each part to a pool of threads would cost more than the part. All is float32, and so are the sums; a thread's sums are taken in an order
that depends on the number of threads in no way, and on the batch only in how many rows are taken at a time.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202, PLR0913 - Numba types the arguments, and takes them one by one

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types  # noqa: TID253 - to import this module is to want Numba loaded
from numba.extending import intrinsic  # noqa: TID253

__all__ = ["ABANDONED", "head", "layer"]

ABANDONED = -(
    1 << 62
)  # what the barrier's counter is set to so that nobody waits: it stays negative, however many come

_MANY = 12  # columns
_SPINS = 2000  # before a thread that waits lets others run
_SUMS = {"reassoc", "nsz", "contract"}  # sums may be taken in vectors, products fused

_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic  # type: ignore[untyped-decorator]
def _arrive(_: Any, counter: Any) -> Any:
    """Add one to the first number of an array, for all threads to see; returns what was there."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counter), build


@intrinsic  # type: ignore[untyped-decorator]
def _seen(_: Any, counter: Any) -> Any:
    """Read the first number of an array as other threads have left it."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.load_atomic(array.data, "seq_cst", 8)

    return types.int64(counter), build


@njit(nogil=True, cache=True)
def _meet(counter, threads):
    """Wait until all threads have come here, or one has given up. The counter only grows, so no barrier has to reset it."""
    if threads == 1:
        return
    goal = (_arrive(counter) // threads + 1) * threads
    spins = 0
    while 0 <= _seen(counter) < goal:
        spins += 1
        if spins > _SPINS:
            _yield()


@njit(nogil=True, cache=True)
def _share(count, thread, threads):
    """Return where a thread's part of `count` things begins and ends: at multiples of three, so that rows meet in tiles alike for any threads."""
    triples = (count + 2) // 3
    return 3 * (triples * thread // threads), min(count, 3 * (triples * (thread + 1) // threads))


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _by_one(matrix, x, out, row, b):
    """Multiply a row with a column."""
    total = np.float32(0)
    for k in range(matrix.shape[1]):
        total += matrix[row, k] * x[b, k]
    out[b, row] = total


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _by_two(matrix, x, out, row, b):
    """Multiply a row with two columns."""
    s0 = s1 = np.float32(0)
    for k in range(matrix.shape[1]):
        p = matrix[row, k]
        s0 += p * x[b, k]
        s1 += p * x[b + 1, k]
    out[b, row], out[b + 1, row] = s0, s1


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _by_four(matrix, x, out, row, b):
    """Multiply a row with four columns."""
    s0 = s1 = s2 = s3 = np.float32(0)
    for k in range(matrix.shape[1]):
        p = matrix[row, k]
        s0 += p * x[b, k]
        s1 += p * x[b + 1, k]
        s2 += p * x[b + 2, k]
        s3 += p * x[b + 3, k]
    out[b, row], out[b + 1, row], out[b + 2, row], out[b + 3, row] = s0, s1, s2, s3


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _three_by_four(matrix, x, out, row, b):
    """Multiply three rows with four columns: twelve sums, three numbers of the rows and one of a column fill the 16 registers of AVX2."""
    p0 = p1 = p2 = p3 = q0 = q1 = q2 = q3 = r0 = r1 = r2 = r3 = np.float32(0)
    for k in range(matrix.shape[1]):
        p, q, r = matrix[row, k], matrix[row + 1, k], matrix[row + 2, k]
        p0 += p * x[b, k]
        q0 += q * x[b, k]
        r0 += r * x[b, k]
        p1 += p * x[b + 1, k]
        q1 += q * x[b + 1, k]
        r1 += r * x[b + 1, k]
        p2 += p * x[b + 2, k]
        q2 += q * x[b + 2, k]
        r2 += r * x[b + 2, k]
        p3 += p * x[b + 3, k]
        q3 += q * x[b + 3, k]
        r3 += r * x[b + 3, k]
    out[b, row], out[b + 1, row], out[b + 2, row], out[b + 3, row] = p0, p1, p2, p3
    out[b, row + 1], out[b + 1, row + 1], out[b + 2, row + 1], out[b + 3, row + 1] = q0, q1, q2, q3
    out[b, row + 2], out[b + 1, row + 2], out[b + 2, row + 2], out[b + 3, row + 2] = r0, r1, r2, r3


@njit(nogil=True, cache=True)
def _products(matrix, x, out, low, high):
    """Multiply the rows from low to high with each column: matrix (rows, width), x (batch, width), out (batch, rows).

    Few columns take as long as the rows take to come from memory, which is least where they come one after the other; many columns
    take as long as the sums, which is least where rows share what is read of a column.
    """
    batch, row = len(x), low
    fours = batch // 4 * 4
    while batch >= _MANY and row + 3 <= high:
        for b in range(0, fours, 4):
            _three_by_four(matrix, x, out, row, b)
        for r in range(row, row + 3):
            for b in range(fours, batch):
                _by_one(matrix, x, out, r, b)
        row += 3
    for r in range(row, high):
        for b in range(0, fours, 4):
            _by_four(matrix, x, out, r, b)
        if batch - fours >= 2:  # noqa: PLR2004
            _by_two(matrix, x, out, r, fours)
        if batch % 2:
            _by_one(matrix, x, out, r, batch - 1)


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _normalise(x, weight, eps, out):
    """Divide by the root of the mean square and scale, vectors (width,)."""
    total = np.float32(0)
    for k in range(len(x)):
        total += x[k] * x[k]
    factor = np.float32(1) / np.sqrt(total / np.float32(len(x)) + eps)
    for k in range(len(x)):
        out[k] = x[k] * factor * weight[k]


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _turn(x, cos, sin):
    """Rotate the first dimensions of a vector in place, in halves."""
    half = len(cos)
    for d in range(half):
        a, b = x[d], x[d + half]
        x[d], x[d + half] = a * cos[d] - b * sin[d], b * cos[d] + a * sin[d]


@njit(nogil=True, cache=True, fastmath=_SUMS)
def _attend(q, keys, values, start, end, scores, out):
    """Mix values by the softmax of a query's products with keys, (capacity, dims), from position start to end."""
    top = np.float32(-np.inf)
    for s in range(start, end):
        dot = np.float32(0)
        for d in range(len(q)):
            dot += q[d] * keys[s, d]
        scores[s] = dot
        top = max(top, dot)
    total = np.float32(0)
    for s in range(start, end):
        scores[s] = np.exp(scores[s] - top)
        total += scores[s]
    for d in range(len(q)):
        out[d] = np.float32(0)
    for s in range(start, end):
        weight = scores[s] / total
        for d in range(len(q)):
            out[d] += weight * values[s, d]


@njit(nogil=True, cache=True)
def _biased(x, bias, low, high):
    """Add a bias, if there is one (it has numbers then), to columns of (batch, columns)."""
    if len(bias):
        for b in range(len(x)):
            for r in range(low, high):
                x[b, r] += bias[r]


@njit(nogil=True, cache=True)
def _added(hidden, x, low, high):
    for b in range(len(x)):
        for r in range(low, high):
            hidden[b, r] += x[b, r]


@njit(nogil=True, cache=True)
def _heads(low, high, lengths, head_norms, shape, keys, values, cos, sin, projected):
    """Normalise and rotate some of the queries and keys; keys and values go where they are remembered."""
    heads, kv_heads, _, eps = shape
    dims = keys.shape[3]
    scale = np.float32(1 / np.sqrt(dims))
    for b in range(len(lengths)):
        position = lengths[b]
        for h in range(low, high):
            vector = projected[b, h * dims : (h + 1) * dims]
            if len(head_norms):
                _normalise(vector, head_norms[h], eps, vector)
            _turn(vector, cos[position], sin[position])
            for d in range(dims):  # no slice is assigned to: Numba takes seconds to compile what that can complain of
                if h < heads:
                    vector[d] *= scale
                else:
                    keys[b, h - heads, position, d] = vector[d]
                    values[b, h - heads, position, d] = projected[b, (h + kv_heads) * dims + d]


@njit(nogil=True, cache=True)
def _mixed(low, high, lengths, shape, keys, values, projected, scores, mixed):
    """Let some of the queries attend; they are counted row by row."""
    heads, kv_heads, window, _ = shape
    dims = keys.shape[3]
    for i in range(low, high):
        b, h = i // heads, i % heads
        end = lengths[b] + 1
        start = max(0, end - window) if window else 0
        kv, span = h // (heads // kv_heads), slice(h * dims, (h + 1) * dims)
        _attend(projected[b, span], keys[b, kv], values[b, kv], start, end, scores, mixed[b, span])


@njit(nogil=True, cache=True)
def layer(thread, threads, counter, lengths, weights, attention, shape, keys, values, cos, sin, hidden, scratch):
    """Take one token of each row through one layer, in place; every thread calls it with the same but its number and scratch.

    Args:
        thread: this thread's number, from 0.
        threads: how many there are.
        counter: (1,) int64, common to all, of the barrier.
        lengths: tokens before this one, (batch,).
        weights: first norm, inward (queries, keys, values), outward, second norm, gates and ups, down.
        attention: bias of inward (or (0,)), weights of the heads' norms (heads + kv heads or 0, dims), bias of outward (or (0,)).
        shape: heads, kv heads, window (0: none), epsilon.
        keys: (batch, kv heads, capacity, dims).
        values: as `keys`.
        cos: (capacity, rotary / 2).
        sin: as `cos`.
        hidden: (batch, hidden).
        scratch: of this thread (batch, hidden) and (capacity,); of all (batch, rows of inward), (batch, heads * dims),
            (batch, hidden), (batch, 2 * width), (batch, width).
    """
    first_norm, inward, outward, second_norm, gate_up, down = weights
    bias, head_norms, outward_bias = attention
    normed, scores, projected, mixed, added, middle, active = scratch
    batch = len(hidden)

    for b in range(batch):
        _normalise(hidden[b], first_norm, shape[3], normed[b])
    low, high = _share(len(inward), thread, threads)
    _products(inward, normed, projected, low, high)
    _biased(projected, bias, low, high)
    _meet(counter, threads)

    low, high = _share(shape[0] + shape[1], thread, threads)
    _heads(low, high, lengths, head_norms, shape, keys, values, cos, sin, projected)
    _meet(counter, threads)

    low, high = _share(batch * shape[0], thread, threads)
    _mixed(low, high, lengths, shape, keys, values, projected, scores, mixed)
    _meet(counter, threads)

    low, high = _share(len(outward), thread, threads)
    _products(outward, mixed, added, low, high)
    _biased(added, outward_bias, low, high)
    _added(hidden, added, low, high)
    _meet(counter, threads)

    for b in range(batch):
        _normalise(hidden[b], second_norm, shape[3], normed[b])
    width = down.shape[1]
    low, high = _share(width, thread, threads)
    _products(gate_up, normed, middle, low, high)
    _products(gate_up, normed, middle, width + low, width + high)
    for b in range(batch):
        for r in range(low, high):
            gate = middle[b, r]
            active[b, r] = gate / (np.float32(1) + np.exp(-gate)) * middle[b, width + r]
    _meet(counter, threads)

    low, high = _share(len(down), thread, threads)
    _products(down, active, added, low, high)
    _added(hidden, added, low, high)
    _meet(counter, threads)


@njit(nogil=True, cache=True)
def head(thread, threads, norm, eps, matrix, hidden, normed, logits):
    """Compute the logits of each row, (batch, vocab); `normed` is this thread's scratch. There is no barrier at its end."""
    for b in range(len(hidden)):
        _normalise(hidden[b], norm, eps, normed[b])
    low, high = _share(len(matrix), thread, threads)
    _products(matrix, normed, logits, low, high)
