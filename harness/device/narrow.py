"""Numbers narrower than the array modules know, made from float32 and read back by arithmetic on their bits.

Limit: neither infinities nor NaN are handled, and `to_e4m3` has no zero: it is for random operands, not for any data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from harness.device.backend import Array

__all__ = ["from_bfloat16", "from_e4m3", "to_bfloat16", "to_e4m3", "to_tfloat32"]

_E4M3_SHIFT = np.int32((127 - 7) << 3)  # between the two biases of the exponent, above three bits of fraction
_E4M3_LEAST, _E4M3_MOST = np.int32(0x08), np.int32(0x7E)  # the normal numbers: 2^-6 to 448


def to_tfloat32(x: Array) -> Array:
    """Round float32 to the 10 bits of fraction that a TF32 tensor core keeps; still float32."""
    return (_rounded(x, 13) << np.uint32(13)).view(np.float32)


def to_bfloat16(x: Array) -> Array:
    """Round float32 to bfloat16, held as uint16."""
    return _rounded(x, 16).astype(np.uint16)


def from_bfloat16(x: Array) -> Array:
    """Return the float32 values of bfloat16 numbers held as uint16."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_e4m3(x: Array) -> Array:
    """Round float32 to fp8 with 4 bits of exponent and 3 of fraction, held as uint8; magnitudes end at 2^-6 and at 448."""
    bits = _rounded(x, 20).astype(np.int32)
    size = ((bits & np.int32(0x7FF)) - _E4M3_SHIFT).clip(_E4M3_LEAST, _E4M3_MOST)
    return (size | (bits >> np.int32(11) << np.int32(7))).astype(np.uint8)


def from_e4m3(x: Array) -> Array:
    """Return the float32 values of normal fp8 numbers held as uint8."""
    bits = x.astype(np.int32)
    size = (bits & np.int32(0x7F)) + _E4M3_SHIFT
    return ((size << np.int32(20)) | (bits >> np.int32(7) << np.int32(31))).view(np.float32)


def _rounded(x: Array, dropped: int) -> Array:
    """Return the bits of float32 numbers without the last few, rounded to nearest, ties to even; a carry may raise the exponent."""
    bits, last = x.view(np.uint32), np.uint32(dropped)
    half = np.uint32((1 << (dropped - 1)) - 1)
    return (bits + half + ((bits >> last) & np.uint32(1))) >> last
