"""Compare the harness's CPU benchmarks with plain programs that do the same work, side by side in one process.

    uv run python benchmarks/peers.py [--rounds N] [--only NAME] [--json | --markdown]

A benchmark's case is built as the harness builds it and must pass its own check; so must what the peer leaves behind. Samples of the
two alternate (ours, peer, peer, ours, ...), so that a neighbour's load, a clock change or a warm cache meets both alike. Each round
gives one ratio of medians; the interval is Student's t over the rounds' ratios, as the harness computes it. Exit status 1 if a
judged row (triad and gemm) is not shown to lie within 5 %.

Traps, and what is done about them. Where pages lie (first touch, huge pages, alignment of the arrays to each other): C works on the
very arrays of the benchmark, through their pointers; a second row gives C arrays of its own, on 2 MiB pages, first touched by the
threads that use them. A walk that finds what the other one has just cached: the two chases run half a cycle apart. Threads: both sides
use all that the process may run on; and a pause before each sample lets the other side's threads fall asleep, since those of OpenMP and
OpenBLAS spin for milliseconds after their work (without the pause ours measured up to 13 % slower than C, by that alone). Other processes: a sample during which our threads had to
wait for a CPU is taken again; what they do to the memory's bandwidth without that is left in, and widens the interval.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import inspect
import itertools
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from harness import registry, stats
from harness.device.cpu import CpuDevice, cpu_device
from harness.measure.rounds import Effort, batch_for
from harness.registry import Case

_SEED = 20261125
_TOLERANCE = 0.05
_SAMPLES = 6  # of each side in a round; even, so that each side goes first equally often
_ROUNDS_MIN = 8
_HALF_WIDTH = 0.01
_SAMPLE = Effort(warmup_s=0.0, budget_s=0.0, sample_s=0.02)
_WARMUP_S = 0.3
_PAUSE_S = 0.04  # OpenMP's and OpenBLAS's threads go on spinning for so long, and would take the other side's CPUs
_ATTEMPTS = 5  # at one sample
_WAITED_FRACTION = 0.01  # of a sample's time, that our threads may have waited for a CPU in all
_UNTIMED_S = 0.1  # a shorter run is made once more than timed, to wake what slept
_JUDGED = ("stream triad", "gemm")
_OWN = "C, its own arrays"
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_UNITS = {"bandwidth": ("GB/s", 1e9), "compute": ("GFLOP/s", 1e9), "hash": ("Mhash/s", 1e6)}
_LATENCIES = {"hop": ("ns/hop", 1e9), "launch": ("us/launch", 1e6)}

Run = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A benchmark's run and its peer's, which do the same work."""

    benchmark: str
    peer: str
    case: Case
    peer_run: Run
    unit: str
    value: Callable[[float], float]  # seconds of one run -> in the unit


Maker = Callable[[str], Iterator[Pair]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the comparison of one pair gave. Ratios are of the values shown, ours to the peer's."""

    benchmark: str
    peer: str
    unit: str
    ours: float
    peers: float
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_of_best: float
    ours_spread_fraction: float
    peers_spread_fraction: float
    rounds: int
    repeated_samples: int
    disturbed_samples: int
    batch_ours: int
    batch_peers: int
    verdict: str
    judged: bool


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare CPU benchmarks with plain programs run beside them.")
    parser.add_argument("--rounds", type=int, default=25, help="rounds after which a comparison stops at the latest")
    parser.add_argument("--only", default="", help="compare only rows whose name contains this")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: one round has no spread")

    backend = CpuDevice(cpu_device())
    header = _header(backend)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for pair in _pairs(backend, _compile(Path(folder)), args.only):
            print(f"{pair.benchmark} / {pair.peer} ...", file=sys.stderr)
            rows.append(_compare(pair, args.rounds))
    if args.json:
        print(json.dumps({"header": header, "rows": [asdict(r) for r in rows]}, indent=1))
    else:
        print("\n".join(f"{name}: {value}" for name, value in header.items()), end="\n\n")
        print(_markdown(rows) if args.markdown else _aligned(rows))
    return int(any(r.judged and r.verdict != "yes" for r in rows))


# -- what is compared


def _pairs(backend: CpuDevice, library: ctypes.CDLL, only: str) -> Iterator[Pair]:
    """Set up one pair after the other, so that only one holds memory."""
    for name, make in _makers(backend, library):
        if only in name:
            yield from make(name)


def _makers(backend: CpuDevice, library: ctypes.CDLL) -> Iterator[tuple[str, Maker]]:
    for op, dtype in itertools.product(("triad", "copy"), ("float64", "float32")):
        yield f"stream {op} {dtype}", partial(_stream, backend, library, (op, dtype))
    for dtype in ("float64", "float32"):
        yield f"gemm {dtype}", partial(_gemm, backend, dtype)
    yield "fft", partial(_fft, backend)
    for size_bytes in (1 << 14, 1 << 18, 1 << 27):
        yield f"chase {size_bytes >> 10} KiB", partial(_chase, backend, library, size_bytes)
    yield "sha256, 1 thread", partial(_sha256_single, backend)
    yield f"sha256, {_threads()} threads", partial(_sha256_all, backend)
    yield "launch", partial(_launch, backend)


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


def _value(case: Case, metric: str) -> tuple[str, Callable[[float], float]]:
    work = case.work
    if metric in _LATENCIES:
        unit, scale = _LATENCIES[metric]
        return unit, lambda run_s: run_s / work.items * scale
    unit, scale = _UNITS[metric]
    amount = {"bandwidth": work.bytes_moved, "compute": work.flops, "hash": work.items}[metric]
    return unit, lambda run_s: amount / run_s / scale


def _pair(name: str, peer: str, case: Case, peer_run: Run, metric: str) -> Pair:
    unit, value = _value(case, metric)
    return Pair(benchmark=name, peer=peer, case=case, peer_run=peer_run, unit=unit, value=value)


def _stream(backend: CpuDevice, library: ctypes.CDLL, point: tuple[str, str], name: str) -> Iterator[Pair]:
    op, dtype = point
    case, inside = _case(backend, "stream", op=op, dtype=dtype)
    arrays = [inside[k] for k in ("a", "b", "c")]

    def against(function: str, peer: str, arrays: Sequence[Any]) -> Pair:
        scalar = ctypes.c_double if dtype == "float64" else ctypes.c_float
        loop = getattr(library, f"{function}_{dtype}")
        pointers = [ctypes.c_void_p(v.ctypes.data) for v in arrays]
        call = (ctypes.c_int64(inside["n"]), scalar(float(inside["s"])), *pointers)
        arrays[-1][:] = 0
        loop(*call)
        _must_pass(case, arrays[-1], peer)
        return _pair(name, peer, case, lambda: loop(*call), "bandwidth")

    yield against(op, "C, same arrays", arrays)
    if op == "copy":
        yield against("memcpy", "C memcpy, same arrays", arrays)
    with _own_arrays(library, arrays) as own:
        yield against(op, _OWN, own)


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


def _gemm(backend: CpuDevice, dtype: str, name: str) -> Iterator[Pair]:
    case, inside = _case(backend, "gemm", dtype=dtype)
    a, b = inside["a"], inside["b"]
    _must_pass(case, a @ b, "NumPy")
    yield _pair(name, "NumPy a @ b", case, lambda: a @ b, "compute")


def _fft(backend: CpuDevice, name: str) -> Iterator[Pair]:
    case, inside = _case(backend, "fft")
    x = inside["x"]
    _must_pass(case, np.fft.fft(x), "NumPy")
    yield _pair(name, "numpy.fft.fft", case, lambda: np.fft.fft(x), "compute")


def _chase(backend: CpuDevice, library: ctypes.CDLL, size_bytes: int, name: str) -> Iterator[Pair]:
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
    yield _pair(name, "C, same links", case, run, "hop")


def _messages(inside: dict[str, Any]) -> list[bytes]:
    prefix = inside["key"].astype(">u4").tobytes()
    return [prefix + i.to_bytes(8, "big") for i in range(inside["n"])]


def _hash(messages: Sequence[bytes]) -> bytes:
    sha256, last = hashlib.sha256, b""
    for message in messages:
        last = sha256(message).digest()
    return last


def _answer(messages: Sequence[bytes]) -> Any:
    joined = b"".join(hashlib.sha256(m).digest() for m in messages)
    return np.frombuffer(joined, dtype=">u4").astype(np.uint32)


def _sha256_single(backend: CpuDevice, name: str) -> Iterator[Pair]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        case, inside = _case(CpuDevice(backend.device), "sha256")
        messages = _messages(inside)
        _must_pass(case, _answer(messages), "hashlib")
        yield _pair(name, "hashlib loop", case, lambda: _hash(messages), "hash")
    finally:
        os.sched_setaffinity(0, allowed)


_share: list[bytes] = []


def _keep(messages: list[bytes]) -> None:
    _share[:] = messages


def _hash_share(bounds: tuple[int, int]) -> bytes:
    low, high = bounds
    return _hash(_share[low:high])


def _sha256_all(backend: CpuDevice, name: str) -> Iterator[Pair]:
    """Processes on hashlib's side: it keeps the interpreter's lock for messages this short."""
    case, inside = _case(backend, "sha256")
    messages, threads = _messages(inside), _threads()
    edges = [len(messages) * i // threads for i in range(threads + 1)]
    shares = list(itertools.pairwise(edges))
    context = multiprocessing.get_context("spawn")
    with context.Pool(threads, initializer=_keep, initargs=(messages,)) as pool:
        ends = pool.map(_hash_share, shares, chunksize=1)
        if ends != [_hash(messages[low:high]) for low, high in shares]:
            sys.exit("the processes hash other messages")
        run = lambda: pool.map(_hash_share, shares, chunksize=1)  # noqa: E731 - the same form as its neighbours
        yield _pair(name, f"hashlib loop, {threads} processes", case, run, "hash")


def _launch(backend: CpuDevice, name: str) -> Iterator[Pair]:
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
    yield _pair(name, "plain Numba call", case, run, "launch")


# -- how it is compared


def _compare(pair: Pair, rounds_max: int) -> Row:
    batch_ours, batch_peers = _warm(pair.case.run), _warm(pair.peer_run)
    clock = _Clock()
    rounds: list[tuple[list[float], list[float]]] = []
    ratios: list[float] = []
    while len(ratios) < rounds_max:
        ours: list[float] = []
        peers: list[float] = []
        for i in range(_SAMPLES):
            sides = [(ours, pair.case.run, batch_ours), (peers, pair.peer_run, batch_peers)]
            for times, run, batch in sides if i % 2 == 0 else reversed(sides):
                times.append(clock.undisturbed(run, batch))
        rounds.append((ours, peers))
        ratios.append(pair.value(median(ours)) / pair.value(median(peers)))
        centre, low, high = stats.interval(ratios)
        if len(ratios) >= _ROUNDS_MIN and high - low <= 2 * _HALF_WIDTH * centre:
            break
    _must_pass(pair.case, pair.case.run(), f"{pair.benchmark} after timing")
    all_ours = [t for ours, _ in rounds for t in ours]
    all_peers = [t for _, peers in rounds for t in peers]
    return Row(
        benchmark=pair.benchmark,
        peer=pair.peer,
        unit=pair.unit,
        ours=pair.value(median(all_ours)),
        peers=pair.value(median(all_peers)),
        ratio=centre,
        ratio_low=low,
        ratio_high=high,
        ratio_of_best=pair.value(min(all_ours)) / pair.value(min(all_peers)),
        ours_spread_fraction=_spread(all_ours),
        peers_spread_fraction=_spread(all_peers),
        rounds=len(ratios),
        repeated_samples=clock.repeated,
        disturbed_samples=clock.disturbed,
        batch_ours=batch_ours,
        batch_peers=batch_peers,
        verdict=_verdict(low, high),
        judged=pair.benchmark.startswith(_JUDGED) and pair.peer != _OWN,
    )


def _warm(run: Run) -> int:
    """Run for a while and return how many runs make one sample."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - began < _WARMUP_S:
        times.append(_sample(run, 1))
    return batch_for(min(times), _SAMPLE)


def _sample(run: Run, batch: int) -> float:
    start = time.perf_counter()
    run()
    if time.perf_counter() - start > _UNTIMED_S and batch == 1:
        return time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(batch):
        run()
    return (time.perf_counter() - start) / batch


class _Clock:
    """Takes samples, and takes them again if another process had our CPUs: the kernel says how long our threads stood in line.

    What decides is never the time itself, and it decides for both sides alike.
    """

    def __init__(self) -> None:
        self.repeated = 0  # samples taken again
        self.disturbed = 0  # samples kept though disturbed, after so many attempts

    def undisturbed(self, run: Run, batch: int) -> float:
        for _ in range(_ATTEMPTS):
            time.sleep(_PAUSE_S)
            waited, began = _waited_s(), time.perf_counter()
            sample_s = _sample(run, batch)
            if _waited_s() - waited <= _WAITED_FRACTION * (time.perf_counter() - began):
                return sample_s
            self.repeated += 1
        self.disturbed += 1
        return sample_s


def _waited_s() -> float:
    """Return how long the threads of this process were ready to run and had no CPU, all together; 0 where the kernel does not count."""
    total_ns = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            total_ns += int(path.read_text().split()[1])
    return total_ns / 1e9


def _spread(times: Sequence[float]) -> float:
    """Return the middle half of the samples, relative to their median."""
    low, _, high = quantiles(times, n=4)
    return (high - low) / median(times)


def _verdict(low: float, high: float) -> str:
    least, most = 1 - _TOLERANCE, 1 + _TOLERANCE
    if least <= low and high <= most:
        return "yes"
    if high < least or low > most:
        return "no"
    return "unclear"


# -- the machine, and how the result looks


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _compile(folder: Path) -> ctypes.CDLL:
    target = folder / "stream.so"
    subprocess.run(["cc", *_FLAGS, "-o", str(target), str(Path(__file__).parent / "stream.c")], check=True)
    library = ctypes.CDLL(str(target))
    library.new_array.argtypes = [ctypes.c_size_t]
    library.new_array.restype = ctypes.c_void_p
    library.free_array.argtypes = [ctypes.c_void_p]
    library.follow.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
    library.follow.restype = ctypes.c_uint64
    library.set_threads(_threads())
    return library


def _header(backend: CpuDevice) -> dict[str, str]:
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    packages = ", ".join(f"{p} {metadata.version(p)}" for p in ("numpy", "numba", "llvmlite"))
    caches = [
        p for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*") if (p / "level").read_text() == "3\n"
    ]
    l3 = (caches[0] / "size").read_text().strip() if caches else "unknown"
    return {
        "CPU": f"{backend.device.name}, {_threads()} threads, L3 {l3}",
        "system": f"{platform.system()} {platform.release()}, load {os.getloadavg()[0]:.2f} at the start",
        "huge pages": pages.read_text().strip() if pages.exists() else "unknown",
        "versions": f"Python {platform.python_version()}, {packages}, {blas['name']} {blas['version']}",
        "compiler": f"{compiler}, {' '.join(_FLAGS)}",
        "sampling": f"{_SAMPLES} samples a side and round, alternating; at least {_SAMPLE.sample_s * 1e3:g} ms each",
    }


def _cells(row: Row) -> list[str]:
    return [
        row.benchmark,
        row.peer,
        _digits(row.ours),
        _digits(row.peers),
        row.unit,
        f"{row.ratio:.3f}",
        f"{row.ratio_low:.3f} to {row.ratio_high:.3f}",
        f"{row.ratio_of_best:.3f}",
        f"{row.ours_spread_fraction * 100:.1f} / {row.peers_spread_fraction * 100:.1f}",
        str(row.rounds),
        f"{row.repeated_samples} / {row.disturbed_samples}",
        row.verdict,
    ]


_TITLES = (
    "benchmark", "against", "ours", "peer", "unit", "ratio", "95 % interval", "of best", "spread %", "rounds",
    "repeated / disturbed", "within 5 %",
)  # fmt: skip
_TEXT = {0, 1, 4, 11}  # columns of words; the others are numbers and end at the right


def _digits(value: float) -> str:
    return f"{value:.{max(0, 3 - math.ceil(math.log10(value)))}f}"


def _aligned(rows: Sequence[Row]) -> str:
    table = [list(_TITLES), *map(_cells, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(_TITLES))]
    return "\n".join(
        "  ".join(c.ljust(w) if i in _TEXT else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in table
    )


def _markdown(rows: Sequence[Row]) -> str:
    rule = ["---" if i in _TEXT else "---:" for i in range(len(_TITLES))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(_TITLES), rule, *map(_cells, rows)])


if __name__ == "__main__":
    sys.exit(main())
