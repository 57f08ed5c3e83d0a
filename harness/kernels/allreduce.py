"""All-reduce: every GPU of a node ends up with the sum of what they all had. Training does this at each step."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness.registry import Case, Sized, Skip, Work, benchmark, require_memory

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend


@dataclass(frozen=True, slots=True)
class Rank:
    """One GPU's part: its stream, an event for the end of its work, the array it has and the sum it is to have."""

    gpu: Any
    stream: Any
    done: Any
    own: Array
    total: Array


@benchmark(
    version=1,
    metric="bandwidth",
    quick=False,
    peers=True,
    algorithm=("nccl", "ring"),
    n=Sized(check=1 << 12, cpu=1 << 28, cuda=1 << 28),
)
def allreduce(backend: Backend, seed: int, *, algorithm: str, n: int) -> Case:
    """Sum of n 4-byte words over all GPUs of a node, left on each of them; by NCCL, or by our ring of peer copies."""
    count = _gpu_count(backend)
    xp, rng = backend.xp, backend.rng(seed)
    nccl = _nccl(xp) if algorithm == "nccl" else None
    truth = xp.zeros(n, dtype=xp.uint32)
    ranks = []
    for index in range(count):
        words = rng.words(n)
        truth += words
        ranks.append(_rank(backend, xp.cuda.Device(index), words))
    truths = [_moved(backend, rank.gpu, truth) for rank in ranks]
    reduce = by_nccl(nccl, ranks) if nccl else by_ring(xp, ranks)
    begun, clock = xp.cuda.Event(disable_timing=True), xp.cuda.Stream.null

    def run() -> tuple[Array, ...]:
        begun.record(clock)
        for rank in ranks:
            rank.stream.wait_event(begun)
        reduce()
        for rank in ranks:  # all of it ends before the clock's last event, which is on the first GPU
            rank.done.record(rank.stream)
            clock.wait_event(rank.done)
        return tuple(rank.total for rank in ranks)

    def check(answer: tuple[Array, ...]) -> bool:
        # A link that spoils the inputs or truths laid out over it is found too: the first GPU's truth never left it.
        backend.synchronize()
        return all(_equal(*pair) for pair in zip(answer, truths, strict=True))

    # The time of an ideal all-reduce depends on the GPUs' number only through this factor: so NCCL's own tests count.
    counting = f"busbw: size x 2 ({count} - 1) / {count}, for {count} GPUs"
    return Case(
        run=run,
        work=Work(bytes_moved=4 * n * 2 * (count - 1) // count, counting=counting, nominal=True),
        check=check,
        inputs=tuple(rank.own for rank in ranks),
        distribution="uniform 32-bit words",
    )


def by_nccl(nccl: Any, ranks: Sequence[Rank]) -> Callable[[], None]:
    """Return what enqueues NCCL's all-reduce on the ranks' streams; `nccl` is CuPy's module."""
    communicators = nccl.NcclCommunicator.initAll([rank.gpu.id for rank in ranks])

    def reduce() -> None:
        nccl.groupStart()
        for communicator, rank in zip(communicators, ranks, strict=True):
            ends = rank.own.data.ptr, rank.total.data.ptr
            communicator.allReduce(*ends, rank.own.size, nccl.NCCL_UINT32, nccl.NCCL_SUM, rank.stream.ptr)
        nccl.groupEnd()

    return reduce


def by_ring(xp: Any, ranks: Sequence[Rank]) -> Callable[[], None]:
    """Return what enqueues a ring on the ranks' streams.

    Of as many chunks as there are GPUs, each goes round once to be summed and once more to be handed out. Every GPU pulls from
    the one before it, so that all links work at each step.
    """
    count, n = len(ranks), ranks[0].own.size
    edges = list(pairwise(n * i // count for i in range(count + 1)))
    owns = [[rank.own[low:high] for low, high in edges] for rank in ranks]
    totals = [[rank.total[low:high] for low, high in edges] for rank in ranks]
    spares = []
    for rank, before in zip(ranks, (ranks[-1], *ranks), strict=False):
        _reach(xp, rank.gpu, before.gpu)
        with rank.gpu:
            spares.append(xp.empty(max(high - low for low, high in edges), dtype=xp.uint32))

    def pull(at: int, source: Array, target: Array, done: Sequence[Sequence[Any]]) -> None:
        here, before = ranks[at], ranks[at - 1]
        if done:
            here.stream.wait_event(done[-1][at - 1])
        ends = target.data.ptr, here.gpu.id, source.data.ptr, before.gpu.id
        xp.cuda.runtime.memcpyPeerAsync(*ends, source.nbytes, here.stream.ptr)

    def reduce() -> None:
        done: list[list[Any]] = []  # by step and rank
        for step in range(count - 1):
            for at, rank in enumerate(ranks):
                chunk = (at - 1 - step) % count
                source = (totals if step else owns)[at - 1][chunk]
                spare = spares[at][: source.size]
                pull(at, source, spare, done)
                with rank.gpu, rank.stream:
                    xp.add(owns[at][chunk], spare, out=totals[at][chunk])
            done.append([_mark(xp, rank) for rank in ranks])
        for step in range(count - 1):
            for at in range(count):
                chunk = (at - step) % count
                pull(at, totals[at - 1][chunk], totals[at][chunk], done)
            done.append([_mark(xp, rank) for rank in ranks])

    return reduce


def _mark(xp: Any, rank: Rank) -> Any:
    with rank.gpu:
        return rank.stream.record(xp.cuda.Event(disable_timing=True))


def _reach(xp: Any, *pair: Any) -> None:
    """Let two GPUs reach each other's memory where they can; where not, the driver takes their copies through the host."""
    for here, there in (pair, pair[::-1]):
        if xp.cuda.runtime.deviceCanAccessPeer(here.id, there.id):
            with here, suppress(xp.cuda.runtime.CUDARuntimeError):  # they can already
                xp.cuda.runtime.deviceEnablePeerAccess(there.id)


def _rank(backend: Backend, gpu: Any, words: Array) -> Rank:
    xp = backend.xp
    with gpu:
        require_memory(
            backend, 5 * words.nbytes
        )  # own, total, truth, what a comparison takes; and some more on the first
        stream, done = xp.cuda.Stream(non_blocking=True), xp.cuda.Event(disable_timing=True)
        total = xp.zeros(words.size, dtype=xp.uint32)
        return Rank(gpu, stream, done, _moved(backend, gpu, words), total)


def _moved(backend: Backend, gpu: Any, array: Array) -> Array:
    """Return an array of the first GPU on another one, when it is there: the streams of two GPUs know no order."""
    backend.synchronize()
    with gpu:
        moved = backend.xp.asarray(array)
        gpu.synchronize()
        return moved


def _equal(total: Array, truth: Array) -> bool:
    with total.device:
        return bool((total == truth).all())


def _gpu_count(backend: Backend) -> int:
    if backend.device.kind != "cuda":
        msg = "a CPU has no peers to sum with"
        raise Skip(msg)
    count: int = backend.xp.cuda.runtime.getDeviceCount()
    if count == 1:
        msg = "this node has one GPU, an all-reduce takes two"
        raise Skip(msg)
    return count


def _nccl(xp: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns where it cannot load the library; what we raise says as much
        nccl = importlib.import_module(f"{xp.__name__}.cuda.nccl")
    if not nccl.available:
        msg = "NCCL cannot be loaded: pip install nvidia-nccl-cu13, or nvidia-nccl-cu12 with the extra cuda12"
        raise Skip(msg)
    return nccl
