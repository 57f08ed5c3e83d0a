"""Peer copies: the bandwidth between a GPU and the next one of its node, directly and by way of the host."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.registry import Case, Sized, Skip, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

_PIECES = 64  # of a staged copy: while one leaves the host, the next one enters it
Copy = Callable[[Any, Any], None]  # takes the event to begin after and the stream that is to wait for the end


@benchmark(
    version=1,
    metric="bandwidth",
    quick=False,
    peers=True,
    direction=("to", "from", "both"),
    access=("direct", "staged"),
    n=Sized(check=1 << 12, cpu=1 << 26, cuda=1 << 26),
)
def p2p(backend: Backend, seed: int, *, direction: str, access: str, n: int) -> Case:
    """Copies of n 4-byte words to the node's next GPU, from it, or both at once; direct, or staged in the host's memory."""
    _require_peer(backend, direct=access == "direct")
    require_memory(backend, 4 * 4 * n)
    xp, rng = backend.xp, backend.rng(seed)
    outward, inward = rng.words(n), rng.words(n)
    arrived = xp.zeros(n, dtype=xp.uint32)
    truths = {"to": backend.to_host(outward), "from": backend.to_host(inward)}
    with xp.cuda.Device(1) as far:
        require_memory(backend, 3 * 4 * n)
        # From the host: set up over the link under test, a break in it would be in the truth too.
        sent, received = xp.asarray(truths["from"]), xp.zeros(n, dtype=xp.uint32)
        far.synchronize()
    make = _direct if access == "direct" else _staged
    ways = {"to": (outward, received), "from": (sent, arrived)}
    copies = [make(xp, *ends) for way, ends in ways.items() if direction in {way, "both"}]
    # Both ends of what was copied. This GPU's stands first: whoever reads it waits for the copies, also for those to the other.
    ends = (arrived, received) if direction == "both" else ways[direction][:: -1 if direction == "from" else 1]
    expected = (truths["to" if direction == "to" else "from"], truths["from" if direction == "from" else "to"])
    begun, clock = xp.cuda.Event(disable_timing=True), xp.cuda.Stream.null

    def run() -> tuple[Array, Array]:
        begun.record(clock)
        for copy in copies:
            copy(begun, clock)
        return ends

    def check(answer: tuple[Array, Array]) -> bool:
        backend.synchronize()
        return all(np.array_equal(backend.to_host(a), b) for a, b in zip(answer, expected, strict=True))

    counting = "bytes copied, both ways together" if direction == "both" else "bytes copied, one way"
    return Case(
        run=run,
        work=Work(bytes_moved=4 * n * len(copies), counting=counting),
        check=check,
        inputs=(outward, inward),
        distribution="uniform 32-bit words",
    )


def _require_peer(backend: Backend, *, direct: bool) -> None:
    """Raise `Skip` unless there is another GPU; where copies are to be direct, open each one's memory to the other."""
    if backend.device.kind != "cuda":
        msg = "a CPU has no peer to copy to"
        raise Skip(msg)
    cuda = backend.xp.cuda
    if cuda.runtime.getDeviceCount() == 1:
        msg = "this node has one GPU, a peer copy takes two"
        raise Skip(msg)
    for here, there in ((0, 1), (1, 0)) if direct else ():
        if not cuda.runtime.deviceCanAccessPeer(here, there):
            msg = "these two GPUs cannot reach each other's memory directly"
            raise Skip(msg)
        with cuda.Device(here):
            _open(cuda.runtime, there)


def _open(runtime: Any, there: int) -> None:
    try:
        runtime.deviceEnablePeerAccess(there)
    except runtime.CUDARuntimeError as err:
        if "AlreadyEnabled" not in str(err):
            raise


def _direct(xp: Any, source: Array, target: Array) -> Copy:
    """Return a copy on a stream of this GPU, whichever end it is."""
    stream, done = xp.cuda.Stream(non_blocking=True), xp.cuda.Event(disable_timing=True)

    def copy(begun: Any, clock: Any) -> None:
        stream.wait_event(begun)
        # The arrays themselves are held here, not their addresses: memory that nobody holds is given to others.
        ends = target.data.ptr, target.device.id, source.data.ptr, source.device.id
        xp.cuda.runtime.memcpyPeerAsync(*ends, source.nbytes, stream.ptr)
        done.record(stream)
        clock.wait_event(done)

    return copy


def _staged(xp: Any, source: Array, target: Array) -> Copy:
    """Return a copy in pieces through pinned memory, for which each GPU has a stream.

    What the driver does by itself where peer access is off depends on the driver, and on all that this process did before.
    """
    runtime, host = xp.cuda.runtime, xp.cuda.alloc_pinned_memory(source.nbytes)
    edges = [source.size * i // _PIECES * 4 for i in range(_PIECES + 1)]
    with source.device:
        leaving, left = xp.cuda.Stream(non_blocking=True), [xp.cuda.Event(disable_timing=True) for _ in range(_PIECES)]
    with target.device:
        entering, done = xp.cuda.Stream(non_blocking=True), xp.cuda.Event(disable_timing=True)

    def copy(begun: Any, clock: Any) -> None:
        leaving.wait_event(begun)
        for (low, high), event in zip(pairwise(edges), left, strict=True):
            between, size = host.ptr + low, high - low
            runtime.memcpyAsync(between, source.data.ptr + low, size, runtime.memcpyDeviceToHost, leaving.ptr)
            event.record(leaving)
            entering.wait_event(event)
            runtime.memcpyAsync(target.data.ptr + low, between, size, runtime.memcpyHostToDevice, entering.ptr)
        done.record(entering)
        clock.wait_event(done)

    return copy
