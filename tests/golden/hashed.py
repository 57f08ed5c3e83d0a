"""Weights of the golden models, made from names and a seed by integers alone: whoever has this file has the same weights.

Used by `generate.py` to fill the models of Hugging Face, and by the tests to fill ours.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]
DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four bytes


def bell(name: str, shape: tuple[int, ...], seed: int) -> Host:
    """Return numbers of mean 0 and variance 1, each the sum of the four bytes of a hash of its place."""
    x = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(
        (zlib.crc32(name.encode()) ^ seed * 0x9E3779B9) % 2**32
    )
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    total = x.view(np.uint8).reshape(-1, 4).astype(np.int32).sum(axis=1) - 510
    numbers: Host = (total / DEVIATION).astype(np.float32).reshape(shape)
    return numbers


def weight(name: str, shape: tuple[int, ...], seed: int, *, zero_centred: bool, tied: bool, loud: float) -> Host:
    """Return one tensor: matrices keep variance, norms are near 1, residuals start small so that a norm's epsilon can be seen.

    `loud` is what the experts' first matrices are multiplied by. A tied embedding is small: a token that is all of its residual asks for itself.
    """
    x = bell(name, shape, seed)
    if name.endswith("norm.weight"):
        return x * np.float32(0.2) + np.float32(0 if zero_centred and ".linear_attn." not in name else 1)
    if name.endswith(("A_log", "dt_bias")):  # slow decays: a state of few tokens is tiny
        return x * np.float32(0.5) - np.float32(2.5 if name.endswith("A_log") else 1)
    if len(shape) == 1 or name.endswith("_bias"):
        return x * np.float32(1 if name.endswith("sinks") else 0.1)
    return x * np.float32(_gain(name, shape, tied=tied, loud=loud))


def _gain(name: str, shape: tuple[int, ...], *, tied: bool, loud: float) -> float:
    if name.endswith("embed_tokens.weight"):
        return 0.1 if tied else 0.3
    if name.endswith("conv1d.weight"):
        return 0.5
    keeping = 1 / math.sqrt(
        shape[1] if name.endswith("_proj") else shape[-1]
    )  # packed experts are (experts, inputs, outputs)
    if "gate_up_proj" in name:
        return loud * keeping
    if name.endswith((".gate.weight", ".router.weight")):
        return 2 * keeping
    into_residual = ("o_proj.weight", "out_proj.weight", "down_proj.weight", ".down_proj", "w2.weight")
    return 0.4 / loud * keeping if name.endswith(into_residual) else keeping


def weights(tensors: Mapping[str, tuple[int, ...]], seed: int, **how: Any) -> dict[str, Host]:
    """Return all tensors of these names and shapes."""
    return {name: weight(name, shape, seed, **how) for name, shape in tensors.items()}
