"""The CPU as a device: NumPy arrays, kernels compiled by Numba and spread over threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.device.machine import machine_uuid
from harness.device.rapl import CpuSensors
from harness.device.rng import Rng
from harness.model import Device

if TYPE_CHECKING:
    from harness.device.backend import Array, CudaSource, Launcher, Stamp, Stopwatch

__all__ = ["CpuDevice", "cpu_device", "meminfo_bytes"]


class _Watch:
    device_s = 0.0
    host_s = 0.0
    held = False
    expired = False


class CpuDevice:
    """One process's view of the CPU; uses as many threads as the process may run on."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.xp: Any = np
        self._threads = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="lane")

    def rng(self, seed: int) -> Rng:
        """Return the generator of this seed."""
        return Rng(self, seed)

    def lanes(self, n: int) -> int:
        """Return the number of threads that a launch of n indices uses."""
        return max(1, min(self._threads, n))

    def compile(self, kernel: Callable[..., None], *, reorder: bool = False, fuse: bool = False) -> Launcher:
        """Compile a range kernel. One lane runs on the calling thread, so that a launch costs a call and no more."""
        from numba import njit

        freedoms = ({"reassoc", "nsz"} if reorder else set()) | ({"contract"} if fuse else set())
        compiled = njit(nogil=True, cache=True, fastmath=freedoms or False)(kernel)
        one, zero = np.uint64(1), np.uint64(0)

        def launch(n: int, *args: object) -> None:
            if n == 1:  # what latencies are made of: counting lanes would cost more than the call
                compiled(zero, zero, one, one, *args)
                return
            lanes = self.lanes(n)
            if lanes == 1:
                compiled(zero, zero, np.uint64(n), one, *args)
                return
            edges = [n * i // lanes for i in range(lanes + 1)]
            calls = [
                (np.uint64(i), np.uint64(lo), np.uint64(hi - lo), one, *args)
                for i, (lo, hi) in enumerate(pairwise(edges))
            ]
            pieces = [self._pool.submit(compiled, *call) for call in calls[1:]]
            compiled(*calls[0])  # here, rather than wait for another thread to wake up
            for piece in pieces:
                piece.result()

        return launch

    def load(self, source: CudaSource) -> Launcher:
        """Take the source's twin, which has no grid."""

        def launch(blocks: int, threads: int, *args: object, shared_bytes: int = 0) -> None:  # noqa: ARG001
            source.twin(*args)

        return launch

    @contextmanager
    def stopwatch(self, *, hold: bool = False) -> Iterator[Stopwatch]:  # noqa: ARG002 - there is nothing to hold
        """Time with the host's clock: on a CPU both readings are the same."""
        watch = _Watch()
        start = time.perf_counter()
        yield watch
        watch.host_s = watch.device_s = time.perf_counter() - start

    def stamp(self) -> Stamp | None:
        """Return None: what a CPU lets a program read counts at a fixed rate, whatever its cores do."""
        return None

    def clock_mhz(self, first: Stamp | None, last: Stamp | None) -> float | None:  # noqa: ARG002
        """Return None."""
        return None

    def synchronize(self) -> None:
        """Do nothing: a call on a CPU has finished when it returns."""

    def flush_cache(self) -> None:
        """Write over twice the last-level cache."""
        size = 2 * (self.device.l3_bytes or self.device.l2_bytes or 1 << 25)
        np.random.default_rng(0).integers(0, 256, size=size, dtype=np.uint8)

    def free_bytes(self) -> int:
        """Return what the kernel thinks can be had without swapping."""
        return meminfo_bytes("MemAvailable") or 0

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the array itself."""
        return np.asarray(array)


def meminfo_bytes(field: str) -> int | None:
    """Read one line of /proc/meminfo; None where it cannot be read."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _physical_cores() -> int | None:
    root = Path("/sys/devices/system/cpu")
    places = {
        ((core.parent / "physical_package_id").read_text(), core.read_text())
        for core in root.glob("cpu[0-9]*/topology/core_id")
    }
    return len(places) or None


def cpu_device() -> Device:
    """Describe this machine's CPU. Takes about a second: the model and its instruction sets come from py-cpuinfo."""
    import cpuinfo

    info: dict[str, Any] = cpuinfo.get_cpu_info()
    name = info.get("brand_raw") or info.get("arch") or "unknown CPU"
    return Device(
        uuid=machine_uuid(name),
        name=name,
        kind="cpu",
        selector="cpu",
        memory_bytes=meminfo_bytes("MemTotal"),
        l1_bytes=_cache_bytes(1, (0,)),
        l2_bytes=_cache_bytes(2, (0,)),
        l3_bytes=_cache_bytes(3, os.sched_getaffinity(0)),
        core_count=_physical_cores(),
        thread_count=len(os.sched_getaffinity(0)),
        isa=tuple(sorted(set(info.get("flags", ())) & _ISA)),
        sensors=CpuSensors().capability,
    )


_CACHE_FILES = ("level", "type", "size", "shared_cpu_list")
_ISA = frozenset(
    {
        "sse4_2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_bf16",
        "aes",
        "sha_ni",
    }
    | {"asimd", "asimddp", "sve", "sve2", "bf16", "i8mm"}
)


def _cache_bytes(level: int, cpus: Collection[int], root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Return the size of the data caches of a level that some CPUs have, each counted once; None where the kernel shows none.

    An L3 may come in slices, and whatever is to be cold must not fit into all of them together. Not from py-cpuinfo, which takes its
    figures from /proc, where L3 is often wrong.
    """
    found: dict[str, int] = {}  # by the CPUs that share it
    for index in (index for cpu in cpus for index in (root / f"cpu{cpu}" / "cache").glob("index*")):
        try:
            at, kind, size, shared = ((index / name).read_text().strip() for name in _CACHE_FILES)
        except OSError:
            continue
        if at == str(level) and kind != "Instruction" and size.endswith("K"):
            found[shared] = int(size[:-1]) * 1024
    return sum(found.values()) or None
