"""What goes into a case and what comes out of it, in a few bytes: how random its inputs are, and the digest of an answer."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from harness import registry
from harness.device.backend import Backend
from harness.model import Inputs

__all__ = ["answer_digest", "inputs_of"]

_DIGESTED = 1 << 16  # elements of an answer that its digest covers, evenly spaced
_ENTROPY_BYTES = 1 << 16


def answer_digest(answer: Any, backend: Backend) -> str:
    """Hash an answer: its shapes, types and up to 65,536 evenly spaced elements of each array."""
    state = hashlib.sha256()
    for part in answer if isinstance(answer, tuple) else (answer,):
        flat = part.reshape(-1) if hasattr(part, "reshape") else np.asarray([part])
        kept = flat[:: max(1, flat.size // _DIGESTED)]
        state.update(f"{flat.dtype.str}:{flat.size};".encode())
        state.update(np.ascontiguousarray(backend.to_host(kept)).tobytes())
    return state.hexdigest()


def inputs_of(case: registry.Case, backend: Backend) -> Inputs | None:
    """Describe a case's random inputs by the one with the least entropy."""
    if not case.inputs:
        return None
    entropies = [_entropy_bits_per_byte(backend.to_host(_sample_of(array))) for array in case.inputs]
    return Inputs(distribution=case.distribution, entropy_bits_per_byte=min(entropies))


def _sample_of(array: Any) -> Any:
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size * flat.dtype.itemsize // _ENTROPY_BYTES)]


def _entropy_bits_per_byte(array: np.ndarray[Any, Any]) -> float:
    """Return Shannon's entropy of the bytes' histogram: an estimate, which is enough to tell noise from a constant."""
    counts = np.bincount(np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))
