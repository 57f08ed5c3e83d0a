"""The roofline: arithmetic on data from memory, from one multiply-add an element, which memory limits, to 256, which it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Sized, Work, benchmark, require_memory, rotation

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_FOUR = np.uint64(4)
_PIECE = np.uint64(2048)  # elements that a CPU keeps in its first cache
_PART = 1 << 16  # elements judged at a time: what they take stays in a cache


def in_registers(lane, first, count, step, mads, m, b, x, out):  # type: ignore[no-untyped-def]
    """Apply a -> m a + b to each element, as often as `mads` says."""
    for k in range(count):
        i = first + k * step
        a = x[i]
        for _ in range(mads // _FOUR):  # by four, since counting costs as much as a step
            a = m * a + b
            a = m * a + b
            a = m * a + b
            a = m * a + b
        for _ in range(mads % _FOUR):
            a = m * a + b
        out[i] = a


def in_pieces(lane, first, count, step, mads, m, b, x, out):  # type: ignore[no-untyped-def]
    """Do the same for a CPU, in pieces that are gone over several times: the innermost loop is the one that becomes vectors."""
    for piece in range(np.uint64(0), count, _PIECE):
        begin, end = first + piece, first + min(piece + _PIECE, count)
        for i in range(begin, end):
            out[i] = x[i]
        for _ in range(mads // _FOUR):
            for i in range(begin, end):
                a = m * out[i] + b
                a = m * a + b
                a = m * a + b
                out[i] = m * a + b
        for _ in range(mads % _FOUR):
            for i in range(begin, end):
                out[i] = m * out[i] + b


@benchmark(
    version=1,
    metric="compute",
    quick=False,
    mads=(1, 4, 16, 64, 256),
    n=Sized(check=1 << 12, cpu=1 << 24, cuda=1 << 27),
)
def roofline(backend: Backend, seed: int, *, mads: int, n: int) -> Case:
    """Rate of float32 operations when each element of n is read, put through so many multiply-adds, and written."""
    require_memory(backend, 4 * 4 * n)
    xp = backend.xp
    m, b = (
        np.float32(-0.999),
        np.float32(0.125),
    )  # contracts slowly: after all the steps three quarters of x are left to check
    x, out = backend.rng(seed).uniform(n), xp.zeros(n, dtype=np.float32)
    launch = backend.compile(in_registers if backend.device.kind == "cuda" else in_pieces, fuse=True)

    def run() -> Array:
        launch(n, np.uint64(mads), m, b, x, out)
        return out

    def check(answer: Array) -> bool:
        # All the steps at once: m^s (x - f) + f with the fixed point f = b / (1 - m). Each step rounds a number below 2.
        fixed = float(b) / (1 - float(m))
        kept, allowed = float(m) ** mads, mads * float(np.finfo(np.float32).eps)
        parts = (slice(at, at + _PART) for at in range(0, n, _PART))
        return all(
            bool((xp.abs(answer[p] - (kept * (x[p].astype(np.float64) - fixed) + fixed)) <= allowed).all())
            for p in parts
        )

    return Case(
        run=run,
        work=Work(flops=2 * mads * n, bytes_moved=8 * n, counting="2 per multiply-add; bytes read + written"),
        check=check,
        cache="cold" if rotation(backend, 8 * n) == 1 else "hot",
        footprint_bytes=8 * n,
        inputs=(x,),
        distribution="uniform in [0, 1)",
    )
