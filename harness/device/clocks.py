"""Three small CUDA kernels that watch or hold the clock: they are part of measuring, not of any benchmark.

`stamp` reads each multiprocessor's cycle counter and the GPU's nanosecond clock: two stamps give the clock it really ran at, which no
driver has to be asked for. `hold` keeps a stream waiting until the host lets go, so that what is enqueued behind it starts at once,
one kernel on the heels of the other. A host that died cannot hang the card: after a limit by the GPU's own clock it lets go itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from harness.device.backend import CudaSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HOLD", "STAMP", "mean_clock_mhz"]

_MULTIPROCESSOR, _CYCLES, _NANOSECONDS = range(3)


def _no_twin(*_: object) -> None:
    """Leave the arrays as they are: a CPU has neither multiprocessors nor a stream to hold."""


STAMP = CudaSource(
    name="stamp",
    text=r"""
extern "C" __global__ void stamp(unsigned long long* out)
{
    if (threadIdx.x) return;
    unsigned int multiprocessor;
    unsigned long long cycles, nanoseconds;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles));
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
    unsigned long long* row = out + 3ull * blockIdx.x;
    row[0] = multiprocessor;
    row[1] = cycles;
    row[2] = nanoseconds;
}
""",
    twin=_no_twin,
)

HOLD = CudaSource(
    name="hold",
    text=r"""
extern "C" __global__ void hold(const volatile unsigned long long* released, unsigned long long ticket,
                                unsigned long long limit_ns, unsigned long long* expired)
{
    unsigned long long began, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began));
    while (*released < ticket) {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
        if (now - began > limit_ns) {
            *expired = ticket;
            return;
        }
    }
}
""",
    twin=_no_twin,
)


def mean_clock_mhz(first: NDArray[Any], last: NDArray[Any]) -> float | None:
    """Return the mean clock between two stamps, each (blocks, 3): multiprocessor, cycles, nanoseconds.

    Only counters of one multiprocessor can be subtracted, so rows are paired by it; the median over pairs shrugs off a counter that
    was reset. None where no multiprocessor stands in both or no time has passed.
    """
    before = {int(row[_MULTIPROCESSOR]): row for row in first}
    rates = []
    for row in last:
        known = before.get(int(row[_MULTIPROCESSOR]))
        if known is None:
            continue
        cycles, elapsed_ns = int(row[_CYCLES]) - int(known[_CYCLES]), int(row[_NANOSECONDS]) - int(known[_NANOSECONDS])
        if cycles > 0 and elapsed_ns > 0:
            rates.append(cycles / elapsed_ns * 1e3)
    return float(np.median(rates)) if rates else None
