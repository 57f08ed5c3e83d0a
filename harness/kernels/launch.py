"""Launch latency: what it costs to ask the device for next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.registry import Case, Work, benchmark

if TYPE_CHECKING:
    from harness.device.backend import Array, Backend

# Knuth's MMIX generator; any odd multiplier and increment make the number of steps readable from the state.
_A = np.uint64(6364136223846793005)
_C = np.uint64(1442695040888963407)


def tick(lane, first, count, step, fresh, seed, state):  # type: ignore[no-untyped-def]
    """Take one step of a linear congruential generator, from the seed if `fresh`. An empty kernel could not be checked."""
    state[lane] = (seed if fresh else state[lane]) * _A + _C


@benchmark(version=1, metric="latency", launches=(64, 512))
def launch(backend: Backend, seed: int, *, launches: int) -> Case:
    """Host time of one launch of a kernel that does next to nothing, Numba's dispatch included, over back-to-back launches."""
    state = backend.xp.zeros(1, dtype=np.uint64)
    call = backend.compile(tick)
    key = np.uint64(seed)

    def run() -> Array:
        call(1, True, key, state)  # noqa: FBT003 - kernels take positional arguments only
        for _ in range(launches - 1):
            call(1, False, key, state)  # noqa: FBT003
        return state

    def check(answer: Array) -> bool:
        value = int(key)
        for _ in range(launches):
            value = (value * int(_A) + int(_C)) % 2**64
        return int(answer[0]) == value

    work = Work(items=launches, item="launch", counting="launches issued one after another, the device awaited once")
    return Case(run=run, work=work, check=check, hide_launches=False)
