"""Pointer chase: the latency of one dependent load, for working sets from the first cache to memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Work, benchmark, cache_bytes, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_LINE = 64  # bytes from one element to its neighbour: no two share a CPU's cache line or a GPU's sector
_WORDS = _LINE // 4
_HOPS = 1 << 17


def follow(lane, first, count, step, start, hops, following, end):  # type: ignore[no-untyped-def]
    """Follow `hops` links from `start`; each load waits for the one before."""
    at = np.uint64(start)
    for _ in range(hops):
        at = np.uint64(following[at])
    end[lane] = at


@benchmark(
    version=1,
    metric="latency",
    quick={"size_bytes": (1 << 14, 1 << 18, 1 << 27)},
    size_bytes=(1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28),
)
def chase(backend: Backend, seed: int, *, size_bytes: int) -> Case:
    """Latency of a dependent load in a random cycle through size_bytes of memory; address translation included."""
    require_memory(backend, size_bytes)
    xp, lines = backend.xp, size_bytes // _LINE
    order = backend.rng(seed).order(lines) * _WORDS  # the cycle visits the lines in this order
    links = np.zeros(lines * _WORDS, dtype=np.uint32)
    links[order] = np.roll(order, -1)
    following = xp.asarray(links)
    end = xp.zeros(1, dtype=np.uint64)
    launch = backend.compile(follow)
    hops = _HOPS + lines // 8
    runs = 0

    def run() -> tuple[Array, int]:
        # Each run goes on where the last one stopped: runs that began at one place would only see the lines after it.
        nonlocal runs
        start = int(order[runs * hops % lines])
        runs += 1
        launch(1, np.uint64(start), np.uint64(hops), following, end)
        return end, start

    def check(answer: tuple[Array, int]) -> bool:
        # Where a walk ends follows from the order alone, at no hop's cost; without the order it takes all the hops.
        reached, start = answer
        begun = int(np.flatnonzero(order == start)[0])
        return int(reached[0]) == int(order[(begun + hops) % lines])

    return Case(
        run=run,
        work=Work(
            items=hops,
            item="hop",
            bytes_moved=hops * 4 + 8,
            counting="4 bytes a hop, whatever the memory fetches, and the end written",
        ),
        check=check,
        cache="hot" if size_bytes <= 2 * cache_bytes(backend.device) else "cold",
        footprint_bytes=size_bytes,
        inputs=(order,),
        distribution="a random cycle through all lines",
    )
