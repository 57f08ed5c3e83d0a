"""From files to a model on a device: names, shapes and memory are checked first, then one tensor after another is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.errors import FailureError, MisuseError
from harness.inference.mapped import MAX_TENSORS
from harness.inference.quant import Quantised, quantisable, quantise, refuse_packed, stored_bytes
from harness.inference.safetensors import open_safetensors

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.specs import ModelSpec

__all__ = ["Source", "check_shapes", "load", "open_safetensors", "require_room"]


class Source(Protocol):
    """A mapping from canonical names to tensors that tells their shapes without reading one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        ...

    def __getitem__(self, name: str) -> Array:
        """Read one tensor."""
        ...


def check_shapes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that what is there is what a model needs, by names and shapes alone.

    Raises:
        MisuseError: a tensor is missing, has another shape, or is there although the model has none such.
    """
    experts = spec.experts.count if spec.experts and spec.experts.naming != "packed" else 0
    if spec.layers * (3 * experts + 1) > MAX_TENSORS:  # before `tensors` lists them all
        msg = f"{spec.name} claims {spec.layers} layers of {experts} experts; no known model has {MAX_TENSORS} tensors"
        raise MisuseError(msg)
    wanted = spec.tensors()
    for name, shape in wanted.items():
        if name not in shapes:
            near = [n for n in shapes if n.rpartition(".")[0].endswith(name.rpartition(".")[0][-24:])]
            msg = f"{spec.name} needs a tensor {name!r} of shape {shape}, which is not among the {len(shapes)} given"
            msg += f"; near it: {', '.join(near[:3])}" if near else ""
            raise MisuseError(msg)
        if tuple(shapes[name]) != tuple(shape):
            msg = f"tensor {name!r} has the shape {tuple(shapes[name])}; {spec.name} needs {tuple(shape)}"
            raise MisuseError(msg)
    extra = [n for n in shapes if n not in wanted and not _needless(spec, n)]
    if extra:
        msg = f"{len(extra)} tensors are none of {spec.name}'s, such as {extra[0][:100]!r} of shape {shapes[extra[0]]}: is it this model?"
        raise MisuseError(msg)


def _needless(spec: ModelSpec, name: str) -> bool:
    """Tell whether a tensor may be left unread: a copy of the embedding, or a table that follows from the configuration."""
    return (name == "lm_head.weight" and spec.tied) or name.endswith("rotary_emb.inv_freq")


def require_room(needed_bytes: int, free_bytes: int, what: str) -> None:
    """Make sure that so much memory is free, and a tenth more for what the libraries take.

    Raises:
        FailureError: it is not.
    """
    if 11 * needed_bytes > 10 * free_bytes:
        msg = f"{what} needs {needed_bytes / 1e9:.2f} GB and a tenth more, {free_bytes / 1e9:.2f} GB are free; take a smaller model, fewer layers or fewer bits"
        raise FailureError(msg)


def load(  # noqa: PLR0913 - where from, which model, where to, in what form
    source: Source, spec: ModelSpec, *, xp: Any, free_bytes: int, dtype: str = "float32", bits: int | None = None
) -> dict[str, Any]:
    """Read all tensors of a model onto a device, after names, shapes and memory have been checked.

    Args:
        source: what `open_safetensors` or `open_gguf` returned.
        spec: the model.
        xp: the array module to put them in.
        free_bytes: the device's free memory.
        dtype: of the arrays: float32 or float16.
        bits: 8 or 4 to quantise what `quantisable` names, as it is read.

    Raises:
        MisuseError: names or shapes are not the model's, or its experts cannot be quantised.
        FailureError: the model does not fit, or a value does not fit float16.
    """
    refuse_packed(spec, bits)
    check_shapes(spec, source.shapes)
    shapes = {name: tuple(shape) for name, shape in spec.tensors().items()}
    sizes = {n: stored_bytes(n, s, dtype=dtype, bits=bits) for n, s in shapes.items()}
    passing = 4 * max(map(math.prod, shapes.values()))  # one tensor at a time, as float32
    require_room(sum(sizes.values()) + passing, free_bytes, spec.name)
    return {name: _placed(name, source[name], xp, dtype, bits) for name in shapes}


def _placed(name: str, values: Array, xp: Any, dtype: str, bits: int | None) -> Array | Quantised:
    if bits is not None and quantisable(name, values.shape):
        return quantise(xp.asarray(values), bits=bits, xp=xp)
    try:
        with np.errstate(over="raise"):
            return xp.asarray(values.astype(dtype, copy=False))
    except FloatingPointError as err:
        msg = f"tensor {name!r} has values up to {np.abs(values).max():.3g}, beyond {dtype}; load it as float32"
        raise FailureError(msg) from err
