"""Rotary position embedding: the angles of each position, and the rotation of queries and keys by them.

Tables are made on the host as Hugging Face makes them: frequency and angle are each rounded to float32, so that positions in the
thousands are turned by the same angles to the last bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from harness.device.backend import Array
    from harness.inference.shapes import Rope

__all__ = ["frequencies", "rotate", "tables"]

Host = np.ndarray[Any, Any]


def frequencies(rope: Rope, rotary: int) -> tuple[Host, float]:
    """Return the angle per token of each pair of dimensions, float32 (rotary / 2,), and what cosine and sine are scaled by."""
    exponents = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    powers = (np.float64(rope.theta) ** exponents.astype(np.float64)).astype(np.float32)
    if rope.kind == "llama3":
        return _llama3(rope, 1 / powers), 1.0
    if rope.kind == "yarn":
        default = 0.1 * math.log(rope.factor) + 1 if rope.factor > 1 else 1.0
        return _yarn(rope, powers), default if rope.attention_factor is None else rope.attention_factor
    return 1 / powers, 1.0


def _llama3(rope: Rope, frequency: Host) -> Host:
    """Divide by `factor` what turns less than `low_factor` times in the original length, leave what turns more than `high_factor` times."""
    turns = np.float32(rope.original_length) / (np.float32(2 * math.pi) / frequency)
    smooth = (turns - np.float32(rope.low_factor)) / np.float32(rope.high_factor - rope.low_factor)
    smooth = np.clip(smooth, 0, 1)
    slowed = (1 - smooth) * frequency / np.float32(rope.factor) + smooth * frequency
    out: Host = np.where(smooth >= 1, frequency, slowed)
    return out


def _yarn(rope: Rope, powers: Host) -> Host:
    """Blend frequencies and those slowed down by `factor`, along a ramp over the pairs of dimensions."""
    pairs = len(powers)
    low, high = (
        pairs * math.log(rope.original_length / (turns * 2 * math.pi)) / math.log(rope.theta)
        for turns in (rope.beta_fast, rope.beta_slow)
    )
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(pairs, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    out: Host = 1 / (np.float32(rope.factor) * powers) * ramp + 1 / powers * (1 - ramp)
    return out


def tables(rope: Rope, rotary: int, length: int, dtype: Any) -> tuple[Host, Host]:
    """Return cosine and sine of the positions 0 to length - 1, (length, rotary) each: a pair's angle at both its places, the first sine negative."""
    frequency, scale = frequencies(rope, rotary)
    angles = (np.arange(length, dtype=np.float32)[:, None] * frequency).astype(np.float64)
    cos, sin = np.cos(angles) * scale, np.sin(angles) * scale
    return np.concatenate([cos, cos], axis=1).astype(dtype), np.concatenate([-sin, sin], axis=1).astype(dtype)


def rotate(xp: Any, x: Array, cos: Array, sin: Array) -> Array:
    """Turn the pairs (i, i + rotary / 2) of the first `rotary` dimensions.

    Args:
        xp: the array module.
        x: shape (..., tokens, dimensions), of the tables' dtype.
        cos: shape (..., tokens, rotary); tokens and dimensions side by side are one long loop.
        sin: as `cos`.
    """
    rotary = cos.shape[-1]
    half = rotary // 2
    out = xp.empty(x.shape, dtype=x.dtype)
    if rotary < x.shape[-1]:
        out[..., rotary:] = x[..., rotary:]
        turned = x[..., :rotary] * cos
    else:
        turned = x * cos
    out[..., :half] = x[..., half:rotary]
    out[..., half:rotary] = x[..., :half]
    exchanged = out[..., :rotary]
    exchanged *= sin
    exchanged += turned
    return out
