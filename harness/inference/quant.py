"""Weights of 8 or 4 bits: groups of numbers along a row that share one scale, laid out for a kernel that reads 16 bytes a thread.

A weight is `q * scale`, q an integer in [-127, 127] or [-8, 7], scale a float16. What `quantise` makes is symmetric: scale is the
group's largest magnitude over 127 or 7, rounded up to a float16, and q the nearest integer. So no weight is off by more than half a scale, and
the product of q and scale is exact in float32: every device that multiplies in float32 has the same weights.

Layout, the last axis being the one that a product sums over (in_features):

    scales   float16, (..., in / 32)
    int8     int8, (..., in): a row as it is. 16 bytes hold 16 weights, half a group.
    int4     uint32, (..., in / 8), little-endian: 16 bytes hold 32 weights, the whole group of one scale. A word holds 8 weights in
             row; weight j of them is its 4 bits from bit 4 * (j // 2) + 16 * (j % 2) on, as q + 8. So for k = 0..3,
             (word >> 4 * k) & 0x000F000F is weights 2k and 2k + 1 side by side in the two halves of a register, in the order of the row:
             or'ed with 0x64006400 it is half2(1024 + q + 8, ...), and a kernel in float32 takes each half as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import MisuseError

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.shapes import ModelSpec

__all__ = ["GROUP", "Quantised", "quantisable", "quantise", "quantise_rows", "refuse_packed", "stored_bytes"]

GROUP = 32
_LARGEST = {8: 127, 4: 7}
_BYTE = 8  # bits
_PER_WORD = 8  # weights of 4 bits
_MATRIX_NDIM = 2
_PASSING = 1 << 22  # numbers that are float32 at a time while a large tensor is quantised


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A tensor of 8 or 4 bits a weight, on a device; `values` and `scales` lie as this module's docstring says."""

    values: Array
    scales: Array
    bits: int
    group: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Return the bytes that values and scales take."""
        return int(self.values.nbytes) + int(self.scales.nbytes)

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    def dequantised(self, xp: Any, dtype: str = "float32") -> Array:
        """Return the weights as numbers, of this tensor's shape; exact in float32, rounded once in float16."""
        grouped = (*self.shape[:-1], self.shape[-1] // self.group, self.group)
        q = self.values if self.bits == _BYTE else _unpacked(xp, self.values)
        numbers = q.reshape(grouped).astype(xp.float32)
        numbers *= self.scales[..., None].astype(xp.float32)
        return numbers.reshape(self.shape).astype(dtype, copy=False)

    def take(self, rows: Array | slice | int) -> Quantised:
        """Return some of the rows along the first axis, as an embedding needs them. `rows` is whatever indexes an array."""
        values, scales = self.values[rows], self.scales[rows]
        return Quantised(
            values=values,
            scales=scales,
            bits=self.bits,
            group=self.group,
            shape=(*scales.shape[:-1], self.shape[-1]),
        )


def _packed(xp: Any, q: Array) -> Array:
    """Pack integers in [-8, 7], shape (..., in), into words, shape (..., in / 8)."""
    words = xp.zeros((*q.shape[:-1], q.shape[-1] // _PER_WORD), dtype=xp.uint32)
    nibbles = (q + 8).astype(xp.uint32).reshape(*words.shape, _PER_WORD)
    for j in range(_PER_WORD):
        words |= nibbles[..., j] << xp.uint32(_bit(j))
    return words


def _unpacked(xp: Any, words: Array) -> Array:
    """Return the integers of packed words as int8, shape (..., in)."""
    q = xp.empty((*words.shape, _PER_WORD), dtype=xp.int8)
    for j in range(_PER_WORD):
        q[..., j] = (words >> xp.uint32(_bit(j))) & xp.uint32(15)
    q -= xp.int8(8)
    return q.reshape(*words.shape[:-1], -1)


def _bit(j: int) -> int:
    return 4 * (j // 2) + 16 * (j % 2)


def quantise(array: Array, *, bits: int, group: int = GROUP, xp: Any = np) -> Quantised:
    """Quantise a tensor along its last axis.

    Args:
        array: numbers of `xp`, shape (..., in); `in` is a multiple of `group`. None may be infinite or NaN: that would spoil a group.
        bits: 8 or 4.
        group: weights that share a scale, a multiple of 8.
        xp: the array module.

    Raises:
        MisuseError: bits, group or shape are none of these, or a group's scale is beyond float16.
    """
    shape = tuple(map(int, array.shape))
    _check(shape, bits, group)
    flat = array.reshape(-1, shape[-1])
    return quantise_rows(lambda first, last: flat[first:last], shape, bits=bits, group=group, xp=xp)


def quantise_rows(
    rows: Callable[[int, int], Array], shape: tuple[int, ...], *, bits: int, group: int = GROUP, xp: Any = np
) -> Quantised:
    """Quantise a tensor that is not there as a whole: `rows(first, last)` returns some rows of it, shape (last - first, in).

    What it returned may be written over by the next call. Raises as `quantise`.
    """
    _check(shape, bits, group)
    count, width = math.prod(shape[:-1]), shape[-1]
    values = xp.empty((count, width * bits // 8), dtype=xp.int8).view(xp.int8 if bits == _BYTE else xp.uint32)
    scales = xp.empty((count, width // group), dtype=xp.float16)
    size = max(1, _PASSING // width)
    for first in range(0, count, size):  # piece by piece: float32 copies of the whole would take ten times its result
        last = min(first + size, count)
        q, scales[first:last] = _rounded(xp, rows(first, last).astype(xp.float32, copy=False), bits, group)
        values[first:last] = q if bits == _BYTE else _packed(xp, q)
    if not bool(xp.isfinite(scales).all()):
        msg = f"a tensor of shape {shape} holds values that are not finite, or beyond {_LARGEST[bits]} times float16's largest"
        raise MisuseError(msg)
    return Quantised(
        values=values.reshape(*shape[:-1], -1),
        scales=scales.reshape(*shape[:-1], -1),
        bits=bits,
        group=group,
        shape=shape,
    )


def _check(shape: tuple[int, ...], bits: int, group: int) -> None:
    if bits not in _LARGEST:
        msg = f"cannot quantise to {bits!r} bits; there are {', '.join(map(str, _LARGEST))}"
        raise MisuseError(msg)
    if group <= 0 or group % _PER_WORD:
        msg = f"a group of {group!r} weights does not fill words of {_PER_WORD}; {GROUP} would do"
        raise MisuseError(msg)
    if not shape or shape[-1] % group or not math.prod(shape):
        msg = f"a tensor of shape {shape} cannot be cut into groups of {group} along its last axis"
        raise MisuseError(msg)


def _rounded(xp: Any, numbers: Array, bits: int, group: int) -> tuple[Array, Array]:
    """Return integers, shape (rows, in), and scales, shape (rows, in / group)."""
    most = xp.float32(_LARGEST[bits])
    groups = numbers.reshape(len(numbers), -1, group)
    peak = xp.maximum(groups.max(axis=-1), -groups.min(axis=-1))
    with np.errstate(over="ignore", invalid="ignore"):  # told by the caller, from all scales at once
        scales = (peak / most).astype(xp.float16)
        pattern = scales.view(xp.uint16)
        pattern += (scales.astype(xp.float32) * most < peak).astype(xp.uint16)  # up, never down: no weight is cut off
        steps = xp.maximum(scales.astype(xp.float32), xp.float32(2**-24))  # a group of zeros has a scale of 0
        return xp.rint(groups / steps[..., None]).astype(xp.int8).reshape(numbers.shape), scales


def quantisable(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a model's tensor is one to quantise: a matrix whose rows are whole groups. Norms, biases, routers stay as they are."""
    router = name.endswith((".gate.weight", ".router.weight", "shared_expert_gate.weight"))
    return len(shape) >= _MATRIX_NDIM and name.endswith(".weight") and shape[-1] % GROUP == 0 and not router


def refuse_packed(spec: ModelSpec, bits: int | None) -> None:
    """Refuse bits for a model whose experts are one tensor: most of its weights would stay as they are under a name that says otherwise.

    Raises:
        MisuseError: it is such a model, and bits are asked for.
    """
    if bits is not None and spec.experts is not None and spec.experts.naming == "packed":
        msg = f"{spec.name} cannot be had in {bits} bits: its experts, all in one tensor, are not quantised here; fp16 and fp32 are right"
        raise MisuseError(msg)


def stored_bytes(name: str, shape: tuple[int, ...], *, dtype: str = "float32", bits: int | None = None) -> int:
    """Return the bytes that a model's tensor takes once it is loaded in this dtype, or in so many bits where it is `quantisable`."""
    count = math.prod(shape)
    if bits is not None and quantisable(name, shape):
        return count * bits // 8 + count // GROUP * 2
    return count * np.dtype(dtype).itemsize
