"""Matrix transposition: every element is read and written once, one of the two against the grain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.registry import Case, Sized, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend


@benchmark(version=1, metric="bandwidth", quick=False, n=Sized(check=64, cpu=4096, cuda=16384))
def transpose(backend: Backend, seed: int, *, n: int) -> Case:
    """Transposed copy of a square float32 matrix through the array module; bytes read plus bytes written."""
    require_memory(backend, 3 * 4 * n * n)
    xp = backend.xp
    a = backend.rng(seed).uniform((n, n))
    out = xp.zeros((n, n), dtype=xp.float32)

    def run() -> Array:
        xp.copyto(out, a.T)
        return out

    def check(answer: Array) -> bool:
        return bool((answer == a.T).all())

    return Case(run=run, work=Work(bytes_moved=2 * 4 * n * n), check=check)
