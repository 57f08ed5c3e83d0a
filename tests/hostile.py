"""Files made to be read, damaged, and read again; and the memory that reading takes."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

__all__ = ["ARRAYS", "damages", "peak_bytes", "safetensors_bytes", "with_header"]

ARRAYS: Mapping[str, tuple[str, np.ndarray[Any, Any]]] = {
    "model.a.weight": ("F32", np.arange(12, dtype=np.float32).reshape(3, 4)),
    "model.b.weight": ("BF16", np.arange(8, dtype=np.uint16).reshape(2, 4)),
    "model.c.bias": ("F16", np.linspace(0, 1, 6, dtype=np.float16)),
    "empty": ("I64", np.zeros((0, 3), dtype=np.int64)),
    "scalar": ("U8", np.array(7, dtype=np.uint8)),
}


def with_header(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a safetensors file of this header, whatever is in it; `length` is what it says of its own length."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def safetensors_bytes(
    arrays: Mapping[str, tuple[str, np.ndarray[Any, Any]]] = ARRAYS, notes: Mapping[str, str] | None = None
) -> bytes:
    """Return a valid file, its header padded with blanks as the format's own writer does."""
    header: dict[str, Any] = {} if notes is None else {"__metadata__": dict(notes)}
    at = 0
    for name, (dtype, array) in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    return with_header(text + b" " * (-len(text) % 8), b"".join(a.tobytes() for _, a in arrays.values()))


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most memory that was allocated at any time during a call, by Python and by NumPy; exceptions are the caller's."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


_EXTREME = [0, 1, 2, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def damages(draw: st.DrawFn, whole: bytes) -> bytes:
    """Damage a valid file in up to three places: bytes changed, cut out, put in or repeated, numbers driven to extremes, ends cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["byte", "cut", "insert", "repeat", "number", "digits", "truncate"]))
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        size = draw(st.integers(1, 40))
        match kind:
            case "byte" if data:
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at : at + size]
            case "insert":
                data[at:at] = draw(
                    st.binary(min_size=1, max_size=12) | st.sampled_from([b"{", b'"', b"[[[[", b",", b"\\u"])
                )
            case "repeat":
                data[at:at] = data[at : at + size]
            case "number":
                width = draw(st.sampled_from([4, 8]))
                number = draw(st.sampled_from(_EXTREME)) % 2 ** (8 * width)
                data[at : at + width] = number.to_bytes(width, "little")
            case "digits":
                digits = [i for i, byte in enumerate(data) if 48 <= byte < 58]
                if digits:
                    where = draw(st.sampled_from(digits))
                    data[where : where + 1] = str(draw(st.sampled_from([*_EXTREME, -1, 10**30]))).encode()
            case "truncate":
                del data[at:]
    return bytes(data)


def write(path: Path, data: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(data)
    return path
