"""What every device offers to the code above it. `CpuDevice` and `CudaDevice` implement it; nothing else is needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from harness.device.rng import Rng
    from harness.model import Device

__all__ = ["Array", "Backend", "CudaSource", "Launcher", "Stamp", "Stopwatch"]

Array = Any  # numpy.ndarray or cupy.ndarray
Launcher = Callable[..., None]
Stamp = Any  # a reading that only its own device understands


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaSource:
    """A kernel in CUDA C++ for what Numba cannot reach, with a twin that does the same to NumPy arrays.

    It stands in its benchmark's module as a constant, alone or in a dict or tuple of constants: that is how the suite finds it, which
    compiles it for every architecture from `capability_min` on and counts its instructions.
    """

    name: str  # of the `extern "C" __global__` function
    text: str
    twin: Callable[..., None]  # takes the kernel's own arguments, without the grid
    capability_min: str = "7.5"
    options: tuple[str, ...] = ("--std=c++17",)


class Stopwatch(Protocol):
    """Times what is enqueued while it is open. Both readings hold once the context has been left."""

    device_s: float  # by the device's own clock; on a CPU the host's
    host_s: float  # by the host's clock, from when the device may begin to after the last result
    held: bool  # what was enqueued waited for its end, so that the time of launching is in neither reading
    expired: bool  # it waited too long and began on its own: the readings are worthless


class Backend(Protocol):
    """One device, opened in this process."""

    device: Device
    xp: Any  # the array module: numpy or cupy

    def rng(self, seed: int) -> Rng:
        """Return a generator whose numbers depend on the seed alone: the same bits on every device."""
        ...

    def compile(self, kernel: Callable[..., None], *, reorder: bool = False, fuse: bool = False) -> Launcher:
        """Compile a range kernel for this device.

        A range kernel is a module-level function `(lane, first, count, step, *args)` that handles the indices
        `first, first + step, ...`, `count` of them, all unsigned; it may write what belongs to its lane alone at `lane`.
        The launcher is called as `launch(n, *args)` and spreads the indices 0 to n - 1 over `lanes(n)` lanes. On a CPU a lane is a
        thread with a contiguous piece, on a GPU a thread that strides, so memory is walked in the order each likes. With `reorder` the
        additions of a sum may be taken in another order, which is what lets a CPU add in vectors; with `fuse` a product and a sum may be rounded once, as a GPU does.
        """
        ...

    def load(self, source: CudaSource) -> Launcher:
        """Compile a CUDA source for this GPU; on a CPU take its twin.

        The launcher is called as `launch(blocks, threads, *args, shared_bytes=0)`; scalars among the arguments are typed by NumPy.
        """
        ...

    def lanes(self, n: int) -> int:
        """Return over how many lanes a launch of n indices is spread."""
        ...

    def stopwatch(self, *, hold: bool = False) -> AbstractContextManager[Stopwatch]:
        """Return a context that times what runs inside it.

        With `hold` the device waits until all of it is enqueued, where the device can: for kernels that are shorter than their launch.
        What runs inside may then neither synchronise nor enqueue more than about 500 launches.
        """
        ...

    def stamp(self) -> Stamp | None:
        """Enqueue a reading of the device's cycle counters; None where it has none."""
        ...

    def clock_mhz(self, first: Stamp | None, last: Stamp | None) -> float | None:
        """Return the mean clock of the device's cores between two stamps, after what is enqueued; None where unknown."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        ...

    def flush_cache(self) -> None:
        """Write over the device's last-level cache with random data, so that what follows starts cold."""
        ...

    def free_bytes(self) -> int:
        """Return how much memory could be allocated now."""
        ...

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """Copy an array of this device to the host."""
        ...
