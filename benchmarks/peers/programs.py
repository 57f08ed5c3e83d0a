"""The programs that benchmarks are compared with: plain C, NumPy, SciPy, hashlib. Each must pass the benchmark's own check first.

A benchmark's case is built as the harness builds it. Its peer works on the same inputs: they are taken from what the case's `run`
closes over.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import inspect
import itertools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import Pair, Run

from harness import registry
from harness.device.cpu import CpuDevice
from harness.registry import Case

__all__ = ["FLAGS", "Maker", "Program", "build", "has_scipy", "has_sha_instructions", "programs", "thread_count"]

# Nothing is fused: the two pictures of `pathtrace` must agree in every bit, and triad waits for the memory anyway.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
_SOURCES = ("stream.c", "pathtrace.c")
_SEED = 20261125
_RATES = {
    "GB/s": lambda work: work.bytes_moved / 1e9,
    "GFLOP/s": lambda work: work.flops / 1e9,
    "Mkey/s": lambda work: work.items / 1e6,
    "Mray/s": lambda work: work.items / 1e6,
    "Mhash/s": lambda work: work.items / 1e6,
}
_TIMES = {"ns/hop": 1e9, "us/launch": 1e6}

Maker = Callable[[], Iterator[Pair]]
Program = tuple[str, Maker]


def programs(backend: CpuDevice, library: ctypes.CDLL) -> Iterator[Program]:
    """Name what can be compared, each with what sets its pairs up."""
    threads = thread_count()
    for op, dtype in itertools.product(("triad", "copy"), ("float64", "float32")):
        yield f"stream {op} {dtype}", partial(_stream, backend, library, op, dtype)
    for size_bytes in (1 << 14, 1 << 18, 1 << 27):
        size = f"{size_bytes >> 20} MiB" if size_bytes >> 20 else f"{size_bytes >> 10} KiB"
        yield f"chase {size}", partial(_chase, backend, library, size_bytes)
    for dtype in ("float64", "float32"):
        yield f"gemm {dtype}", partial(_gemm, backend, dtype)
    yield f"fft, {threads} threads", partial(_fft, backend)
    yield "fft, 1 thread", partial(_alone, _fft, library, backend)
    yield "sort", partial(_sort, backend)
    yield f"pathtrace, {threads} threads", partial(_pathtrace, backend, library)
    yield "pathtrace, 1 thread", partial(_alone, partial(_pathtrace, library=library), library, backend)
    yield "sha256, 1 thread", partial(_alone, _sha256, library, backend)
    yield f"sha256, {threads} threads", partial(_sha256_by_processes, backend)
    yield "launch", partial(_launch, backend)


def thread_count() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


def has_scipy() -> bool:
    """Tell whether SciPy is here to be compared with; the harness does not need it."""
    return importlib.util.find_spec("scipy") is not None


def has_sha_instructions(backend: CpuDevice) -> bool:
    """Tell whether the CPU hashes in hardware, which OpenSSL under hashlib then uses and our kernel does not."""
    return bool({"sha_ni", "sha2"} & set(backend.device.isa or ()))


def build(folder: Path) -> ctypes.CDLL:
    """Compile the C programs into a folder and load them."""
    here, target = Path(__file__).parent, folder / "peers.so"
    subprocess.run(["cc", *FLAGS, "-o", target, *(here / source for source in _SOURCES)], check=True)
    library = ctypes.CDLL(str(target))
    library.new_array.argtypes = [ctypes.c_size_t]
    library.new_array.restype = ctypes.c_void_p
    library.free_array.argtypes = [ctypes.c_void_p]
    library.follow.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
    library.follow.restype = ctypes.c_uint64
    number, pointer, real = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_float
    library.pathtrace.argtypes = [number, pointer, number, number, number, real, real, pointer]
    library.set_threads(thread_count())
    return library


# -- what all of them need


def _case(backend: CpuDevice, name: str, **wanted: object) -> tuple[Case, dict[str, Any]]:
    """Build a case at the point the harness would measure, and return it with the variables its run closes over."""
    bench = registry.find([name])[0]
    params = next(p for p in registry.points(bench, backend.device) if wanted.items() <= p.items())
    case = bench.build(backend, _SEED, params)
    _must_pass(case, case.run(), name)
    return case, {**params, **inspect.getclosurevars(case.run).nonlocals}


def _must_pass(case: Case, answer: object, who: str) -> None:
    if not case.check(answer):
        sys.exit(f"the answer of {who} does not pass the benchmark's check")


def _pair(peer: str, case: Case, peer_run: Run, unit: str) -> Pair:
    def value(run_s: float) -> float:
        return run_s / case.work.items * _TIMES[unit] if unit in _TIMES else _RATES[unit](case.work) / run_s

    return Pair(peer=peer, case=case, peer_run=peer_run, unit=unit, value=value)


def _alone(make: Callable[[CpuDevice], Iterator[Pair]], library: ctypes.CDLL, backend: CpuDevice) -> Iterator[Pair]:
    """Set pairs up that stay on one CPU: a new device takes no more threads than there are CPUs to run on."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    library.set_threads(1)
    try:
        yield from make(CpuDevice(backend.device))
    finally:
        os.sched_setaffinity(0, allowed)
        library.set_threads(len(allowed))


# -- memory


def _stream(backend: CpuDevice, library: ctypes.CDLL, op: str, dtype: str) -> Iterator[Pair]:
    """Compare with C on the benchmark's own arrays and, for triad, on arrays that C made as it likes them."""
    case, inside = _case(backend, "stream", op=op, dtype=dtype)
    arrays = [inside[k] for k in ("a", "b", "c")]

    def against(peer: str, arrays: Sequence[Any]) -> Pair:
        scalar = ctypes.c_double if dtype == "float64" else ctypes.c_float
        loop = getattr(library, f"{op}_{dtype}")
        pointers = [ctypes.c_void_p(v.ctypes.data) for v in arrays]
        call = (ctypes.c_int64(inside["n"]), scalar(float(inside["s"])), *pointers)
        arrays[-1][:] = 0
        loop(*call)
        _must_pass(case, arrays[-1], peer)
        return _pair(peer, case, lambda: loop(*call), "GB/s")

    yield against("C, same arrays", arrays)
    if op == "triad":
        with _own_arrays(library, arrays) as own:
            yield against("C, its own arrays", own)


@contextmanager
def _own_arrays(library: ctypes.CDLL, likes: Sequence[Any]) -> Iterator[list[Any]]:
    """Let C allocate and first touch arrays, and fill them as those given."""
    addresses = [library.new_array(like.nbytes) for like in likes]
    if not all(addresses):
        sys.exit("no memory for C's own arrays")
    arrays = []
    for address, like in zip(addresses, likes, strict=True):
        raw = (ctypes.c_byte * like.nbytes).from_address(address)
        arrays.append(np.frombuffer(raw, dtype=like.dtype))
        arrays[-1][:] = like
    try:
        yield arrays
    finally:
        for address in addresses:
            library.free_array(address)


def _chase(backend: CpuDevice, library: ctypes.CDLL, size_bytes: int) -> Iterator[Pair]:
    case, inside = _case(backend, "chase", size_bytes=size_bytes)
    order, hops, lines, links = inside["order"], inside["hops"], inside["lines"], inside["following"]
    pointer = ctypes.c_void_p(links.ctypes.data)
    begin = lines // 2  # half a cycle behind: at the same place it would find what ours has just brought into the cache
    runs = 0

    def run() -> tuple[Any, int]:
        nonlocal runs
        start = int(order[(begin + runs * hops) % lines])
        runs += 1
        return np.array([library.follow(start, hops, pointer)], dtype=np.uint64), start

    _must_pass(case, run(), "C")
    yield _pair("C, same links", case, run, "ns/hop")


# -- libraries


def _gemm(backend: CpuDevice, dtype: str) -> Iterator[Pair]:
    case, _ = _case(backend, "gemm", dtype=dtype)
    a, b = case.inputs
    _must_pass(case, a @ b, "NumPy")
    yield _pair("NumPy a @ b", case, lambda: a @ b, "GFLOP/s")


def _fft(backend: CpuDevice) -> Iterator[Pair]:
    case, _ = _case(backend, "fft")
    out = np.empty_like(case.inputs[0])
    transforms: dict[str, Callable[[Any], Any]] = {"numpy.fft.fft": lambda x: np.fft.fft(x, out=out)}
    if has_scipy():
        import scipy.fft

        transforms = {"scipy.fft.fft": scipy.fft.fft, **transforms}
    for name, transform in transforms.items():
        run = _in_turn(transform, case.inputs)
        _must_pass(case, run(), name)
        yield _pair(name, case, run, "GFLOP/s")


def _in_turn(transform: Callable[[Any], Any], inputs: Sequence[Any]) -> Callable[[], tuple[Any, int]]:
    """Take the inputs in turn as the benchmark does, half a turn away from it, so that neither finds the other's in the cache."""
    turns = itertools.cycle([*range(len(inputs) // 2, len(inputs)), *range(len(inputs) // 2)])

    def run() -> tuple[Any, int]:
        turn = next(turns)
        return transform(inputs[turn]), turn

    return run


def _sort(backend: CpuDevice) -> Iterator[Pair]:
    case, _ = _case(backend, "sort")
    (keys,) = case.inputs
    _must_pass(case, np.sort(keys), "NumPy")
    yield _pair("np.sort", case, lambda: np.sort(keys), "Mkey/s")


# -- arithmetic


def _pathtrace(backend: CpuDevice, library: ctypes.CDLL) -> Iterator[Pair]:
    case, inside = _case(backend, "pathtrace")
    out = np.zeros_like(inside["out"])
    numbers = inside["width"], inside["height"], inside["samples"], *inside["view"]
    call = inside["seed"], inside["spheres"].ctypes.data, *numbers, out.ctypes.data

    def run() -> Any:
        library.pathtrace(*call)
        return out

    _must_pass(case, run(), "C")
    yield _pair("C, same picture", case, run, "Mray/s")


def _messages(inside: dict[str, Any]) -> list[bytes]:
    prefix = inside["key"].astype(">u4").tobytes()
    return [prefix + i.to_bytes(8, "big") for i in range(inside["n"])]


def _hash(messages: Sequence[bytes]) -> bytes:
    sha256, last = hashlib.sha256, b""
    for message in messages:
        last = sha256(message).digest()
    return last


def _sha256(backend: CpuDevice) -> Iterator[Pair]:
    case, inside = _case(backend, "sha256")
    messages = _messages(inside)
    joined = b"".join(hashlib.sha256(m).digest() for m in messages)
    _must_pass(case, np.frombuffer(joined, dtype=">u4").astype(np.uint32), "hashlib")
    yield _pair("hashlib loop", case, lambda: _hash(messages), "Mhash/s")


_share: list[bytes] = []


def _keep(messages: list[bytes]) -> None:
    _share[:] = messages


def _hash_share(bounds: tuple[int, int]) -> bytes:
    low, high = bounds
    return _hash(_share[low:high])


def _sha256_by_processes(backend: CpuDevice) -> Iterator[Pair]:
    """Processes on hashlib's side: it keeps the interpreter's lock for messages this short."""
    case, inside = _case(backend, "sha256")
    messages, threads = _messages(inside), thread_count()
    shares = list(itertools.pairwise(len(messages) * i // threads for i in range(threads + 1)))
    context = multiprocessing.get_context("spawn")
    with context.Pool(threads, initializer=_keep, initargs=(messages,)) as pool:
        run = partial(pool.map, _hash_share, shares, chunksize=1)
        if run() != [_hash(messages[low:high]) for low, high in shares]:
            sys.exit("the processes hash other messages")
        yield _pair(f"hashlib loop, {threads} processes", case, run, "Mhash/s")


def _launch(backend: CpuDevice) -> Iterator[Pair]:
    from numba import njit

    from harness.kernels.launch import tick

    case, inside = _case(backend, "launch", launches=512)
    plain, state, key, launches = njit(tick), inside["state"], inside["key"], inside["launches"]
    zero, one = np.uint64(0), np.uint64(1)

    def run() -> Any:
        plain(zero, zero, one, one, True, key, state)  # noqa: FBT003 - kernels take positional arguments only
        for _ in range(launches - 1):
            plain(zero, zero, one, one, False, key, state)  # noqa: FBT003
        return state

    _must_pass(case, run(), "the plain Numba call")
    yield _pair("plain Numba call", case, run, "us/launch")
