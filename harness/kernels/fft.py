"""Complex FFT: a mix of arithmetic and strided memory traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend


@benchmark(version=1, metric="compute", n=Sized(check=1 << 12, cpu=1 << 20, cuda=1 << 24))
def fft(backend: Backend, seed: int, *, n: int) -> Case:
    """Forward complex64 FFT of length n, a power of two, checked by its inverse; nominal 5 n log2(n) operations."""
    require_memory(backend, 6 * n * 8)
    xp = backend.xp
    x = backend.rng(seed).bell((n, 2)).view(xp.complex64).reshape(n)
    log2n = n.bit_length() - 1

    def run() -> Array:
        return xp.fft.fft(x)

    def check(answer: Array) -> bool:
        back = xp.fft.ifft(answer)
        error, size = float(xp.linalg.norm(back - x)), float(xp.linalg.norm(x))
        return bool(error <= 4 * log2n * float(np.finfo(np.float32).eps) * size)

    return Case(run=run, work=Work(flops=5 * n * log2n, bytes_moved=2 * 8 * n), check=check)
