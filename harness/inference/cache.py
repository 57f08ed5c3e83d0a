"""What a model remembers of the tokens it has seen: keys and values, and the states of gated delta layers.

All memory is taken when the cache is made; a sliding layer's too holds the full capacity. How many tokens each row holds is known on the
host, as in every engine, so that no step has to ask the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import MisuseError
from harness.inference.rope import tables

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.ops import Ops
    from harness.inference.shapes import ModelSpec

__all__ = ["Cache", "DeltaState", "KeyValues"]

Host = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class KeyValues:
    """One attention layer's keys and values, each (batch, kv heads, capacity, dimensions); keys are rotated."""

    keys: Array
    values: Array


@dataclass(frozen=True, slots=True)
class DeltaState:
    """One gated delta layer's state, float32.

    `recurrent` is (batch, key heads, key dimensions, value heads of each, value dimensions); `tail` holds the last inputs of the convolution,
    (batch, conv - 1, channels).
    """

    recurrent: Array
    tail: Array

    def copied(self) -> DeltaState:
        """Return a state of its own memory."""
        return DeltaState(self.recurrent.copy(), self.tail.copy())

    def restore(self, row: int, other: DeltaState | None) -> None:
        """Set one row to another state's, or to that of no tokens."""
        self.recurrent[row] = 0 if other is None else other.recurrent[row]
        self.tail[row] = 0 if other is None else other.tail[row]


class Cache:
    """Memory of `batch` rows of up to `capacity` tokens, as `Model.cache` makes it.

    Attributes:
        lengths: how many tokens each row holds, (batch,) int64 on the host. Changed by `advance` and `rewind` alone.
    """

    def __init__(self, spec: ModelSpec, ops: Ops, batch: int, capacity: int, layers: Iterable[int]) -> None:
        for what, value in (("batch", batch), ("capacity", capacity)):
            if value < 1:
                msg = f"a cache's {what} is at least 1, not {value!r}"
                raise MisuseError(msg)
        self.batch, self.capacity = batch, capacity
        self.lengths: Host = np.zeros(batch, dtype=np.int64)
        self.layers: dict[int, KeyValues | DeltaState] = {i: _layer(spec, ops, batch, capacity, i) for i in layers}
        cos, sin = tables(spec.rope, spec.rotary, capacity, ops.wide)
        self.cos, self.sin = ops.to_device(cos), ops.to_device(sin)
        self._marked: tuple[Host, dict[int, DeltaState]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states."""
        parts = (
            (s.keys, s.values) if isinstance(s, KeyValues) else (s.recurrent, s.tail) for s in self.layers.values()
        )
        return sum(int(a.nbytes) for pair in parts for a in pair)

    def advance(self, counts: Sequence[int] | Host) -> None:
        """Count tokens that every layer has taken in; `Model.forward` does it at its end."""
        self.lengths = self.lengths + np.asarray(counts, dtype=np.int64)

    def mark(self) -> None:
        """Remember the present lengths, so that rows of a model with gated delta layers can be rewound to them; one mark is kept."""
        self._marked = (self.lengths.copy(), {i: s.copied() for i, s in self._states()})

    def rewind(self, lengths: int | Sequence[int] | Host) -> None:
        """Forget what came after these many tokens of each row; one number stands for all rows.

        Raises:
            MisuseError: a length is negative or beyond what the row holds; or the model has gated delta layers, whose state cannot be
                undone, and it is neither 0, nor the present length, nor the row's at the last `mark`.
        """
        wanted = np.broadcast_to(np.asarray(lengths, dtype=np.int64), (self.batch,)).copy()
        if (wanted < 0).any() or (wanted > self.lengths).any():
            msg = f"rows hold {self.lengths.tolist()} tokens; they cannot be rewound to {wanted.tolist()}"
            raise MisuseError(msg)
        states = list(self._states())
        if states:
            marked = {} if self._marked is None else self._marked[1]
            origins = [
                self._origin(row, int(n)) for row, n in enumerate(wanted)
            ]  # all are checked before one is changed
            for index, state in states:
                for row, origin in enumerate(origins):
                    if origin != "present":
                        state.restore(row, marked[index] if origin == "mark" else None)
        self.lengths = wanted

    def _states(self) -> Iterable[tuple[int, DeltaState]]:
        return ((i, s) for i, s in self.layers.items() if isinstance(s, DeltaState))

    def _origin(self, row: int, length: int) -> str:
        if length == self.lengths[row]:
            return "present"
        if length == 0:
            return "start"
        if self._marked is not None and length == self._marked[0][row]:
            return "mark"
        marks = "" if self._marked is None else f", {int(self._marked[0][row])} (marked)"
        msg = f"row {row} cannot be rewound to {length} tokens: its gated delta layers know their state after 0{marks} and {int(self.lengths[row])}"
        raise MisuseError(msg)


def _layer(spec: ModelSpec, ops: Ops, batch: int, capacity: int, index: int) -> KeyValues | DeltaState:
    # Zeros, not whatever lies there: a masked key may be anything but NaN.
    xp = ops.xp
    if spec.layer_kinds[index] == "delta" and spec.delta is not None:
        net = spec.delta
        each = net.value_heads // net.key_heads
        recurrent = xp.zeros((batch, net.key_heads, net.key_dim, each, net.value_dim), dtype=ops.wide)
        return DeltaState(recurrent, xp.zeros((batch, net.conv - 1, net.channels), dtype=ops.wide))
    shape = (batch, spec.kv_heads, capacity, spec.head_dim)
    return KeyValues(xp.zeros(shape, dtype=ops.dtype), xp.zeros(shape, dtype=ops.dtype))
