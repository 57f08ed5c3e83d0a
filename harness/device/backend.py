"""What every device offers to the code above it. `CpuDevice` and `CudaDevice` implement it; nothing else is needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from harness.device.rng import Rng
    from harness.model import Device

__all__ = ["Array", "Backend", "Launcher", "Stopwatch"]

Array = Any  # numpy.ndarray or cupy.ndarray
Launcher = Callable[..., None]


class Stopwatch(Protocol):
    """Times what is enqueued while it is open. Both readings hold once the context has been left."""

    device_s: float  # by the device's own clock; on a CPU the host's
    host_s: float  # by the host's clock, from before the first call to after the last result


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

    def lanes(self, n: int) -> int:
        """Return over how many lanes a launch of n indices is spread."""
        ...

    def stopwatch(self) -> AbstractContextManager[Stopwatch]:
        """Return a context that times what runs inside it."""
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
