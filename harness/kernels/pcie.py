"""Copies over the bus: the bandwidth between the host's memory and the GPU's, one way and both ways at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from harness.registry import Case, Sized, Skip, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend


@benchmark(
    version=1,
    metric="bandwidth",
    quick=False,
    direction=("h2d", "d2h", "both"),
    memory=("pinned", "pageable"),
    n=Sized(check=1 << 12, cpu=1 << 26, cuda=1 << 26),
)
def pcie(backend: Backend, seed: int, *, direction: str, memory: str, n: int) -> Case:
    """Copies of n 4-byte words to the GPU, from it, or both at once; pageable copies hold up the caller and take turns."""
    if backend.device.kind != "cuda":
        msg = "a CPU reaches its memory without a bus"
        raise Skip(msg)
    require_memory(backend, 4 * 4 * n)
    xp, rng = backend.xp, backend.rng(seed)
    inward, outward = rng.words(n), rng.words(n)
    away, back = (_host_array(xp, n, memory) for _ in range(2))
    away[:] = backend.to_host(inward)
    arrived = xp.zeros(n, dtype=xp.uint32)

    def h2d(stream: Any) -> None:
        arrived.set(away, stream=stream)

    def d2h(stream: Any) -> None:
        outward.get(stream=stream, out=back, blocking=False)

    lanes = [
        (copy, xp.cuda.Stream(non_blocking=True), xp.cuda.Event(disable_timing=True))
        for copy in (h2d, d2h)
        if direction in {copy.__name__, "both"}
    ]
    # Both ends of what was copied. The GPU's stands first: whoever reads it waits for the copies, also for those to the host.
    ends = (outward if direction == "d2h" else arrived, away if direction == "h2d" else back)
    truth = (outward if direction == "d2h" else inward, backend.to_host(inward if direction == "h2d" else outward))
    begun, clock = xp.cuda.Event(disable_timing=True), xp.cuda.Stream.null

    def run() -> tuple[Array, Array]:
        begun.record(clock)
        for copy, stream, done in lanes:  # they begin after the clock's first event, and its last one waits for them
            stream.wait_event(begun)
            copy(stream)
            done.record(stream)
            clock.wait_event(done)
        return ends

    def check(answer: tuple[Array, Array]) -> bool:
        backend.synchronize()
        # Each end is compared where it lies: a copy back over the same bus could undo what the first one broke.
        return bool((answer[0] == truth[0]).all()) and np.array_equal(answer[1], truth[1])

    counting = "bytes copied, both ways together" if direction == "both" else "bytes copied, one way"
    return Case(
        run=run,
        work=Work(bytes_moved=4 * n * len(lanes), counting=counting),
        check=check,
        inputs=(inward, outward),
        distribution="uniform 32-bit words",
    )


def _host_array(xp: Any, n: int, memory: str) -> Array:
    if memory == "pageable":
        return np.zeros(n, dtype=np.uint32)
    return np.frombuffer(xp.cuda.alloc_pinned_memory(4 * n), dtype=np.uint32, count=n)
