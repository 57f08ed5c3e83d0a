"""A CUDA GPU as a device: the only door to CuPy, and to Numba's CUDA target beside it.

The process that opens it must have `CUDA_VISIBLE_DEVICES` set to the one GPU's UUID beforehand, so that index 0 is that GPU and
no ordering of CUDA's or NVML's can mix up two cards.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.device.clocks import HOLD, STAMP, mean_clock_mhz
from harness.device.rng import Rng
from harness.errors import FailureError
from harness.model import Device

if TYPE_CHECKING:
    from harness.device.backend import Array, CudaSource, Launcher, Stamp, Stopwatch

__all__ = ["CudaDevice", "cuda_devices", "cuda_status", "is_out_of_memory"]

_BLOCK = 256
_BLOCKS_PER_SM = 16
_HOLD_LIMIT_NS = 5_000_000_000
_PROBE_S = 0.004
_PERSISTING_L2 = 6  # cudaLimitPersistingL2CacheSize, which CuPy does not name


class _Watch:
    device_s = 0.0
    host_s = 0.0
    held = False
    expired = False


class _Holder:
    """Holds the stream back until it is let go. Exists only where a launch returns before the kernel has ended."""

    def __init__(self, backend: CudaDevice) -> None:
        self._launch = backend.load(HOLD)
        self._memory = backend.xp.cuda.alloc_pinned_memory(16)  # the GPU reads it under the same address
        self._words = np.frombuffer(self._memory, dtype=np.uint64, count=2)
        self._words[:] = 0
        self._ticket = 0
        self.works = self._probe(backend)

    def _probe(self, backend: CudaDevice) -> bool:
        """Try it with a short limit: under CUDA_LAUNCH_BLOCKING, or in an emulator, a launch waits for the kernel's end."""
        self._launch(1, 1, *self._arguments(1))  # the first launch loads the kernel, which takes its own time
        self.release()
        backend.synchronize()
        fastest_s = _PROBE_S
        for _ in range(3):
            start = time.perf_counter()
            self._launch(1, 1, *self._arguments(int(_PROBE_S * 1e9)))
            fastest_s = min(fastest_s, time.perf_counter() - start)
            self.release()
            backend.synchronize()
        return fastest_s < _PROBE_S / 2

    def _arguments(self, limit_ns: int) -> tuple[np.uint64, ...]:
        self._ticket += 1
        address = self._words.ctypes.data
        return np.uint64(address), np.uint64(self._ticket), np.uint64(limit_ns), np.uint64(address + 8)

    def hold(self) -> None:
        self._launch(1, 1, *self._arguments(_HOLD_LIMIT_NS))

    def release(self) -> None:
        self._words[0] = self._ticket

    def expired(self) -> bool:
        return int(self._words[1]) == self._ticket


class CudaDevice:
    """One process's view of one GPU."""

    def __init__(self, device: Device) -> None:
        import cupy

        self.device = device
        self.xp: Any = cupy
        self._entries: dict[Callable[..., None], Any] = {}
        self._stamper: Launcher | None = None
        self._holder: _Holder | None = None
        self._sms = int(cupy.cuda.Device(0).attributes["MultiProcessorCount"])
        with suppress(cupy.cuda.runtime.CUDARuntimeError):  # before 8.0 there is no such carve-out
            cupy.cuda.runtime.deviceSetLimit(_PERSISTING_L2, 0)  # what it holds would pass for memory

    def rng(self, seed: int) -> Rng:
        """Return the generator of this seed."""
        return Rng(self, seed)

    def _grid(self, n: int) -> int:
        return max(1, min(-(-n // _BLOCK), self._sms * _BLOCKS_PER_SM))

    def lanes(self, n: int) -> int:
        """Return the number of threads of a launch of n indices."""
        return self._grid(n) * _BLOCK

    def compile(self, kernel: Callable[..., None], *, reorder: bool = False, fuse: bool = False) -> Launcher:  # noqa: ARG002
        """Compile a range kernel: one thread a lane, striding by the size of the grid; no lane adds in vectors."""
        from numba import cuda

        if kernel not in self._entries:
            self._entries[kernel] = _entry(cuda, kernel)
        launchable = self._entries[kernel]
        views: dict[int, tuple[Array, Any]] = {}

        def view(value: object) -> object:
            if not hasattr(value, "__cuda_array_interface__"):
                return value
            known = views.get(id(value))
            if known is None or known[0] is not value:
                # sync=False: both libraries use the legacy default stream, so order is kept without waiting.
                known = views[id(value)] = (value, cuda.as_cuda_array(value, sync=False))
            return known[1]

        def launch(n: int, *args: object) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumbaPerformanceWarning: small grids are wanted where they occur
                launchable[self._grid(n), _BLOCK](np.uint64(n), *map(view, args))

        return launch

    def load(self, source: CudaSource) -> Launcher:
        """Compile with NVRTC, now: a kernel that were loaded at its first launch could wait for one that waits for it."""
        module = self.xp.RawModule(code=source.text, options=source.options)
        kernel = module.get_function(source.name)

        def launch(blocks: int, threads: int, *args: object, shared_bytes: int = 0) -> None:
            kernel((blocks,), (threads,), args, shared_mem=shared_bytes)

        return launch

    @contextmanager
    def stopwatch(self, *, hold: bool = False) -> Iterator[Stopwatch]:
        """Time with a pair of events, and with the host's clock around a wait for both."""
        holder = self._holding() if hold else None
        event = self.xp.cuda.Event
        first, last, watch = event(), event(), _Watch()
        self.synchronize()
        if holder:
            holder.hold()
        start = time.perf_counter()
        first.record()
        try:
            yield watch
            last.record()
        finally:
            if holder:
                start = time.perf_counter()
                holder.release()
        last.synchronize()
        watch.host_s = time.perf_counter() - start
        watch.device_s = self.xp.cuda.get_elapsed_time(first, last) / 1e3
        if holder:
            watch.held, watch.expired = True, holder.expired()

    def _holding(self) -> _Holder | None:
        if self._holder is None:
            self._holder = _Holder(self)
        return self._holder if self._holder.works else None

    def stamp(self) -> Stamp | None:
        """Read the cycle counter of every multiprocessor: twice as many blocks as there are, so that few are missed."""
        if self._stamper is None:
            self._stamper = self.load(STAMP)
        blocks = 2 * self._sms
        out = self.xp.empty((blocks, 3), dtype=np.uint64)
        self._stamper(blocks, 32, out)
        return out

    def clock_mhz(self, first: Stamp | None, last: Stamp | None) -> float | None:
        """Return the mean clock between two stamps, over the multiprocessors that stand in both."""
        return None if first is None or last is None else mean_clock_mhz(self.to_host(first), self.to_host(last))

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self.xp.cuda.Device(0).synchronize()

    def flush_cache(self) -> None:
        """Write random words over twice the L2 cache."""
        self.rng(0).words(2 * (self.device.l2_bytes or 1 << 26) // 4)
        self.synchronize()

    def free_bytes(self) -> int:
        """Return the free memory of the GPU, and what CuPy's pool holds without using."""
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return int(free) + int(self.xp.get_default_memory_pool().free_bytes())

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """Copy an array to the host, after what is enqueued."""
        host: np.ndarray[Any, Any] = self.xp.asnumpy(array)
        return host


def _entry(cuda: Any, kernel: Callable[..., None]) -> Any:
    """Make the kernel that hands each thread its indices. Numba's CUDA target takes no star arguments, hence the text."""
    names = "".join(f", a{i}" for i in range(kernel.__code__.co_argcount - 4))
    text = (
        f"def entry(n{names}):\n"
        "    lane = uint64(cuda.grid(1))\n"
        "    step = uint64(cuda.gridsize(1))\n"
        "    if lane < n:\n"
        f"        body(lane, lane, (n - lane + step - uint64(1)) // step, step{names})\n"
    )
    scope = {"cuda": cuda, "uint64": np.uint64, "body": cuda.jit(device=True)(kernel)}
    exec(text, scope)  # noqa: S102 - built from an integer and nothing else
    return cuda.jit(scope["entry"])


def is_out_of_memory(err: BaseException) -> bool:
    """Tell whether an exception means that memory ran out, on the host or on the GPU."""
    return isinstance(err, MemoryError) or type(err).__name__ in {"OutOfMemoryError", "OutOfMemory"}


def cuda_status() -> str | None:
    """Return None where CuPy can reach a GPU, else one line that says why not and what would help."""
    try:
        import cupy
    except ImportError as err:
        return f"CuPy is not installed ({err}): pip install 'gpu-assay[cuda13]', or [cuda12] for a driver below 580"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as err:
        return f"CUDA cannot be used: {err}"
    return None if count else "CUDA sees no GPU"


def cuda_devices() -> tuple[Device, ...]:
    """Describe the GPUs that CUDA sees in this process, in its order; opens each of them.

    Raises:
        FailureError: CUDA cannot be used; the message says why.
    """
    reason = cuda_status()
    if reason:
        raise FailureError(reason)
    import cupy

    return tuple(_describe(cupy, i) for i in range(cupy.cuda.runtime.getDeviceCount()))


def _describe(cupy: Any, index: int) -> Device:
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    name = properties["name"].decode()
    raw = bytes(properties["uuid"]).hex()
    return Device(
        uuid="GPU-" + "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:32])),
        name=name,
        kind="cuda",
        selector=f"cuda:{index}",
        emulated="emulated" in name.lower(),
        memory_bytes=int(properties["totalGlobalMem"]),
        l2_bytes=int(properties["l2CacheSize"]) or None,
        compute_capability=f"{properties['major']}.{properties['minor']}",
        sm_count=int(properties["multiProcessorCount"]),
        pci_bus_id=cupy.cuda.runtime.deviceGetPCIBusId(index),
        sensors={},
    )
