"""Complex FFT: a mix of arithmetic and strided memory traffic."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, require_memory, rotation

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.device.backend import Array, Backend


def butterflies(lane, first, count, step, s, quarter, roots, x, y):  # type: ignore[no-untyped-def]
    """Do one radix-4 pass of Stockham's FFT, which sorts as it goes: after pass k, runs of s = 4^k elements belong together."""
    two, three, four = np.uint64(2), np.uint64(3), np.uint64(4)
    i, end = first, first + count
    while i < end:
        q = i & (s - np.uint64(1))
        p = i - q
        u, v, w = roots[p], roots[two * p], roots[three * p]
        out = four * p + q
        m = min(s - q, end - i)
        for j in range(m):
            a, b, c, d = x[i + j], x[i + j + quarter], x[i + j + two * quarter], x[i + j + three * quarter]
            turned = np.complex64(complex(b.imag - d.imag, d.real - b.real))  # -1j * (b - d)
            y[out + j] = a + c + (b + d)
            y[out + j + s] = u * (a - c + turned)
            y[out + j + two * s] = v * (a + c - (b + d))
            y[out + j + three * s] = w * (a - c - turned)
        i += m


def _on_cpu(backend: Backend, n: int) -> Callable[[Array], Array]:
    """Return the transform for a CPU: NumPy's own takes twice the time of the best for complex64."""
    launch = backend.compile(butterflies, fuse=True)
    roots = np.exp(-2j * np.pi * np.arange(n) / n).astype(np.complex64)
    passes = (n.bit_length() - 1) // 2
    between = [np.empty(n, dtype=np.complex64) for _ in range(2)]

    def transform(x: Array) -> Array:
        stages = [x, *(between[k % 2] for k in range(passes))]
        for k, (source, target) in enumerate(pairwise(stages)):
            launch(n // 4, np.uint64(4**k), np.uint64(n // 4), roots, source, target)
        y = stages[-1]
        if 4**passes == n:
            return y
        half, other = y[: n // 2], between[passes % 2]  # an odd power of two: one pass of radix 2 is left
        np.add(half, y[n // 2 :], out=other[: n // 2])
        np.subtract(half, y[n // 2 :], out=other[n // 2 :])
        return other

    return transform


@benchmark(version=2, metric="compute", n=Sized(check=1 << 12, cpu=1 << 20, cuda=1 << 24))
def fft(backend: Backend, seed: int, *, n: int) -> Case:
    """Forward complex64 FFT of length n, a power of two, checked by its inverse; nominal 5 n log2(n) operations."""
    xp, rng = backend.xp, backend.rng(seed)
    sets = rotation(backend, 8 * n)
    require_memory(backend, (sets + 5) * 8 * n)
    inputs = tuple((rng.uniform((n, 2)) - np.float32(0.5)).view(xp.complex64).reshape(n) for _ in range(sets))
    x, log2n = inputs[0], n.bit_length() - 1
    transform = _on_cpu(backend, n) if backend.device.kind == "cpu" else xp.fft.fft
    runs = 0

    def run() -> tuple[Array, int]:
        nonlocal runs
        turn = runs % sets
        runs += 1
        return transform(inputs[turn]), turn

    def check(answer: tuple[Array, int]) -> bool:
        got, turn = answer
        error = xp.linalg.norm(xp.fft.ifft(got) - inputs[turn])
        return bool(error <= 4 * log2n * float(np.finfo(np.float32).eps) * xp.linalg.norm(x))

    return Case(
        run=run,
        work=Work(
            flops=5 * n * log2n, bytes_moved=2 * 8 * n, counting="5 n log2(n); read + written once", nominal=True
        ),
        check=check,
        cache="cold",
        footprint_bytes=sets * 8 * n,
        inputs=inputs,
        distribution="uniform in [-0.5, 0.5), real and imaginary",
    )
