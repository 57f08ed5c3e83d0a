"""A matrix as a layer holds it: expanded once at load, or kept in few bits and expanded each time it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.ops import Ops
    from harness.inference.quant import Quantised

__all__ = ["Dense", "Matrix", "Packed", "stacked"]


class Matrix(Protocol):
    """Something that gives a matrix, (outputs, inputs)."""

    def array(self) -> Array:
        """Return it in the model's dtype."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """A matrix that is there."""

    values: Array

    def array(self) -> Array:
        """Return it."""
        return self.values


@dataclass(frozen=True, slots=True)
class Packed:
    """Matrices of 8 or 4 bits, one below the other."""

    parts: tuple[Quantised, ...]
    ops: Ops

    def array(self) -> Array:
        """Expand them; what is returned is thrown away after its use."""
        parts = [part.dequantised(self.ops.xp, self.ops.dtype.name) for part in self.parts]
        return parts[0] if len(parts) == 1 else self.ops.xp.concatenate(parts)


def is_quantised(weight: Any) -> bool:
    """Tell whether a weight is stored in few bits."""
    return hasattr(weight, "dequantised")


def expanded(ops: Ops, weight: Any, dtype: Any = None) -> Array:
    """Return a weight as an array of the device, in `dtype`, by default the model's."""
    kind = ops.dtype if dtype is None else dtype
    if is_quantised(weight):
        return weight.dequantised(ops.xp, ops.wide.name).astype(kind, copy=False)
    return ops.xp.asarray(weight).astype(kind, copy=False)


def stacked(ops: Ops, weights: Sequence[Any], *, keep_packed: bool) -> Matrix:
    """Put matrices one below the other: packed where all are and shall stay so, else in the model's dtype."""
    if keep_packed and all(map(is_quantised, weights)):
        return Packed(tuple(weights), ops)
    if len(weights) == 1:
        return Dense(expanded(ops, weights[0]))
    rows = sum(w.shape[0] for w in weights)
    out = ops.xp.empty((rows, weights[0].shape[1]), dtype=ops.dtype)
    first = 0
    for weight in weights:  # into place one by one: at no time is there a second copy of all
        out[first : first + weight.shape[0]] = expanded(ops, weight)
        first += weight.shape[0]
    return Dense(out)
