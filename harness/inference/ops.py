"""The arithmetic that all layers share, on arrays of one module: products in the weights' dtype, everything else in float32.

Nothing here, and nothing in a model's forward path, moves data between host and device without being called so: `to_host` is the one
way back, `to_device` the one way there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from harness.device.backend import Array

__all__ = ["Linear", "Ops", "matmul"]

Linear = Callable[["Array", "Array"], "Array"]  # x (rows, inputs), weight (outputs, inputs) -> (rows, outputs)

_HOST_VALUES = 1 << 18  # of a temporary: a megabyte, which stays in a core's cache
_DEVICE_VALUES = 1 << 25


def matmul(x: Array, weight: Array) -> Array:
    """Multiply rows by a matrix of (outputs, inputs); neither is copied."""
    return x @ weight.T


class Ops:
    """Arithmetic bound to an array module and a dtype.

    Args:
        xp: the array module.
        dtype: of weights, keys and values: float16, float32, float64, or an ml_dtypes bfloat16.
        linear: multiplies rows (N, inputs) by a matrix (outputs, inputs); by default the module's matrix product. Both are of `dtype`.
    """

    def __init__(self, xp: Any, dtype: Any, linear: Linear | None = None) -> None:
        self.xp = xp
        self.dtype = np.dtype(dtype)
        # Of norms, softmax, routers and residuals.
        self.wide = np.dtype(np.float64 if self.dtype == np.float64 else np.float32)
        self.on_host = xp is np
        self._linear = linear or matmul

    @property
    def block_values(self) -> int:
        """How many numbers a temporary may hold: as many as stay in a core's cache, or as keep a GPU busy."""
        return _HOST_VALUES if self.on_host else _DEVICE_VALUES

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """Copy an array to the host, and wait for it."""
        return array if self.on_host else self.xp.asnumpy(array)  # type: ignore[no-any-return]

    def to_device(self, array: np.ndarray[Any, Any]) -> Array:
        """Copy an array of the host to the device."""
        return self.xp.asarray(array)

    def widened(self, array: Array) -> Array:
        """Return the array in float32 (float64 where all is), itself if it is so already."""
        return array.astype(self.wide, copy=False)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Return `x @ weight.T + bias`; x of shape (rows, inputs), in any dtype."""
        out = self._linear(x.astype(weight.dtype, copy=False), weight)
        if bias is not None:
            out += bias
        return out

    def norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Divide by the root of the mean square along the last axis, and scale by `weight`; in float32 throughout."""
        xp = self.xp
        x = self.widened(x)
        scale = xp.square(x).sum(axis=-1, keepdims=True)
        scale *= 1 / x.shape[-1]
        scale += eps
        xp.sqrt(scale, out=scale)
        out = x / scale
        out *= weight
        return out

    def sigmoid(self, x: Array) -> Array:
        """Return 1 / (1 + exp(-x)) in float32."""
        xp = self.xp
        out = xp.negative(self.widened(x))
        xp.exp(out, out=out)
        out += 1
        return xp.reciprocal(out, out=out)

    def silu(self, x: Array) -> Array:
        """Return x * sigmoid(x) in float32."""
        xp, x = self.xp, self.widened(x)
        out = xp.negative(x)
        xp.exp(out, out=out)
        out += 1
        return xp.divide(x, out, out=out)

    def swiglu(self, gate_up: Array, limit: float | None = None, alpha: float = 1.0) -> Array:
        """Return silu(gate) * up of rows that hold all gates, then all ups.

        With a `limit` both are clamped, the sigmoid's argument is scaled by `alpha`, and up is moved by one, as gpt-oss has it.
        """
        xp, width = self.xp, gate_up.shape[-1] // 2
        gate, up = gate_up[..., :width], gate_up[..., width:]
        if limit is None:
            out = self.silu(gate)
            out *= up
            return out
        gate = xp.minimum(self.widened(gate), limit)
        up = xp.clip(self.widened(up), -limit, limit)
        up += 1
        out = self.sigmoid(gate * alpha)
        out *= gate
        out *= up
        return out
