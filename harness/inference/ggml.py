"""The block formats of GGUF files that are read here: how many weights a block holds, in how many bytes, and what they are.

A block is a few bytes of scales and the integers they scale; `unpack` takes blocks as rows of bytes and returns rows of float32.
Source of the formats: ggml-org/llama.cpp, `ggml/src/ggml-common.h` and the `dequantize_row_*` functions of `ggml-quants.c`. Products of a
half-precision scale and an integer are exact in float32, so each weight is rounded once at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.inference.mapped import from_bfloat16

__all__ = ["FORMATS", "Format", "named", "unpack"]

Bytes = np.ndarray[Any, Any]  # uint8, (blocks, bytes a block)
Numbers = np.ndarray[Any, Any]  # float32, (blocks, weights a block)

_AT_A_TIME = 1 << 19  # weights whose temporaries are held


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One type of tensor in a GGUF file."""

    name: str
    weights: int  # of a block
    nbytes: int  # of a block
    numbers: Callable[[Bytes], Numbers]


def unpack(kind: Format, blocks: Bytes, out: Numbers) -> None:
    """Write the weights of blocks to `out`, float32 of shape (blocks, weights a block)."""
    size = max(1, _AT_A_TIME // kind.weights)
    for at in range(0, len(blocks), size):
        out[at : at + size] = kind.numbers(blocks[at : at + size])


def _halves(blocks: Bytes, at: int) -> Numbers:
    """Return the float16 at an offset of each block, as a column of float32."""
    return _f16(blocks[:, at : at + 2])


def _f32(blocks: Bytes) -> Numbers:
    numbers: Numbers = np.ascontiguousarray(blocks).view("<f4")
    return numbers


def _f16(blocks: Bytes) -> Numbers:
    numbers: Numbers = np.ascontiguousarray(blocks).view("<f2").astype(np.float32)
    return numbers


def _bf16(blocks: Bytes) -> Numbers:
    return from_bfloat16(np.ascontiguousarray(blocks).view("<u2"))


def _nibbles(packed: Bytes) -> Bytes:
    """Return the low four bits of all bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _q4_0(blocks: Bytes) -> Numbers:
    numbers: Numbers = _halves(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8))
    return numbers


def _q4_1(blocks: Bytes) -> Numbers:
    numbers: Numbers = _halves(blocks, 0) * _nibbles(blocks[:, 4:])
    numbers += _halves(blocks, 2)
    return numbers


def _q8_0(blocks: Bytes) -> Numbers:
    numbers: Numbers = _halves(blocks, 0) * blocks[:, 2:].view(np.int8)
    return numbers


def _q6_k(blocks: Bytes) -> Numbers:
    """Undo 256 weights: 4 low bits each, 2 high bits each, 16 scales of 8 bits and one scale of those."""
    low = np.concatenate(
        [blocks[:, :64], blocks[:, 64:128]], axis=0
    )  # the first 128 weights of all blocks, then the others
    high = np.concatenate([blocks[:, 128:160], blocks[:, 160:192]], axis=0)
    twos = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    six = (_nibbles(low) | twos << 4).astype(np.int8) - np.int8(32)
    halves = np.split(six, 2)
    q = np.concatenate(halves, axis=1).reshape(-1, 16, 16)
    scales = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8)
    numbers: Numbers = (q * scales[..., None]).reshape(-1, 256)
    return numbers


FORMATS: Mapping[int, Format] = {
    0: Format(name="F32", weights=1, nbytes=4, numbers=_f32),
    1: Format(name="F16", weights=1, nbytes=2, numbers=_f16),
    2: Format(name="Q4_0", weights=32, nbytes=18, numbers=_q4_0),
    3: Format(name="Q4_1", weights=32, nbytes=20, numbers=_q4_1),
    8: Format(name="Q8_0", weights=32, nbytes=34, numbers=_q8_0),
    14: Format(name="Q6_K", weights=256, nbytes=210, numbers=_q6_k),
    30: Format(name="BF16", weights=1, nbytes=2, numbers=_bf16),
}

_OTHERS = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def named(number: int) -> str:
    """Return what a type is called, for a message."""
    return FORMATS[number].name if number in FORMATS else _OTHERS.get(number, f"number {number}")
