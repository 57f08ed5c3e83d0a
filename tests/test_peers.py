"""Benchmarks that take several GPUs: which of them a process sees, what is measured between them, and on whose clock."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from fakefleet import ENVIRONMENT
from test_ray import FakeRay, carry_out, skip

import harness
from harness import registry
from harness.cluster.errand import Errand, Orders
from harness.cluster.lease import Order
from harness.cluster.local import run_here
from harness.cluster.spool import Reply
from harness.cluster.task import Inventory, environment_for
from harness.device.cuda import CudaDevice
from harness.kernels.allreduce import Rank, by_nccl
from harness.measure.rounds import Effort
from harness.model import Device, Job, Node, Outcome, Params, Skipped

SEED = 0x0123456789ABCDEF
GPUS = tuple(
    Device(uuid=f"GPU-{c}", name=c, kind="cuda", selector=f"cuda:{i}", sensors={}) for i, c in enumerate("abc")
)
LOST = Device(uuid="GPU-x", name="x", kind="cuda", selector="cuda:3", sensors={}, unusable_reason="fell off the bus")
CPU = Device(uuid="CPU-1", name="cpu", kind="cpu", selector="cpu", sensors={})
P2P: Params = {"direction": "to", "access": "direct", "n": 1 << 12}


# --- which GPUs a process sees ----------------------------------------------------------------------------------------


def job(device: Device, benchmark: str = "p2p") -> Job:
    return Job(benchmark=benchmark, version=1, params=P2P, device_uuid=device.uuid, seed="0" * 16)


def errand(*jobs: Job) -> Errand:
    inventory = Inventory(node=Node(name="n"), place="node-1", environment=ENVIRONMENT, devices=(CPU, *GPUS, LOST))
    return Errand(inventory=inventory, jobs=jobs)


def test_a_process_sees_its_own_gpu_first_and_no_other_unless_it_is_to() -> None:
    assert environment_for(GPUS[0]) == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    assert environment_for(GPUS[1], ("GPU-c", "GPU-a")) == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-c,GPU-a"}
    assert environment_for(CPU, ("GPU-a",)) == {}
    assert environment_for(None) == {}


@pytest.mark.parametrize(
    ("device", "peers"),
    [(GPUS[0], ("GPU-b", "GPU-c")), (GPUS[1], ("GPU-c", "GPU-a")), (GPUS[2], ("GPU-a", "GPU-b")), (CPU, ())],
    ids=lambda x: getattr(x, "name", ""),
)
def test_the_peers_are_the_usable_gpus_of_the_node_in_a_ring(device: Device, peers: tuple[str, ...]) -> None:
    assert errand().peers(job(device)) == peers


@pytest.mark.parametrize("benchmark", ["fft", "nowhere"])
def test_other_benchmarks_have_no_peers(benchmark: str) -> None:
    assert errand().peers(job(GPUS[0], benchmark)) == ()


class FakeLease:
    """Skips every job, and remembers which peers each was given."""

    given: ClassVar[list[tuple[str, tuple[str, ...]]]] = []

    def __init__(self, kinds: object) -> None:
        self.given.clear()

    def close(self) -> None:
        pass

    def carry_out(self, order: Order) -> Reply:
        self.given.extend((job.benchmark, tuple(order.peers)) for job in order.jobs)
        outcomes = tuple(Outcome(skipped=Skipped(job=job, reason="a test")) for job in order.jobs)
        return Reply(attempt=order.attempt, started_at="", elapsed_s=0.0, outcomes=outcomes)


def test_on_this_machine_only_those_jobs_get_peers_that_take_them() -> None:
    orders = Orders(
        effort=Effort(warmup_s=0.0, budget_s=0.0),
        started=lambda _: None,
        out_of_time=lambda: None,
        lease=FakeLease,  # type: ignore[arg-type]
    )
    list(run_here([errand(job(GPUS[0], "fft"), job(GPUS[2]), job(CPU))], orders))
    assert FakeLease.given == [("fft", ()), ("p2p", ("GPU-a", "GPU-b")), ("p2p", ())]


def test_together_no_two_gpus_begin_such_a_job_for_each_has_all_of_them() -> None:
    orders = Orders(
        effort=Effort(warmup_s=0.0, budget_s=0.0),
        started=lambda _: None,
        out_of_time=lambda: None,
        lease=FakeLease,  # type: ignore[arg-type]
        together=True,
    )
    both = errand(job(GPUS[0]), job(GPUS[2]), job(GPUS[0], "fft"), job(GPUS[2], "fft"))
    outcomes = [outcome.skipped for _, outcome in run_here([both], orders)]
    refused = [o.job.device_uuid for o in outcomes if o and "run it without --together" in o.reason]
    assert refused == ["GPU-a", "GPU-c"]
    list(run_here([errand(job(GPUS[0]), job(GPUS[0], "fft"))], orders))  # nobody else works on a GPU then
    assert FakeLease.given == [("p2p", ("GPU-b", "GPU-c")), ("fft", ())]


def test_a_lease_through_ray_holds_one_gpu_so_such_a_job_is_skipped_with_the_reason() -> None:
    ray = FakeRay(answers=skip)
    outcomes, started = carry_out(ray, errand(job(GPUS[0]), job(GPUS[1])))
    assert ["run it on that node without --ray" in o.skipped.reason for o in outcomes if o.skipped] == [True, True]
    assert (started, ray.gpus) == ([], [])


# --- what is measured between them ------------------------------------------------------------------------------------


class FakeNccl:
    """NCCL's calls as CuPy names them, for ranks whose memory this process can copy from and to.

    As in NCCL, nothing happens before the group ends, and what then happens is enqueued on the streams of its calls.
    """

    available = True
    NCCL_UINT32, NCCL_SUM = 3, 0

    def __init__(self, fetch: Callable[[int, int, int], object], store: Callable[[int, int, int, int], object]) -> None:
        self._fetch, self._store = fetch, store
        self._calls: list[tuple[int, int, int, int]] | None = None
        self.gpus: list[int] = []
        self.NcclCommunicator = SimpleNamespace(initAll=self._all)

    def _all(self, gpus: list[int]) -> list[Any]:
        self.gpus = gpus
        return [SimpleNamespace(allReduce=self._all_reduce) for _ in gpus]

    def _all_reduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        assert self._calls is not None, "called outside a group, it would wait for the other GPUs for ever"
        assert (datatype, op) == (self.NCCL_UINT32, self.NCCL_SUM)
        self._calls.append((sendbuf, recvbuf, count, stream))

    def groupStart(self) -> None:  # noqa: N802 - NCCL's own spelling
        self._calls = []

    def groupEnd(self) -> None:  # noqa: N802
        calls, self._calls = self._calls, None
        assert calls is not None
        assert len(calls) == len(self.gpus)
        self.kept = np.zeros(calls[0][2], dtype=np.uint32)  # until the streams have read it
        for sent, _, count, _ in calls:
            part = np.empty(count, dtype=np.uint32)
            self._fetch(part.ctypes.data, sent, part.nbytes)
            self.kept += part
        for _, wanted, _, stream in calls:
            self._store(wanted, self.kept.ctypes.data, self.kept.nbytes, stream)


class HostArray:
    """What `by_nccl` asks of a CuPy array, in the host's memory."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values, self.size = values, values.size
        self.data = SimpleNamespace(ptr=values.ctypes.data)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_nccl_is_called_once_a_rank_in_one_group(count: int) -> None:
    draw = np.random.default_rng(count)
    owns = [draw.integers(0, 1 << 32, 1000, dtype=np.uint32) for _ in range(count)]
    totals = [HostArray(np.zeros(1000, dtype=np.uint32)) for _ in range(count)]
    ranks = [
        Rank(SimpleNamespace(id=i), SimpleNamespace(ptr=i), None, HostArray(own), total)
        for i, (own, total) in enumerate(zip(owns, totals, strict=True))
    ]
    nccl = FakeNccl(ctypes.memmove, lambda to, source, size, _: ctypes.memmove(to, source, size))
    reduce = by_nccl(nccl, ranks)
    for _ in range(2):
        reduce()
        for total in totals:
            assert np.array_equal(total.values, sum(owns[1:], start=owns[0]))
    assert nccl.gpus == list(range(count))


@pytest.fixture
def pair(cuda: CudaDevice) -> CudaDevice:
    if cuda.xp.cuda.runtime.getDeviceCount() == 1:
        pytest.skip("this node has one GPU")
    return cuda


@pytest.fixture
def nccl(pair: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> FakeNccl:
    """Put a stand-in where CuPy keeps NCCL. What it stores is enqueued, so that it is done when somebody waits for it."""
    runtime = pair.xp.cuda.runtime

    def store(to: int, source: int, size: int, stream: int) -> None:
        runtime.memcpyAsync(to, source, size, runtime.memcpyHostToDevice, stream)

    stand_in = FakeNccl(lambda to, source, size: runtime.memcpy(to, source, size, runtime.memcpyDeviceToHost), store)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", stand_in)
    return stand_in


def build(backend: CudaDevice, name: str, **params: str) -> registry.Case:
    (bench,) = registry.find([name])
    return bench.build(backend, SEED, {**params, "n": 1 << 12})


ALL = [
    *(("pcie", {"direction": d, "memory": m}) for d in ("h2d", "d2h", "both") for m in ("pinned", "pageable")),
    *(("p2p", {"direction": d, "access": a}) for d in ("to", "from", "both") for a in ("direct", "staged")),
    *(("allreduce", {"algorithm": a}) for a in ("ring", "nccl")),
]
every_link = pytest.mark.parametrize(
    ("name", "params"), ALL, ids=lambda x: x if isinstance(x, str) else "-".join(x.values())
)


@pytest.mark.gpu
@every_link
def test_each_end_is_checked(pair: CudaDevice, nccl: FakeNccl, name: str, params: dict[str, str]) -> None:
    """What arrived on another GPU or on the host counts as much as what arrived here."""
    case = build(pair, name, **params)
    answer = case.run()
    assert case.check(answer)
    for at, part in enumerate(answer):
        for i in (0, part.size // 2, part.size - 1):
            wrong = pair.to_host(part).copy()
            wrong[i] ^= 1
            assert not case.check((*answer[:at], like(pair, part, wrong), *answer[at + 1 :]))
    assert case.check(answer)


def like(backend: CudaDevice, part: Any, values: np.ndarray[Any, Any]) -> Any:
    """Put values where a part of an answer lies."""
    if isinstance(part, np.ndarray):
        return values
    with part.device as gpu:
        placed = backend.xp.asarray(values)
        gpu.synchronize()
        return placed


@pytest.mark.gpu
@every_link
@pytest.mark.parametrize("edge", ["begin", "end"])
def test_all_work_lies_between_the_ticks_of_the_first_gpus_clock(
    pair: CudaDevice, nccl: FakeNccl, monkeypatch: pytest.MonkeyPatch, name: str, params: dict[str, str], edge: str
) -> None:
    """The stopwatch's events are on that GPU's default stream. To see it, streams must be late: EMU_ASYNC=1, or a real GPU."""
    streams: list[Any] = []

    stream_class: Any = pair.xp.cuda.Stream

    class Noted(stream_class):  # type: ignore[misc]
        def __init__(self, *, non_blocking: bool) -> None:
            super().__init__(non_blocking=non_blocking)
            streams.append(self)

    monkeypatch.setattr(pair.xp.cuda, "Stream", Noted)
    case = build(pair, name, **params)
    monkeypatch.undo()
    clock, answer = pair.xp.cuda.Stream.null, case.run()
    pair.synchronize()
    expected = [pair.to_host(part).copy() for part in answer]
    for at in {"h2d": (0,), "from": (0,), "d2h": (1,), "to": (1,)}.get(params.get("direction", ""), range(len(answer))):
        spoil(answer[at])
    case.run()
    for stream in (
        streams if edge == "begin" else ()
    ):  # whatever does not wait for the clock is now spoilt after the fact
        stream.synchronize()
    clock.synchronize()
    for part, values in zip(answer, expected, strict=True):
        assert np.array_equal(unordered(pair.xp, part), values)


def spoil(target: Any) -> None:
    """Overwrite what a run is to write: on the first GPU not now, but on the clock's stream; elsewhere at once."""
    if isinstance(target, np.ndarray):
        target.fill(7)
        return
    with target.device as gpu:
        target.fill(7)
        if gpu.id:
            gpu.synchronize()


def unordered(xp: Any, part: Any) -> np.ndarray[Any, Any]:
    """Read an array without waiting for anything that is enqueued."""
    if isinstance(part, np.ndarray):
        return part.copy()
    values = np.frombuffer(xp.cuda.alloc_pinned_memory(part.nbytes), dtype=part.dtype, count=part.size)
    with part.device:
        stream = xp.cuda.Stream(non_blocking=True)
        part.get(stream=stream, out=values)
    return values


@pytest.mark.gpu
def test_busbw_is_counted_by_the_number_of_gpus(pair: CudaDevice) -> None:
    count = pair.xp.cuda.runtime.getDeviceCount()
    work = build(pair, "allreduce", algorithm="ring").work
    assert work.bytes_moved == 4 * (1 << 12) * 2 * (count - 1) // count
    assert f"{count} GPUs" in work.counting


@pytest.mark.gpu
@pytest.mark.slow
def test_jobs_of_one_run_see_each_others_gpus(pair: CudaDevice, tmp_path: Any) -> None:
    """From the command's function to the kernel: each GPU's process finds its peers."""
    (finished,) = harness.run("p2p", "launch", device="cuda:1", budget_s=60, seed="1", out=tmp_path)
    measured = [o.measurement for o in finished.report.outcomes if o.measurement]
    assert {m.job.benchmark for m in measured} == {"p2p", "launch"}
    assert not [o.failed for o in finished.report.outcomes if o.failed]
